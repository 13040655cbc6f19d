package affinity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// disk is a Store that outlives managers.
type disk struct {
	records map[string][]byte
	writes  int
	broken  error
}

func (d *disk) AffinityRecords() (map[string][]byte, error) { return maps.Clone(d.records), nil }

func (d *disk) PutAffinityRecord(key string, record []byte) error {
	if d.broken != nil {
		return d.broken
	}
	d.writes++
	if record == nil {
		delete(d.records, key)
	} else {
		d.records[key] = slices.Clone(record)
	}
	return nil
}

// node is a machine with a manager.
type node struct {
	*Manager
	t      *testing.T
	disk   *disk
	told   int // how often everybody was woken
	active map[string]bool
}

func static(change ...func(*Policies)) Policies {
	p := Policies{CPU: CPUStatic, Memory: MemoryNone, Align: AlignNone, Scope: ScopeContainer, ReservedMilli: 1000}
	for _, c := range change {
		c(&p)
	}
	return p
}

// start starts an agent; d is the disk of an earlier one.
func start(t *testing.T, fs fstest.MapFS, p Policies, d *disk) *node {
	t.Helper()
	if d == nil {
		d = &disk{records: map[string][]byte{}}
	}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, disk: d}
	m, err := New(Config{Policies: p, Topology: machine(t, fs), Store: d, MemoryKept: map[string]int64{"memory": 256 << 20},
		Guaranteed: func(p *v1.Pod) bool { return p.Labels["qos"] == "" }, Changed: func() { n.told++ },
		Active: func(uid string) bool { return n.active == nil || n.active[uid] }})
	if err != nil {
		t.Fatal(err)
	}
	n.Manager = m
	return n
}

// pod has containers that ask for so many processors each, such as "main=2
// ~init=1 +sidecar=1".
func pod(name, containers string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	for one := range strings.FieldsSeq(containers) {
		kind := one[0]
		cname, cpu, _ := strings.Cut(strings.TrimLeft(one, "~+"), "=")
		list := v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse("100Mi")}
		c := v1.Container{Name: cname, Resources: v1.ResourceRequirements{Requests: list, Limits: list}}
		switch kind {
		case '+':
			c.RestartPolicy = new(v1.ContainerRestartPolicyAlways)
			fallthrough
		case '~':
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		default:
			p.Spec.Containers = append(p.Spec.Containers, c)
		}
	}
	return p
}

func (n *node) admit(p *v1.Pod) error { return n.Admit(context.Background(), p, none{}) }

type none struct{}

func (none) Hints(*v1.Container) Hints                        { return nil }
func (none) PodHints() Hints                                  { return nil }
func (none) Give(context.Context, *v1.Container, Nodes) error { return nil }

// has checks where containers run.
func (n *node) has(uid, container, cpus string, exclusive bool) {
	n.t.Helper()
	if p := n.Place(uid, container); p.CPUs != cpus || p.Exclusive != exclusive {
		n.t.Errorf("%s/%s runs on %s (its own: %t), want %s (%t)", uid, container, p.CPUs, p.Exclusive, cpus, exclusive)
	}
}

func (n *node) refused(p *v1.Pod, reason, message string) {
	n.t.Helper()
	err := n.admit(p)
	var r *Refusal
	if !errors.As(err, &r) || r.Reason != reason || !strings.Contains(r.Message, message) {
		n.t.Errorf("%s: %v", p.Name, err)
	}
	for _, c := range p.Spec.Containers {
		if cpus, memory := n.Given(p.Name, c.Name); len(cpus)+len(memory) > 0 {
			n.t.Errorf("refused, and %s has %s", c.Name, cpus)
		}
	}
}

