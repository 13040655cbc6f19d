package evict

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/edgelet/stats"
)

const gib = 1 << 30

// board is a machine and its pods.
type board struct {
	available uint64 // of 1 GiB of memory
	disk      uint64 // available of 10 GiB
	pods      []*Candidate
	ended     []Verdict
	names     []string
	counted   int
	freed     uint64 // by removing images
	cleaned   []string
	changes   int
	events    []string
	log       strings.Builder
}

func (b *board) Running() (out []Pod) {
	for _, c := range b.pods {
		out = append(out, Pod{Namespace: c.Namespace, Name: c.Name, UID: c.UID, Static: c.Static, Spec: func() (*v1.Pod, error) { return c.Pod, nil }})
	}
	return out
}

func (b *board) End(_ context.Context, uid string, v Verdict) error {
	b.ended = append(b.ended, v)
	i := slices.IndexFunc(b.pods, func(c *Candidate) bool { return c.UID == uid })
	b.names = append(b.names, b.pods[i].Name)
	if m := b.pods[i].Memory; m != nil {
		b.available += uint64(*m)
	}
	b.pods = slices.Delete(b.pods, i, i+1)
	return nil
}

func (b *board) Measure(_ context.Context, counted bool, only func(string) bool) (out []*Candidate, err error) {
	if counted {
		b.counted++
	}
	for _, c := range b.pods {
		if only == nil || only(c.UID) {
			out = append(out, c)
		}
	}
	return out, nil
}

func (b *board) DeleteDeadContainers(context.Context) error {
	b.cleaned = append(b.cleaned, "containers")
	return nil
}

func (b *board) DeleteUnusedImages(context.Context) error {
	b.cleaned = append(b.cleaned, "images")
	b.disk += b.freed
	return errors.New("one of them is in use")
}

func (b *board) manager(t *testing.T, f Flags) *Manager {
	t.Helper()
	thresholds, err := f.Parse()
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{Thresholds: thresholds, Pods: b, Collector: b, MaxGrace: 7, Changed: func() { b.changes++ },
		Event: func(kind, reason, message string) { b.events = append(b.events, kind+" "+reason+": "+message) },
		Log:   slog.New(slog.NewTextHandler(&b.log, nil)), Sources: Sources{
			NodeDir: "/n",
			Memory:  func() stats.Machine { return stats.Machine{MemoryTotal: gib, WorkingSet: gib - b.available} },
			Tasks:   func() (uint64, uint64) { return 10, 1000 },
			NodeFs: func() (stats.Space, error) {
				return stats.Space{Capacity: 10 * gib, Available: b.disk, Inodes: 1000, InodesFree: 500, Device: 1}, nil
			},
			Stores: func(context.Context) (string, string) { return "/i", "/i" },
			Space: func(string) (stats.Space, error) {
				return stats.Space{Capacity: 10 * gib, Available: b.disk, Inodes: 1000, InodesFree: 500, Device: 1}, nil
			},
			Pods: func() (uint64, uint64, bool) { return 0, 0, false },
		}})
}

func candidate(name string, memory int64, change func(*v1.Pod)) *Candidate {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "main"}}}}
	if change != nil {
		change(p)
	}
	return &Candidate{Namespace: "default", Name: name, UID: name, Pod: p, Measured: true, Memory: &memory}
}

func TestMemoryRunsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		critical := int32(2000000000)
		grace := int64(3)
		b := &board{available: 50 << 20, disk: 5 * gib, pods: []*Candidate{
			candidate("system", 500<<20, func(p *v1.Pod) { p.Spec.Priority = &critical }),
			candidate("small", 10<<20, nil),
			candidate("large", 60<<20, func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = &grace }),
		}}
		b.pods = append(b.pods, candidate("static", 400<<20, nil))
		b.pods[3].Static = true
		m := b.manager(t, Flags{Hard: "memory.available<100Mi"})
		if !m.Check(t.Context()) || m.Check(t.Context()) {
			t.Fatalf("ended %q, want one", b.names)
		}
		if !slices.Equal(b.names, []string{"large"}) || b.ended[0].Grace != 1 || b.ended[0].Reason != "Evicted" || b.ended[0].Disruption != b.ended[0].Message ||
			!strings.HasPrefix(b.ended[0].Message, "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ") {
			t.Errorf("%q %+v", b.names, b.ended)
		}
		if got := m.Conditions(); !slices.Equal(got, []v1.NodeConditionType{v1.NodeMemoryPressure}) || b.changes != 1 {
			t.Errorf("%v, told %d times", got, b.changes)
		}
		if want := []string{"Warning EvictionThresholdMet: Attempting to reclaim memory"}; !slices.Equal(b.events, want) {
			t.Errorf("events %q, want %q", b.events, want)
		}
		// Only memory was short: nothing was to be freed on the disk, and no folder counted.
		if len(b.cleaned) > 0 || b.counted > 0 {
			t.Errorf("cleaned %q, counted %d times", b.cleaned, b.counted)
		}
		time.Sleep(DefaultTransition - time.Second)
		m.Check(t.Context())
		if len(m.Conditions()) != 1 {
			t.Error("the condition went before its time")
		}
		time.Sleep(2 * time.Second)
		m.Check(t.Context())
		if len(m.Conditions()) != 0 || b.changes != 2 {
			t.Errorf("%v after the transition period, told %d times", m.Conditions(), b.changes)
		}
		// Nobody may go any more.
		b.pods = slices.DeleteFunc(b.pods, func(c *Candidate) bool { return c.Name == "small" })
		b.available = 1
		if m.Check(t.Context()) {
			t.Errorf("ended %q", b.names)
		}
	})
}

