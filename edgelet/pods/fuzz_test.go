package pods

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The board's resolv.conf.
func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 1.1.1.1\nsearch a. b\noptions ndots:5\n")
	f.Add("search .\nnameserver\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseResolvConf(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, s := range append(append(c.Servers, c.Searches...), c.Options...) {
			if s == "" || strings.ContainsAny(s, " \n") {
				t.Errorf("%q has %q", text, s)
			}
		}
	})
}

// A container's log, of which the end is the termination message, and what its
// folder is full of, out of which the next run's number is found.
func FuzzLastLogLines(f *testing.F) {
	f.Add("2026-01-01T00:00:00Z stdout F a\n2026-01-01T00:00:00Z stderr P b\n", "0.log")
	f.Add("stdout F\n\n a stdout P", "2147483647.log")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, log, name string) {
		path := filepath.Join(dir, "log")
		if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if text := lastLogLines(path); len(text) > maxTerminationMessage {
			t.Errorf("%d bytes", len(text))
		}
		if n := runAfter(name); n < 0 {
			t.Errorf("after %q comes run %d", name, n)
		}
	})
}

// What a runtime says of a container and of a sandbox: no panic, and nothing of it
// is another pod's.
func FuzzRuntimesWord(f *testing.F) {
	for _, m := range []proto.Message{
		&runtimeapi.ContainerStatus{Id: "a", State: 9, Annotations: map[string]string{annRestartCount: "-9223372036854775808", annTerminationGrace: "-1", annTermMessagePath: "/x"},
			Mounts: []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: "/etc/shadow"}}},
		&runtimeapi.PodSandboxStatus{Network: &runtimeapi.PodSandboxNetworkStatus{AdditionalIps: []*runtimeapi.PodIP{{}}}},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var c runtimeapi.ContainerStatus
		if proto.Unmarshal(raw, &c) == nil {
			got := convertContainer("s", &c)
			if got.restartCount < 0 {
				t.Errorf("restarted %d times", got.restartCount)
			}
			if parseGrace(got.annotations) < 0 {
				t.Error("a grace below 0")
			}
		}
		var s runtimeapi.PodSandboxStatus
		if proto.Unmarshal(raw, &s) == nil {
			sandboxIPs(&s)
		}
	})
}