func TestProcessorsAreGivenAndKept(t *testing.T) {
	n := start(t, pi4(), static(), nil)
	n.has("any", "x", "0-3", false)
	if err := n.admit(pod("a", "main=2 other=500m")); err != nil {
		t.Fatal(err)
	}
	n.has("a", "main", "1-2", true)
	n.has("a", "other", "0,3", false)
	n.has("any", "x", "0,3", false)
	if n.told != 1 {
		t.Errorf("everybody was woken %d times", n.told)
	}
	if got := n.Allocatable().String(); got != "1-3" {
		t.Error("allocatable:", got)
	}
	n.refused(pod("b", "main=2"), "UnexpectedAdmissionError", "Allocate failed due to not enough cpus available to satisfy request: requested=2, available=1, which is unexpected")
	n.refused(pod("b", "first=1 main=1"), "UnexpectedAdmissionError", "requested=1, available=0")
	n.has("any", "x", "0,3", false)
	burstable := pod("c", "main=1")
	burstable.Labels = map[string]string{"qos": "burstable"}
	whole := pod("d", "main=1")
	whole.Spec.Resources = &v1.ResourceRequirements{Limits: v1.ResourceList{"cpu": resource.MustParse("1")}}
	for _, p := range []*v1.Pod{burstable, whole, pod("e", "main=1500m")} {
		if err := n.admit(p); err != nil {
			t.Error(err)
		}
		n.has(p.Name, "main", "0,3", false)
	}
	// Restarts and reboots change nothing, and write nothing.
	writes := n.disk.writes
	for range 2 {
		n = start(t, pi4(), static(), n.disk)
		n.has("a", "main", "1-2", true)
		n.has("any", "x", "0,3", false)
		if told, err := n.Ensure(pod("a", "main=2 other=500m")); told != "" || err != nil {
			t.Error(told, err)
		}
		if err := n.admit(pod("a", "main=2 other=500m")); err != nil {
			t.Error("asked again:", err)
		}
	}
	if n.disk.writes != writes {
		t.Errorf("%d writes for nothing", n.disk.writes-writes)
	}
	told := n.told
	if err := n.Free("a"); err != nil {
		t.Fatal(err)
	}
	n.has("any", "x", "0-3", false)
	if n.told != told+1 || n.disk.records["a"] != nil {
		t.Errorf("woken %d times, records %q", n.told-told, n.disk.records)
	}
	if err := n.Free("a"); err != nil || n.told != told+1 {
		t.Error("nothing was freed, and everybody is woken")
	}
}

// Init containers' processors are used again, sidecars' are not.
func TestInitContainersAndSidecars(t *testing.T) {
	n := start(t, rk3588(), static(func(p *Policies) { p.Reserved = NewSet(0, 1, 2, 3) }), nil)
	if err := n.admit(pod("a", "~setup=2 +side=1 main=1")); err != nil {
		t.Fatal(err)
	}
	setup, _ := n.Given("a", "setup")
	side, _ := n.Given("a", "side")
	main, _ := n.Given("a", "main")
	if len(side.And(main)) > 0 || len(setup.Union(side).Union(main)) != 2 {
		t.Errorf("setup %s, sidecar %s, main %s", setup, side, main)
	}
	// Large cores only, because the small ones are reserved.
	n.has("any", "x", n.all.Minus(setup).String(), false)
	if err := n.admit(pod("b", "main=2")); err != nil {
		t.Error(err)
	}
}

