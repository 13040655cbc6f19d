package kubelet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	"k8s.io/utils/clock"

	"github.com/coracle-edge/coracle/edgelet/evict"
	"github.com/coracle-edge/coracle/edgelet/stats"
)

// load is a pod and what it uses.
type load struct {
	pod                        *v1.Pod
	memory, layer, log, volume uint64
	inodes                     uint64 // of its volume
	processes                  uint64
	unknown                    bool // nothing is known of it
}

// loads makes pods of all classes and priorities, and what they use.
func loads(r *rand.Rand) []*load {
	var out []*load
	for i := range 7 {
		quantity := func(most int64) resource.Quantity { return *resource.NewQuantity(1+r.Int64N(most), resource.BinarySI) }
		c := v1.Container{Name: "main", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{}}}
		if r.IntN(3) > 0 {
			c.Resources.Requests[v1.ResourceMemory] = quantity(100 << 20)
		}
		if r.IntN(2) > 0 {
			c.Resources.Requests[v1.ResourceEphemeralStorage] = quantity(100 << 20)
		}
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprint(i))},
			Spec: v1.PodSpec{Containers: []v1.Container{c}, Volumes: []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}}}
		if r.IntN(2) > 0 {
			priority := int32(r.IntN(3)) * 1000
			p.Spec.Priority = &priority
		}
		if r.IntN(4) == 0 {
			p.Spec.Resources = &v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceMemory: quantity(100 << 20)}}
		}
		if r.IntN(8) == 0 {
			critical := int32(2000000000)
			p.Spec.Priority = &critical
		}
		n := func(most uint64) uint64 { return r.Uint64N(most) }
		// Sorting isn't stable upstream, so no two are alike.
		out = append(out, &load{pod: p, memory: n(150<<20)*8 + uint64(i), layer: n(50 << 20), log: n(10<<20)*16 + uint64(i), volume: n(50<<20) * 16,
			inodes: n(1000)*8 + uint64(i), processes: n(100)*8 + uint64(i), unknown: r.IntN(10) == 0 && !slices.ContainsFunc(out, func(l *load) bool { return l.unknown })})
	}
	return out
}

// world is the node that both watch; what is short stays short.
type world struct {
	mu       sync.Mutex
	loads    []*load
	signal   evict.Signal
	separate bool
	ended    []string
}

const (
	capacity = 1 << 30
	scarce   = 10 << 20
)

func (w *world) available(s evict.Signal) uint64 {
	if s == w.signal {
		return scarce
	}
	return capacity / 2
}

// running are those that were not ended yet.
func (w *world) running() (out []*load) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.loads)
}

func (w *world) end(uid, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loads = slices.DeleteFunc(w.loads, func(l *load) bool { return string(l.pod.UID) == uid })
	w.ended = append(w.ended, uid+" "+text)
}