// Without memory nothing can be done about a disk.
func TestMemoryGoesBeforeTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{available: 50 << 20, disk: gib / 2, pods: []*Candidate{candidate("some", 60<<20, nil)}}
		m := b.manager(t, Flags{Hard: "nodefs.available<10%,memory.available<100Mi"})
		if !m.Check(t.Context()) || len(b.cleaned) > 0 {
			t.Errorf("ended %q, cleaned %q", b.names, b.cleaned)
		}
		if want := []string{"Warning EvictionThresholdMet: Attempting to reclaim memory"}; !slices.Equal(b.events, want) {
			t.Errorf("events %q, want %q", b.events, want)
		}
	})
}

func TestSoftThresholdsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		grace := int64(3)
		b := &board{available: 150 << 20, disk: 5 * gib, pods: []*Candidate{candidate("a", 20<<20, func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = &grace }), candidate("b", 10<<20, nil), candidate("c", 5<<20, nil)}}
		m := b.manager(t, Flags{Hard: "memory.available<100Mi", Soft: "memory.available<200Mi", SoftGrace: "memory.available=1m", MinReclaim: "memory.available=10Mi"})
		m.Check(t.Context())
		time.Sleep(59 * time.Second)
		if m.Check(t.Context()) || len(m.Conditions()) != 1 {
			t.Fatalf("ended %q before the grace was over; %v", b.names, m.Conditions())
		}
		b.available = 250 << 20 // for a moment: it counts from the beginning
		m.Check(t.Context())
		b.available = 150 << 20
		m.Check(t.Context())
		time.Sleep(59 * time.Second)
		if m.Check(t.Context()) {
			t.Fatal("a threshold that was left for a moment wasn't counted anew")
		}
		time.Sleep(time.Second)
		b.available = 185 << 20
		if !m.Check(t.Context()) || b.ended[0].Grace != 3 {
			t.Fatalf("%q %+v", b.names, b.ended)
		}
		// 205 MiB are above the threshold, and less than 10 above it.
		if !m.Check(t.Context()) || b.ended[1].Grace != 7 {
			t.Fatalf("the minimum reclaim isn't kept: %q", b.names)
		}
		if m.Check(t.Context()) {
			t.Errorf("ended %q", b.names)
		}
	})
}

func TestWhatNobodyUsesGoesFirst(t *testing.T) {
	b := &board{available: gib / 2, disk: gib / 2, freed: gib, pods: []*Candidate{candidate("a", 1, nil)}}
	m := b.manager(t, Flags{Hard: "nodefs.available<10%"})
	if m.Check(t.Context()) || !slices.Equal(b.cleaned, []string{"containers", "images"}) {
		t.Errorf("ended %q, cleaned %q", b.names, b.cleaned)
	}
	if !strings.Contains(b.log.String(), `signal=nodefs.available threshold=10% available=536870912 grace=0s "disk of"=/n`) {
		t.Errorf("which disk is full isn't said: %s", &b.log)
	}
	b.disk, b.freed = gib/2, 0
	if !m.Check(t.Context()) || !strings.Contains(b.ended[0].Message, "ephemeral-storage") {
		t.Errorf("nothing was to be freed, and nobody went")
	}
}

