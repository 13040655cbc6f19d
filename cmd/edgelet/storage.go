package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
	"github.com/coracle-edge/coracle/edgelet/claims"
	"github.com/coracle-edge/coracle/edgelet/csi"
	"github.com/coracle-edge/coracle/edgelet/devices"
	"github.com/coracle-edge/coracle/edgelet/node"
	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/pods/podstate"
	"github.com/coracle-edge/coracle/edgelet/state"
	"github.com/coracle-edge/coracle/edgelet/stats"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// machineBootID is different for every boot of the machine.
const machineBootID = "/proc/sys/kernel/random/boot_id"

const annotationAttach = "volumes.kubernetes.io/controller-managed-attach-detach"

func (a *agent) buildVolumes(store *podstate.Store) error {
	c := volumes.Config{Dir: a.podsDir(), DevicesDir: a.devicesDir(), Objects: store, Token: a.podToken,
		Allocatable: func() v1.ResourceList { return a.node.Allocatable() }, Log: a.log, Now: a.now, Changed: func() { a.node.Changed() }, Notice: a.volumeNotice}
	if os.Geteuid() == 0 && !a.forGood {
		boot, err := os.ReadFile(machineBootID)
		if err != nil {
			return fmt.Errorf("which boot of the machine this is: %w", err)
		}
		config := a.csiConfig()
		config.Boot, config.Changed = strings.TrimSpace(string(boot)), a.storageChanged
		a.csi = csi.New(config)
		c.CSI = a.csi
		c.Folders = &volumes.Folders{Dir: a.o.localVolumes, Given: a.o.localVolumesGiven, Records: a.state}
		if a.claims, err = claims.New(claims.Config{Store: a.state, Objects: store, Boot: config.Boot, Changed: a.driversChanged,
			HealthChanged: func(uids []string) { a.pods.Wake(uids) }, Log: a.log}); err != nil {
			return err
		}
	}
	a.volumes = volumes.New(c)
	return nil
}

// volumeNotice tells of a pod's volume, and of its claim.
func (a *agent) volumeNotice(n volumes.Notice) {
	if n.PodUID != "" {
		a.pods.Event(n.PodUID, n.Type, n.Reason, n.Message)
	}
	e := state.Entry{Kind: state.EntryEvent, Type: n.Type, Reason: n.Reason, Message: n.Message, Component: "kubelet", Count: 1}
	switch {
	case n.Claim != "":
		e.ObjectKind, e.Namespace, e.Name, e.UID = "PersistentVolumeClaim", n.Namespace, n.Claim, n.ClaimUID
	case n.Volume != "":
		e.ObjectKind, e.Name, e.UID = "PersistentVolume", n.Volume, n.VolumeUID
	default:
		return
	}
	if err := a.state.Journal(e); err != nil {
		a.log.Warn("an event was lost", "kind", e.ObjectKind, "name", e.Name, "reason", e.Reason, "err", err)
	}
}

func (a *agent) csiConfig() csi.Config {
	return csi.Config{KubeletDir: a.o.kubeletDir, RecordDir: filepath.Join(a.o.dataDir, "csi"), IsMountPoint: volumes.Kernel{}.IsMountPoint, Log: a.log}
}

// abandonCSI unmounts what drivers have mounted, once nothing uses it.
func (a *agent) abandonCSI() error {
	return csi.New(a.csiConfig()).Abandon(volumes.Kernel{}.UnmountBelow)
}

// drivenVolumes are the figures of a pod's CSI volumes.
func (a *agent) drivenVolumes(ctx context.Context, uid string) []stats.DrivenVolume {
	if a.csi == nil {
		return nil
	}
	used, err := a.csi.Usage(ctx, uid)
	if err != nil {
		a.log.Info("a driver doesn't say how full a volume is", "pod", uid, "err", err)
	}
	var out []stats.DrivenVolume
	for _, message := range a.abnormal.news(uid, used) {
		a.pods.Event(uid, v1.EventTypeWarning, "VolumeConditionAbnormal", message)
	}
	said := func(n int64) uint64 { return uint64(max(n, 0)) }
	for _, u := range used {
		out = append(out, stats.DrivenVolume{Name: u.Volume, PersistentVolume: u.Name, Space: stats.Space{
			Capacity: said(u.Total), Available: said(u.Available), Used: said(u.Used),
			Inodes: said(u.InodesTotal), InodesFree: said(u.InodesAvailable), InodesUse: said(u.InodesUsed)}})
	}
	return out
}

// storageChanged tells pods that may wait for a driver, and the cluster.
func (a *agent) storageChanged(drivers bool) {
	if drivers {
		a.pods.VolumesChanged()
	}
	a.node.Changed()
}

// driversChanged tells pods that may wait for a DRA driver, and the cluster.
func (a *agent) driversChanged() {
	a.pods.ClaimsChanged()
	a.node.Changed()
}

// watchPlugins has plugins register until ctx ends.
func (a *agent) watchPlugins(ctx context.Context) error {
	if a.csi == nil {
		return nil // without root nothing can be mounted for a pod
	}
	return pluginwatch.New(pluginwatch.Config{Dir: filepath.Join(a.o.kubeletDir, "plugins_registry"),
		Handlers: map[string]pluginwatch.Handler{pluginwatch.TypeCSI: a.csi, devices.PluginType: a.devices, pluginwatch.TypeDRA: a.claims}, Log: a.log}).Run(ctx)
}

// storage is what the Node says of volumes and of drivers of devices.
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
		expanded = append(expanded, fleet.ExpandedClaim{Namespace: e.Namespace, Name: e.Claim, UID: e.UID, Bytes: e.Bytes, Error: e.Error, Infeasible: e.Infeasible})
	}
	annotate(s.Annotations, fleet.AnnotationExpanded, expanded)
	annotate(s.Annotations, fleet.AnnotationGoneDrivers, a.claims.Gone())
	s.Annotations[localvolumes.AnnotationDir], s.Labels[localvolumes.Label] = a.o.localVolumes, "true"
	if gone := a.goneVolumes.Load(); gone != nil {
		annotate(s.Annotations, localvolumes.AnnotationGone, *gone)
	}
	return s
}

// sweepAgain is when folders of volumes that could not be removed are tried again.
const sweepAgain = 10 * time.Second

// sweepVolumes removes the folders of volumes that the cluster has released, until
// ctx ends.
func (a *agent) sweepVolumes(ctx context.Context) error {
	if a.csi == nil {
		return nil // without root none was made
	}
	changed := a.state.Follow()
	said := ""
	for {
		gone, err := a.sweepOnce(ctx)
		if before := a.goneVolumes.Swap(&gone); len(gone) > 0 && (before == nil || !slices.Equal(*before, gone)) {
			a.node.Changed()
		}
		var again <-chan time.Time
		now := ""
		if err != nil {
			again, now = time.After(sweepAgain), err.Error()
			if now != said && ctx.Err() == nil {
				a.log.Warn("volumes that are released", "err", err)
			}
		}
		said = now
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		}
	}
}

func (a *agent) sweepOnce(ctx context.Context) ([]localvolumes.Gone, error) {
	objects, bad := a.state.Desired(volumes.KindVolume)
	var pvs []*v1.PersistentVolume
	for _, o := range objects {
		pv, err := kubeobj.PersistentVolume(o.Raw)
		if err != nil {
			bad = errors.Join(bad, err)
			continue
		}
		pvs = append(pvs, pv)
	}
	gone, err := a.volumes.RemoveReleased(ctx, pvs)
	return gone, errors.Join(bad, err)
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