// Get is what a kubelet's stats say.
func (w *world) Get(context.Context, bool) (*statsapi.Summary, error) {
	now := metav1.Now()
	n := func(v uint64) *uint64 { return &v }
	fs := func(room, inodes evict.Signal) *statsapi.FsStats {
		return &statsapi.FsStats{Time: now, AvailableBytes: n(w.available(room)), CapacityBytes: n(capacity), InodesFree: n(w.available(inodes)), Inodes: n(capacity)}
	}
	working := capacity - w.available(evict.MemoryAvailable)
	tasks, most := int64(capacity-w.available(evict.PIDAvailable)), int64(capacity)
	s := &statsapi.Summary{Node: statsapi.NodeStats{
		Memory:           &statsapi.MemoryStats{Time: now, AvailableBytes: n(w.available(evict.MemoryAvailable)), WorkingSetBytes: &working},
		SystemContainers: []statsapi.ContainerStats{{Name: statsapi.SystemContainerPods}},
		Fs:               fs(evict.NodeFsAvailable, evict.NodeFsInodesFree),
		Runtime:          &statsapi.RuntimeStats{ImageFs: fs(evict.ImageFsAvailable, evict.ImageFsInodesFree), ContainerFs: fs(evict.ImageFsAvailable, evict.ImageFsInodesFree)},
		Rlimit:           &statsapi.RlimitStats{Time: now, MaxPID: &most, NumOfRunningProcesses: &tasks},
	}}
	for _, l := range w.running() {
		if l.unknown {
			continue
		}
		s.Pods = append(s.Pods, statsapi.PodStats{
			PodRef:       statsapi.PodReference{Name: l.pod.Name, Namespace: l.pod.Namespace, UID: string(l.pod.UID)},
			Memory:       &statsapi.MemoryStats{WorkingSetBytes: n(l.memory)},
			ProcessStats: &statsapi.ProcessStats{ProcessCount: n(l.processes)},
			Containers: []statsapi.ContainerStats{{Name: "main", Memory: &statsapi.MemoryStats{WorkingSetBytes: n(l.memory)},
				Rootfs: &statsapi.FsStats{UsedBytes: n(l.layer), InodesUsed: n(1)}, Logs: &statsapi.FsStats{UsedBytes: n(l.log), InodesUsed: n(1)}}},
			VolumeStats: []statsapi.VolumeStats{{Name: "v", FsStats: statsapi.FsStats{UsedBytes: n(l.volume), InodesUsed: n(l.inodes)}}},
		})
	}
	return s, nil
}

func (w *world) GetCPUAndMemoryStats(ctx context.Context) (*statsapi.Summary, error) {
	return w.Get(ctx, false)
}
func (w *world) HasDedicatedImageFs(context.Context) (bool, error) { return w.separate, nil }

// Layers are where images are.
func (w *world) HasDedicatedContainerFs(context.Context) (bool, error) { return false, nil }
func (*world) DeleteUnusedImages(context.Context) error                { return nil }
func (*world) DeleteAllUnusedContainers(context.Context) error         { return nil }
func (*world) DeleteDeadContainers(context.Context) error              { return nil }

// impatient doesn't wait a second to see that a pod is gone.
type impatient struct{ clock.RealClock }

func (impatient) NewTicker(time.Duration) clock.Ticker {
	return clock.RealClock{}.NewTicker(time.Millisecond)
}

// theirEnds is what a kubelet's eviction manager ends, in its order.
func theirEnds(t *testing.T, w *world, hard map[string]string) []string {
	thresholds, err := eviction.ParseThresholdConfig(nil, hard, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	left := func() (out []*v1.Pod) {
		idle := true
		for _, l := range w.running() {
			out = append(out, l.pod)
			idle = idle && l.pod.Spec.Priority != nil && *l.pod.Spec.Priority >= 2000000000
		}
		if idle {
			select {
			case <-done:
			default:
				close(done)
			}
		}
		return out
	}
	kill := func(pod *v1.Pod, _ bool, grace *int64, set func(*v1.PodStatus)) error {
		var s v1.PodStatus
		set(&s)
		if s.Phase != v1.PodFailed || len(s.Conditions) != 1 || s.Conditions[0].Type != v1.DisruptionTarget || s.Conditions[0].Message != s.Message {
			t.Errorf("upstream's verdict is another: %+v", s)
		}
		w.end(string(pod.UID), fmt.Sprintf("%s %d %s", s.Reason, *grace, s.Message))
		return nil
	}
	m, _ := eviction.NewManager(w, eviction.Config{Thresholds: thresholds}, kill, w, w, record.NewFakeRecorder(1000), &v1.ObjectReference{}, impatient{}, true)
	m.Start(t.Context(), w, left, func(*v1.Pod) bool { return true }, time.Hour)
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("a kubelet ended %d pods only", len(w.ended))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.ended)
}

// ourPods is the world as edgelet's eviction sees it.
type ourPods struct{ w *world }

