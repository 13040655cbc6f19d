package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/csi"
	"github.com/coracle-edge/coracle/edgelet/devices"
	"github.com/coracle-edge/coracle/edgelet/node"
	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
	"github.com/coracle-edge/coracle/edgelet/pods/podstate"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// machineBootID is different for every boot of the machine.
const machineBootID = "/proc/sys/kernel/random/boot_id"

const annotationAttach = "volumes.kubernetes.io/controller-managed-attach-detach"

func (a *agent) buildVolumes(store *podstate.Store) error {
	c := volumes.Config{Dir: filepath.Join(a.o.dataDir, "pods"), Objects: store, Token: a.podToken,
		Allocatable: func() v1.ResourceList { return a.node.Allocatable() }, Log: a.log, Now: a.now, Changed: func() { a.node.Changed() }}
	if os.Geteuid() == 0 && !a.forGood {
		boot, err := os.ReadFile(machineBootID)
		if err != nil {
			return fmt.Errorf("which boot of the machine this is: %w", err)
		}
		config := a.csiConfig()
		config.Boot, config.Changed = strings.TrimSpace(string(boot)), a.storageChanged
		a.csi = csi.New(config)
		c.CSI = a.csi
	}
	a.volumes = volumes.New(c)
	return nil
}

func (a *agent) csiConfig() csi.Config {
	return csi.Config{KubeletDir: a.o.kubeletDir, RecordDir: filepath.Join(a.o.dataDir, "csi"), IsMountPoint: volumes.Kernel{}.IsMountPoint, Log: a.log}
}

// abandonCSI unmounts what drivers have mounted, once nothing uses it.
func (a *agent) abandonCSI() error {
	return csi.New(a.csiConfig()).Abandon(volumes.Kernel{}.UnmountBelow)
}

// storageChanged tells pods that may wait for a driver, and the cluster.
func (a *agent) storageChanged(drivers bool) {
	if drivers {
		a.pods.VolumesChanged()
	}
	a.node.Changed()
}

// watchPlugins has plugins register until ctx ends.
func (a *agent) watchPlugins(ctx context.Context) error {
	if a.csi == nil {
		return nil // without root nothing can be mounted for a pod
	}
	return pluginwatch.New(pluginwatch.Config{Dir: filepath.Join(a.o.kubeletDir, "plugins_registry"),
		Handlers: map[string]pluginwatch.Handler{pluginwatch.TypeCSI: a.csi, devices.PluginType: a.devices}, Log: a.log}).Run(ctx)
}

// storage is what the Node says of volumes.
func (a *agent) storage() node.Storage {
	s := node.Storage{Labels: map[string]string{}, Annotations: map[string]string{}}
	if a.csi == nil {
		return s
	}
	// Upstream's: its controller attaches volumes to nodes that say so only.
	s.Annotations[annotationAttach] = "true"
	var drivers []fleet.CSIDriver
	for _, d := range a.csi.Drivers() {
		maps.Copy(s.Labels, d.Topology)
		drivers = append(drivers, fleet.CSIDriver{Name: d.Name, NodeID: d.NodeID, Limit: d.Limit, TopologyKeys: slices.Sorted(maps.Keys(d.Topology))})
	}
	annotate(s.Annotations, fleet.AnnotationCSIDrivers, drivers)
	for _, name := range a.csi.InUse() {
		s.InUse = append(s.InUse, v1.UniqueVolumeName(name))
	}
	var expanded []fleet.ExpandedClaim
	for _, e := range a.volumes.Expanded() {
		expanded = append(expanded, fleet.ExpandedClaim{Namespace: e.Namespace, Name: e.Claim, UID: e.UID, Bytes: e.Bytes})
	}
	annotate(s.Annotations, fleet.AnnotationExpanded, expanded)
	return s
}

func annotate[T any](annotations map[string]string, key string, list []T) {
	if len(list) == 0 {
		return
	}
	raw, err := json.Marshal(list)
	if err == nil { // strings and numbers only
		annotations[key] = string(raw)
	}
}