func TestOwnLimits(t *testing.T) {
	limit := func(n string) v1.ResourceList {
		return v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse(n)}
	}
	size := resource.MustParse("2Mi")
	i := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		name   string
		change func(*v1.Pod)
		use    func(*Candidate)
		want   string
	}{
		{"emptyDir", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &size}}}}
		}, func(c *Candidate) { c.EmptyDirs = map[string]int64{"v": 3 << 20} }, `Usage of EmptyDir volume "v" exceeds the limit "2Mi". `},
		{"emptyDir at its limit", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &size}}}}
		}, func(c *Candidate) { c.EmptyDirs = map[string]int64{"v": 2 << 20} }, ""},
		{"pod", func(p *v1.Pod) { p.Spec.Containers[0].Resources.Limits = limit("4Mi") }, func(c *Candidate) { c.Ephemeral = 5 << 20 },
			"Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "},
		{"container", func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Limits = limit("4Mi")
			p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "other", Resources: v1.ResourceRequirements{Limits: limit("100Mi")}})
		}, func(c *Candidate) {
			c.Ephemeral, c.Containers = 6<<20, []ContainerUse{{Name: "main", Layer: i(3 << 20), Log: i(2 << 20)}}
		}, `Container main exceeded its local ephemeral storage limit "4Mi". `},
		{"no limit", nil, func(c *Candidate) { c.Ephemeral = 1 << 40 }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			one := candidate("p", 1, c.change)
			c.use(one)
			b := &board{available: gib / 2, disk: 5 * gib, pods: []*Candidate{one}}
			m := b.manager(t, Flags{})
			if got := m.Check(t.Context()); got != (c.want != "") || got && (b.ended[0].Message != c.want || b.ended[0].Disruption != "") {
				t.Errorf("%+v, want %q", b.ended, c.want)
			}
			if limited := c.change != nil; (b.counted > 0) != limited {
				t.Errorf("counted %d times", b.counted)
			}
			if len(m.Conditions()) > 0 {
				t.Errorf("the node isn't short: %v", m.Conditions())
			}
		})
	}
}

func TestGate(t *testing.T) {
	b := &board{available: 1 << 20, disk: 5 * gib}
	m := b.manager(t, Flags{Hard: "memory.available<100Mi,nodefs.available<10%"})
	plain, tolerant := candidate("p", 1, nil).Pod, candidate("p", 1, func(p *v1.Pod) {
		p.Spec.Tolerations = []v1.Toleration{{Key: v1.TaintNodeMemoryPressure, Operator: v1.TolerationOpExists}}
	}).Pod
	try := func(p *v1.Pod, static bool, qos v1.PodQOSClass, want string) {
		t.Helper()
		if reason, message := m.Gate(p, static, qos); message != want || (reason == "Evicted") != (want != "") {
			t.Errorf("%q %q, want %q", reason, message, want)
		}
	}
	try(plain, false, v1.PodQOSBestEffort, "")
	m.Check(t.Context())
	try(plain, false, v1.PodQOSBestEffort, "The node had condition: [MemoryPressure]. ")
	try(plain, false, v1.PodQOSBurstable, "")
	try(plain, true, v1.PodQOSBestEffort, "")
	try(tolerant, false, v1.PodQOSBestEffort, "")
	b.disk = 1
	m.Check(t.Context())
	try(tolerant, false, v1.PodQOSGuaranteed, "The node had condition: [MemoryPressure DiskPressure]. ")
}

func TestFlags(t *testing.T) {
	got, err := Flags{Hard: "memory.available<100Mi, nodefs.available<10%,pid.available<0", Soft: "imagefs.available<20.5%", SoftGrace: "imagefs.available=90s", MinReclaim: "memory.available=5Mi"}.Parse()
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, th := range got {
		text = append(text, fmt.Sprintf("%s<%s %s +%s", th.Signal, th.Value, th.Grace, th.Reclaim))
	}
	if want := []string{"memory.available<100Mi 0s +5Mi", "nodefs.available<10% 0s +0%", "imagefs.available<20.5% 1m30s +0%"}; !slices.Equal(text, want) {
		t.Errorf("%q, want %q", text, want)
	}
	if _, err := (Flags{Hard: DefaultHard(512 << 20)}).Parse(); err != nil {
		t.Error(err)
	}
	for word, f := range map[string]Flags{
		"--eviction-hard":              {Hard: "memory.available=100Mi"},
		"unknown signal":               {Hard: "memory.free<1"},
		"allocatableMemory":            {Hard: "allocatableMemory.available<1"},
		"no amount":                    {Hard: "memory.available<-5"},
		"percentage":                   {Hard: "memory.available<101%"},
		"twice":                        {Hard: "memory.available<1,memory.available<2"},
		"grace period must be":         {Soft: "memory.available<1Gi"},
		"no positive duration":         {Soft: "memory.available<1Gi", SoftGrace: "memory.available=0s"},
		"--eviction-minimum-reclaim":   {MinReclaim: "memory.available=x"},
		"--eviction-soft-grace-period": {SoftGrace: "memory.available"},
	} {
		if _, err := f.Parse(); !errors.Is(err, ErrThreshold) || !strings.Contains(err.Error(), word) {
			t.Errorf("%+v: %v, want %q in it", f, err, word)
		}
	}
}

func FuzzFlags(f *testing.F) {
	f.Add("memory.available<100Mi,nodefs.available<10%", "memory.available=1m", "nodefs.available=1e99")
	f.Fuzz(func(t *testing.T, thresholds, graces, reclaim string) {
		all, err := Flags{Hard: thresholds, MinReclaim: reclaim}.Parse()
		if err == nil {
			met(all, observations{MemoryAvailable: {available: 1, capacity: 2}, NodeFsAvailable: {}}, true)
		}
		_, _ = Flags{Soft: thresholds, SoftGrace: graces}.Parse()
	})
}