// Whole cores are given as such, from where the fewest are free.
func TestOptions(t *testing.T) {
	full := func(p *Policies) { p.FullCores = true; p.Reserved = NewSet(0) }
	n := start(t, server(), static(full), nil)
	n.refused(pod("odd", "main=3"), "SMTAlignmentError", "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2")
	n.refused(pod("all", "main=32"), "SMTAlignmentError", "not enough free physical CPUs: available physical CPUs = 30, requested CPUs = 32, CPUs per core = 2")
	if err := n.admit(pod("a", "main=4")); err != nil {
		t.Fatal(err)
	}
	n.has("a", "main", "1-2,17-18", true)

	n = start(t, server(), static(func(p *Policies) { p.Spread = true; p.Reserved = NewSet(0, 16) }), nil)
	if err := n.admit(pod("a", "main=3")); err != nil {
		t.Fatal(err)
	}
	n.has("a", "main", "1-3", true)

	// Also where the threads of a core have numbers side by side.
	n = start(t, laptop(), static(func(p *Policies) { p.Spread = true; p.Reserved = NewSet(4) }), nil)
	if err := n.admit(pod("a", "main=3")); err != nil {
		t.Fatal(err)
	}
	n.has("a", "main", "0,2,5", true)

	// Strictly reserved processors are nobody's, unless there are no others.
	n = start(t, pi4(), static(func(p *Policies) { p.Strict = true }), nil)
	n.has("any", "x", "1-3", false)
	if err := n.admit(pod("a", "main=2")); err != nil {
		t.Fatal(err)
	}
	n.has("any", "x", "3", false)
	if err := n.admit(pod("b", "main=1")); err != nil {
		t.Fatal(err)
	}
	n.has("any", "x", "0", false)
	if err := n.Free("b"); err != nil {
		t.Fatal(err)
	}
	n.has("any", "x", "3", false)
}

// A kubelet would not start. A board that has nobody to drain it does, and says what
// its pods lack.
func TestAMachineThatIsAnother(t *testing.T) {
	n := start(t, rk3588(), static(), nil)
	for _, p := range []*v1.Pod{pod("a", "main=1"), pod("b", "main=2"), pod("c", "main=4")} {
		if err := n.admit(p); err != nil {
			t.Fatal(err)
		}
	}
	a, _ := n.Given("a", "main")
	less := rk3588()
	less["sys/devices/system/cpu/online"] = &fstest.MapFile{Data: []byte("0-4\n")}
	b, _ := n.Given("b", "main")
	c, _ := n.Given("c", "main")
	t.Logf("a %s b %s c %s", a, b, c)
	n = start(t, less, static(), n.disk)
	for _, was := range []struct {
		uid  string
		cpus Set
		n    int
	}{{"a", a, 1}, {"b", b, 2}, {"c", c, 4}} {
		still := was.cpus.Within(NewSet(0, 1, 2, 3, 4))
		if p := n.Place(was.uid, "main"); p.Exclusive != still || still && p.CPUs != was.cpus.String() {
			t.Errorf("%s had %s, and has %v", was.uid, was.cpus, p)
		}
	}
	lacks := 0
	for _, p := range []*v1.Pod{pod("a", "main=1"), pod("b", "main=2"), pod("c", "main=4")} {
		told, err := n.Ensure(p)
		if err != nil {
			t.Error(err)
		}
		if told != "" {
			lacks++
			if !strings.Contains(told, `container "main" was promised`) || !strings.Contains(told, "not enough cpus available") {
				t.Error(told)
			}
			if again, _ := n.Ensure(p); again != "" {
				t.Error("told again:", again)
			}
			if pl := n.Place(p.Name, "main"); pl.Exclusive || pl.CPUs == "" {
				t.Errorf("%s runs on %v", p.Name, pl)
			}
		}
	}
	if lacks == 0 {
		t.Error("five processors for seven")
	}
	// All its processors are back, and all have what they were promised.
	n = start(t, rk3588(), static(), n.disk)
	for _, p := range []*v1.Pod{pod("a", "main=1"), pod("b", "main=2"), pod("c", "main=4")} {
		if told, err := n.Ensure(p); told != "" || err != nil || !n.Exclusive(p.Name) {
			t.Error(p.Name, told, err)
		}
	}
	n.disjoint()
}

// What two records say is one's, and what is reserved now nobody's.
func TestRecordsThatContradict(t *testing.T) {
	d := &disk{records: map[string][]byte{"a": podGiven{"main": {CPUs: NewSet(1)}}.encode(), "b": podGiven{"main": {CPUs: NewSet(1)}, "other": {CPUs: NewSet(3)}}.encode(),
		"c": podGiven{"main": {CPUs: NewSet(2)}}.encode()}}
	n := start(t, pi4(), static(func(p *Policies) { p.Reserved = NewSet(0, 2) }), d)
	n.has("a", "main", "1", true)
	n.has("b", "other", "3", true)
	n.has("b", "main", "0,2", false)
	n.has("c", "main", "0,2", false)
	n.disjoint()
}

