package volumes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/csi"
)

// How a volume becomes larger: a controller (or a person) has made the volume
// larger and says so in the PersistentVolume; the node then grows what lies on it
// and says so, and the claim's status follows (upstream:
// pkg/volume/util/operationexecutor/node_expander.go).

const (
	reasonGrown    = "FileSystemResizeSuccessful"
	reasonReadOnly = "FileSystemResizeFailed"
	reasonNotGrown = "VolumeResizeFailed"
	// What couldn't be grown under a running pod is tried again after growAgainMin,
	// and ever later (upstream: goroutinemap/exponentialbackoff).
	growAgainMin = 500 * time.Millisecond
	growAgainMax = 2*time.Minute + 2*time.Second
)

// Notice is an event about a pod and, if Claim is not empty, another of the same
// words about that claim of it; or, without a pod, about a PersistentVolume.
type Notice struct {
	PodUID                     string
	Volume, VolumeUID          string
	Namespace, Claim, ClaimUID string
	Type, Reason, Message      string
}

// Expanded is a claim whose volume this node has grown, or tried to; the cluster is
// to note it in the claim's status.
type Expanded struct {
	Namespace string
	Claim     string
	UID       string
	Bytes     int64
	// Error says why it could not be grown to Bytes; empty: it was.
	Error string
	// Infeasible says that it never will: a controller is to decide anew.
	Infeasible bool
}

// growKey is a volume of a pod.
type growKey struct{ pod, volume string }

// growing is what became of growing a volume for one pod.
type growing struct {
	// waits says that the pod may not use the volume before it is grown.
	waits bool
	// readOnly says that it was told that a volume that is only read isn't grown.
	readOnly int64
	failures int
	again    time.Time
	said     string // why it failed last
}

// Expanded are the volumes grown that the cluster may not have noted yet.
func (m *Manager) Expanded() []Expanded {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Expanded
	for _, name := range slices.Sorted(maps.Keys(m.expanded)) {
		out = append(out, m.expanded[name])
	}
	return out
}

// toGrow is how large a claim's volume is to become, in bytes, 0 if it is as large
// as it should be or the node has no part in it. noted says that what becomes of it
// is to be in the claim's status: an older controller looks for nothing there.
func toGrow(claim *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) (bytes int64, noted bool) {
	want, have := pv.Spec.Capacity[v1.ResourceStorage], claim.Status.Capacity[v1.ResourceStorage]
	if have.IsZero() || want.Cmp(have) <= 0 {
		return 0, false
	}
	state := claim.Status.AllocatedResourceStatuses[v1.ResourceStorage]
	if state == "" && claim.Status.AllocatedResources == nil {
		return want.Value(), false
	}
	allocated := claim.Status.AllocatedResources[v1.ResourceStorage]
	if state != v1.PersistentVolumeClaimNodeResizePending && state != v1.PersistentVolumeClaimNodeResizeInProgress {
		return 0, true
	}
	return allocated.Value(), true
}

