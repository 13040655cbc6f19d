package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/affinity"
)

func TestLinkClassFlag(t *testing.T) {
	o, err := parse([]string{"--data-dir", t.TempDir(), "--link-class", "satellite"}, nil)
	if err != nil || o.linkClass != "satellite" {
		t.Errorf("%v, %+v", err, o)
	}
	if _, err := parse([]string{"--link-class", "lora"}, nil); !errors.Is(err, fleet.ErrClass) || !strings.Contains(err.Error(), "satellite") {
		t.Errorf("an unknown class: %v", err)
	}
	if _, err := keyValues("a=b," + fleet.LabelLinkClass + "=lte"); err == nil || !strings.Contains(err.Error(), "--link-class") {
		t.Errorf("the class as a label of the node's own: %v", err)
	}
}

func TestPoliciesOfProcessorsAndMemory(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--cpu-manager-policy dynamic", "--cpu-manager-policy dynamic"},
		{"--memory-manager-policy BestEffort", "--memory-manager-policy BestEffort"},
		{"--topology-manager-policy all", "--topology-manager-policy all"},
		{"--topology-manager-scope node", "--topology-manager-scope node"},
		{"--cpu-manager-policy static", "requires systemreserved.cpu + kubereserved.cpu to be greater than zero"},
		{"--cpu-manager-policy static --reserved-cpus 3-1", "--reserved-cpus"},
		{"--cpu-manager-policy static --reserved-cpus 0 --cpu-manager-policy-options align-by-socket=true", "align-by-socket"},
		{"--cpu-manager-policy static --reserved-cpus 0 --cpu-manager-policy-options full-pcpus-only=true,distribute-cpus-across-cores=true", "can not be used at the same time"},
		{"--cpu-manager-policy static --reserved-cpus 0 --cpu-manager-policy-options full-pcpus-only", "NAME=VALUE"},
		{"--cpu-manager-policy-options full-pcpus-only=true", "--cpu-manager-policy-options"},
		{"--topology-manager-policy-options prefer-closest-numa-nodes=true", "prefer-closest-numa-nodes"},
		{"--memory-manager-policy Static --reserved-memory 0=1Gi", "--reserved-memory"},
	} {
		if _, err := parse(strings.Fields(c.args), nil); !errors.Is(err, affinity.ErrOption) && !errors.Is(err, affinity.ErrSet) && !strings.Contains(c.want, "NAME") || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
	for _, args := range []string{
		"--cpu-manager-policy none --memory-manager-policy None",
		"--cpu-manager-policy static --kube-reserved cpu=100m --cpu-manager-policy-options strict-cpu-reservation=true,align-by-socket=false",
		"--memory-manager-policy Static --reserved-memory 0:memory=1Gi;1:memory=1Gi,hugepages-2Mi=4Mi --topology-manager-policy single-numa-node --topology-manager-scope pod",
	} {
		if _, err := parse(strings.Fields(args), nil); err != nil {
			t.Errorf("%s: %v", args, err)
		}
	}
	o, err := parse(strings.Fields("--reserved-cpus 0,2-3 --kube-reserved cpu=100m"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := o.resources.reserved(); err != nil || r.Cpu().String() != "3" {
		t.Errorf("three processors are reserved: %v, %v", r, err)
	}
}

// A wrong value is said before anything is done: all of them at once.
func TestWrongValuesAreSaidFirst(t *testing.T) {
	args := []string{"--register-with-taints", "a", "--node-labels", "b", "--allowed-unsafe-sysctls", "vm.swappiness", "--shutdown-grace-period-by-pod-priority", "c",
		"--kube-reserved", "d=1", "--eviction-hard", "memory.available<x"}
	_, err := parse(args, nil)
	if err == nil {
		t.Fatal("they pass")
	}
	for i := 0; i < len(args); i += 2 {
		if !strings.Contains(err.Error(), args[i]) {
			t.Errorf("nothing of %s %s in:\n%v", args[i], args[i+1], err)
		}
	}
	if _, err := parse(nil, nil); err != nil {
		t.Error("the defaults:", err)
	}
}

// Below one folder both drivers of volumes and device plugins find the agent.
func TestFoldersOfPlugins(t *testing.T) {
	for _, c := range []struct {
		args             []string
		kubelet, devices string
	}{
		{nil, "/var/lib/kubelet", "/var/lib/kubelet/device-plugins"},
		{[]string{"--kubelet-dir", "/k"}, "/k", "/k/device-plugins"},
		{[]string{"--data-dir", "/d"}, "/var/lib/kubelet", "/d/device-plugins"},
		{[]string{"--data-dir", "/d", "--kubelet-dir", "/k"}, "/k", "/k/device-plugins"},
		{[]string{"--device-plugin-dir", "/p", "--kubelet-dir", "/k"}, "/k", "/p"},
	} {
		o, err := parse(c.args, nil)
		if err != nil {
			t.Fatal(err)
		}
		if o.kubeletDir != c.kubelet || o.devicePlugins != c.devices {
			t.Errorf("%q: %s and %s, want %s and %s", c.args, o.kubeletDir, o.devicePlugins, c.kubelet, c.devices)
		}
	}
	if _, err := parse([]string{"--kubelet-dir", "k"}, nil); err == nil {
		t.Error("a folder that depends on where the agent is started")
	}
}