// Processors that can't be bound to, or not reserved: pods that need some are
// refused and say why, the others run.
func TestAMachineThatCanNot(t *testing.T) {
	for name, p := range map[string]Policies{
		"--reserved-cpus: 7 is not a subset of online-cpus: 0-3": static(func(p *Policies) { p.Reserved = NewSet(7) }),
		"unable to reserve the required amount of CPUs":          static(func(p *Policies) { p.ReservedMilli = 9000 }),
		"--reserved-memory: the total amount": static(func(p *Policies) {
			p.Memory = MemoryStatic
			p.ReservedMemory = []ReservedMemory{{0, map[string]int64{"memory": 1}}}
		}),
		"a NUMA node 3 that does not exist": static(func(p *Policies) {
			p.Memory = MemoryStatic
			p.ReservedMemory = []ReservedMemory{{3, map[string]int64{"memory": 256 << 20}}}
		}),
	} {
		n := start(t, pi4(), p, nil)
		n.refused(pod("a", "main=1"), "UnexpectedAdmissionError", name)
		if err := n.admit(pod("b", "main=500m")); err != nil && !strings.Contains(name, "memory") && !strings.Contains(name, "NUMA") {
			t.Errorf("%s: %v", name, err)
		}
		n.has("b", "main", "0-3", false)
	}
}

// Who was bound is unbound when the policy goes, also if the agent dies meanwhile,
// and then nothing is left.
func TestThePolicyGoes(t *testing.T) {
	off := Policies{CPU: CPUNone, Memory: MemoryNone, Align: AlignNone, Scope: ScopeContainer}
	n := start(t, pi4(), static(), nil)
	if err := n.admit(pod("a", "main=2")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		n = start(t, pi4(), off, n.disk)
		n.has("a", "main", "0-3", false)
		n.has("any", "x", "0-3", false)
	}
	if told, err := n.Ensure(pod("a", "main=2")); told != "" || err != nil {
		t.Error(told, err)
	}
	n.Settled()
	if len(n.disk.records) > 0 {
		t.Errorf("left: %q", n.disk.records)
	}
	if m, err := New(Config{Policies: off, Store: n.disk, Guaranteed: n.cfg.Guaranteed}); m != nil || err != nil {
		t.Error("there is something to manage still:", err)
	}
	// The policy comes: who runs gets what it asked for.
	n = start(t, pi4(), static(), n.disk)
	if told, err := n.Ensure(pod("a", "main=2")); told != "" || err != nil {
		t.Error(told, err)
	}
	n.has("a", "main", "1-2", true)
	// Another manager goes on without it.
	memory := off
	memory.Memory = MemoryStatic
	n = start(t, pi4(), memory, n.disk)
	n.has("a", "main", "0-3", false)
	n.Settled()
	n = start(t, pi4(), memory, n.disk)
	n.has("a", "main", "", false)
}

func TestADiskThatIsFull(t *testing.T) {
	n := start(t, pi4(), static(), nil)
	n.disk.broken = errors.New("no space left on device")
	n.refused(pod("a", "main=1"), "UnexpectedAdmissionError", "no space left on device")
	n.has("any", "x", "0-3", false)
	n.disk.broken = nil
	n.disk.records["lost"] = podGiven{"main": {CPUs: NewSet(1, 2, 3)}}.encode()
	n.disk.records["bad"] = []byte("{")
	n = start(t, pi4(), static(), n.disk)
	n.active = map[string]bool{"a": true}
	if err := n.admit(pod("a", "main=2")); err != nil {
		t.Error("what a pod that is gone held:", err)
	}
}