func (o ourPods) Running() (out []evict.Pod) {
	for _, l := range o.w.running() {
		out = append(out, evict.Pod{Namespace: l.pod.Namespace, Name: l.pod.Name, UID: string(l.pod.UID), Spec: func() (*v1.Pod, error) { return l.pod, nil }})
	}
	return out
}

func (o ourPods) End(_ context.Context, uid string, v evict.Verdict) error {
	if v.Disruption != v.Message {
		return fmt.Errorf("the condition says %q", v.Disruption)
	}
	o.w.end(uid, fmt.Sprintf("%s %d %s", v.Reason, v.Grace, v.Message))
	return nil
}

func (o ourPods) Measure(context.Context, bool, func(string) bool) (out []*evict.Candidate, err error) {
	for _, l := range o.w.running() {
		memory, layer, log := int64(l.memory), int64(l.layer), int64(l.log)
		c := &evict.Candidate{Namespace: l.pod.Namespace, Name: l.pod.Name, UID: string(l.pod.UID), Pod: l.pod, Measured: !l.unknown}
		if !l.unknown {
			c.Memory, c.Processes = &memory, int64(l.processes)
			c.Layers, c.Logs, c.Volumes = evict.Disk{Bytes: layer, Inodes: 1}, evict.Disk{Bytes: log, Inodes: 1}, evict.Disk{Bytes: int64(l.volume), Inodes: int64(l.inodes)}
			c.Containers = []evict.ContainerUse{{Name: "main", Memory: &memory, Layer: &layer, Log: &log}}
		}
		out = append(out, c)
	}
	return out, nil
}

func ourEnds(t *testing.T, w *world, hard string) []string {
	thresholds, err := evict.Flags{Hard: hard}.Parse()
	if err != nil {
		t.Fatal(err)
	}
	space := func(device uint64, room, inodes evict.Signal) stats.Space {
		return stats.Space{Capacity: capacity, Available: w.available(room), Inodes: capacity, InodesFree: w.available(inodes), Device: device}
	}
	m := evict.New(evict.Config{Thresholds: thresholds, Pods: ourPods{w}, Collector: w, Sources: evict.Sources{
		Memory: func() stats.Machine {
			return stats.Machine{MemoryTotal: capacity, WorkingSet: capacity - w.available(evict.MemoryAvailable)}
		},
		Tasks:  func() (uint64, uint64) { return capacity - w.available(evict.PIDAvailable), capacity },
		NodeFs: func() (stats.Space, error) { return space(1, evict.NodeFsAvailable, evict.NodeFsInodesFree), nil },
		Stores: func(context.Context) (string, string) { return "/images", "/images" },
		Space: func(string) (stats.Space, error) {
			device := uint64(1)
			if w.separate {
				device = 2
			}
			return space(device, evict.ImageFsAvailable, evict.ImageFsInodesFree), nil
		},
		Pods: func() (uint64, uint64, bool) { return 0, 0, false },
	}})
	for m.Check(t.Context()) {
	}
	return w.ended
}

// The order in which pods go, and every word said of each, is a kubelet's.
func TestPodsAreEvictedAsAKubeletDoes(t *testing.T) {
	for _, signal := range []evict.Signal{evict.MemoryAvailable, evict.NodeFsAvailable, evict.NodeFsInodesFree, evict.ImageFsAvailable, evict.ImageFsInodesFree, evict.PIDAvailable} {
		for _, separate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s separate=%t", signal, separate), func(t *testing.T) {
				t.Parallel()
				for seed := range uint64(25) {
					for _, value := range []string{"5%", "20Mi"} {
						make := func() *world {
							return &world{loads: loads(rand.New(rand.NewPCG(seed, 1))), signal: signal, separate: separate}
						}
						want := theirEnds(t, make(), map[string]string{string(signal): value})
						got := ourEnds(t, make(), string(signal)+"<"+value)
						if !slices.Equal(got, want) {
							t.Fatalf("seed %d, %s:\nours   %s\ntheirs %s", seed, value, strings.Join(got, "\n       "), strings.Join(want, "\n       "))
						}
					}
				}
			})
		}
	}
}