// grow makes what lies on a claimed volume as large as the volume, by do, if that
// is due. used says that the pod had the volume before: then a failure doesn't stop
// it, and is tried again.
func (m *Manager) grow(pod *v1.Pod, claim *v1.PersistentVolumeClaim, pv *v1.PersistentVolume, readOnly, used bool, out *Mounted, do func(bytes int64) error) error {
	bytes, noted := toGrow(claim, pv)
	m.mu.Lock()
	before, known := m.expanded[pv.Name]
	if known && (before.UID != string(claim.UID) || bytes == 0) {
		delete(m.expanded, pv.Name) // the cluster has noted it
		before = Expanded{}
	}
	key := growKey{string(pod.UID), pv.Name}
	g := m.growing[key]
	m.mu.Unlock()
	settled := before.Error == "" && before.Bytes >= bytes || before.Infeasible && before.Bytes == bytes
	if bytes == 0 || settled {
		return nil
	}
	tell := func(eventType, reason, format string, args ...any) Notice {
		return Notice{PodUID: string(pod.UID), Type: eventType, Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	both := func(n Notice) Notice {
		n.Namespace, n.Claim, n.ClaimUID = claim.Namespace, claim.Name, string(claim.UID)
		return n
	}
	remember := func(g growing) {
		m.mu.Lock()
		m.growing[key] = g
		m.mu.Unlock()
	}
	if readOnly {
		if g.readOnly != bytes {
			g.readOnly = bytes
			remember(g)
			m.notice(both(tell(v1.EventTypeWarning, reasonReadOnly, "MountVolume.NodeExpandVolume failed for volume %q requested read-only file system", pv.Name)))
		}
		return nil
	}
	now := m.Now()
	used = used && !g.waits
	if used && now.Before(g.again) {
		out.refreshBy(g.again)
		return nil
	}
	became := Expanded{Namespace: claim.Namespace, Claim: claim.Name, UID: string(claim.UID), Bytes: bytes}
	err := do(bytes)
	if err == nil {
		m.mu.Lock()
		delete(m.growing, key)
		m.mu.Unlock()
		m.Log.Info("a volume was grown", "volume", pv.Name, "bytes", bytes)
		m.notice(both(tell(v1.EventTypeNormal, reasonGrown, "MountVolume.NodeExpandVolume succeeded for volume %q %s", pv.Name, pod.Spec.NodeName)))
		m.expand(pv.Name, became)
		return nil
	}
	if errors.Is(err, csi.ErrNoExpansion) {
		return nil // it is the controller's alone, who says so in the claim
	}
	if noted && !errors.Is(err, csi.ErrUncertain) {
		asked := claim.Spec.Resources.Requests[v1.ResourceStorage]
		became.Error = err.Error()
		// Whoever has asked for another size since, and this one failed twice, gets that.
		became.Infeasible = errors.Is(err, csi.ErrInfeasible) || before.Bytes == bytes && asked.Value() != bytes
		m.expand(pv.Name, became)
	}
	if errors.Is(err, csi.ErrBusy) {
		m.Log.Info("a driver doesn't grow a volume in use", "volume", pv.Name, "err", err)
		g.again, g.waits = now.Add(growAgainMax), false
		remember(g)
		out.refreshBy(g.again)
		return nil
	}
	if !used {
		g.waits = true
		remember(g)
		return fmt.Errorf("MountVolume.Setup failed while expanding volume for volume %q : %w", pv.Name, err)
	}
	g.again = now.Add(min(growAgainMin<<min(g.failures, 16), growAgainMax))
	g.failures++
	told := g.said == err.Error()
	g.said = err.Error()
	remember(g)
	out.refreshBy(g.again)
	if told {
		return nil
	}
	m.notice(tell(v1.EventTypeWarning, reasonNotGrown, "NodeExpandVolume.NodeExpandVolume failed for volume %q : %v", pv.Name, err))
	return nil
}

func (m *Manager) notice(n Notice) {
	if m.Notice != nil {
		m.Notice(n)
	}
}

// expand notes what became of a volume, for the cluster.
func (m *Manager) expand(volume string, e Expanded) {
	m.mu.Lock()
	changed := m.expanded[volume] != e
	m.expanded[volume] = e
	m.mu.Unlock()
	if changed && m.Changed != nil {
		m.Changed()
	}
}

// forgetGrowing drops what was remembered of a pod.
func (m *Manager) forgetGrowing(podUID string) {
	maps.DeleteFunc(m.growing, func(k growKey, _ growing) bool { return k.pod == podUID })
}

// growLocal grows the file system of a local volume that is a device, mounted at
// dir. A folder is as large as what it lies on, and a device that the pod has as
// such has no file system of ours (upstream: local.go, NodeExpand).
func growLocal(ctx context.Context, source *v1.LocalVolumeSource, block bool, dir string) error {
	if block {
		return nil
	}
	info, err := os.Stat(source.Path)
	if err != nil {
		return err
	}
	if !isBlockDevice(info) {
		return nil
	}
	return growFileSystem(ctx, source.Path, dir)
}