func TestResizesThatCanNotBe(t *testing.T) {
	n := start(t, pi4(), static(func(p *Policies) { p.Memory = MemoryStatic }), nil)
	memory := pod("a", "main=1")
	memory.Spec.Containers[0].Resources.Requests = v1.ResourceList{"cpu": resource.MustParse("1"), "memory": resource.MustParse("1Gi")}
	for _, c := range []struct {
		to   *v1.Pod
		want string
	}{
		{pod("a", "main=2"), `Resize is infeasible for Guaranteed Pods alongside CPU Manager policy "static"`},
		{memory, `Resize is infeasible for Guaranteed Pods alongside Memory Manager policy "Static"`},
		{pod("a", "main=1"), ""},
	} {
		if got := n.Infeasible(pod("a", "main=1"), c.to); got != c.want {
			t.Error(got)
		}
	}
	other := pod("a", "main=2")
	other.Labels = map[string]string{"qos": "burstable"}
	if got := n.Infeasible(pod("a", "main=1"), other); got != "" {
		t.Error(got)
	}
}

// disjoint checks what must always be so.
func (n *node) disjoint() {
	n.t.Helper()
	taken := Set{}
	for uid, its := range n.pods {
		var all Set
		for name, g := range its {
			if !g.CPUs.Within(n.all.Minus(n.reserved)) {
				n.t.Fatalf("%s/%s has %s, reserved are %s", uid, name, g.CPUs, n.reserved)
			}
			all = all.Union(g.CPUs)
		}
		if both := taken.And(all); len(both) > 0 {
			n.t.Fatalf("%s are given twice", both)
		}
		taken = taken.Union(all)
	}
	shared := n.Shared()
	if len(shared) == 0 || len(shared.And(taken)) > 0 {
		n.t.Fatalf("shared are %s, given %s", shared, taken)
	}
}

// Whatever comes, goes, and is restarted in between: no processor is two pods', and
// some are everybody's.
func TestProcessorsAreNeverGivenTwice(t *testing.T) {
	machines := map[string]fstest.MapFS{"pi4": pi4(), "rk3588": rk3588(), "server": server(), "laptop": laptop()}
	for name, fs := range machines {
		for seed := range uint64(12) {
			r := rand.New(rand.NewPCG(seed, 7))
			p := static(func(p *Policies) {
				p.ReservedMilli = int64(1 + r.IntN(2000))
				p.FullCores, p.Strict = r.IntN(3) == 0, r.IntN(3) == 0
				p.Spread = !p.FullCores && r.IntN(3) == 0
				p.Align = []string{AlignNone, AlignBestEffort, AlignRestricted, AlignSingleNode}[r.IntN(4)]
				p.Scope = []string{ScopeContainer, ScopePod}[r.IntN(2)]
			})
			n := start(t, fs, p, nil)
			live := map[string]*v1.Pod{}
			for i := range 120 {
				switch r.IntN(6) {
				case 0:
					n = start(t, fs, p, n.disk)
				case 1, 2:
					for uid := range live {
						if err := n.Free(uid); err != nil {
							t.Fatal(err)
						}
						delete(live, uid)
						break
					}
				default:
					uid := fmt.Sprint("p", i)
					spec := fmt.Sprintf("main=%d", 1+r.IntN(4))
					if r.IntN(3) == 0 {
						spec += fmt.Sprintf(" ~init=%d +side=%d other=%d", r.IntN(4), r.IntN(2), r.IntN(3))
					}
					before := n.Shared()
					if err := n.admit(pod(uid, spec)); err == nil {
						live[uid] = pod(uid, spec)
					} else if n.Shared().String() != before.String() {
						t.Fatalf("%s: refused, and kept something: %v", name, err)
					}
				}
				n.disjoint()
				for uid, p := range live {
					for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
						if cpus, _ := n.Given(uid, c.Name); int64(len(cpus)) != c.Resources.Requests.Cpu().Value() {
							t.Fatalf("%s: %s/%s asked for %s and has %s", name, uid, c.Name, c.Resources.Requests.Cpu(), cpus)
						}
					}
				}
			}
		}
	}
}
