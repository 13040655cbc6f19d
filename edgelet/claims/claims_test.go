package claims_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-edge/coracle/edgelet/claims"
	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/state"
	"github.com/coracle-edge/coracle/test/dradriver"
)

const driverName = "test.example.com"

// machine is a node: what the control plane sent, a state file, and an agent.
type machine struct {
	*claims.Manager
	t       *testing.T
	dir     string
	api     *fake.Clientset
	store   *state.Store
	config  claims.Config // of the next agent
	changes chan struct{}
	healths chan []string
	end     func()

	mu      sync.Mutex
	objects map[string][]byte
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, dir: t.TempDir(), api: fake.NewClientset(), objects: map[string][]byte{}, changes: make(chan struct{}, 1000), healths: make(chan []string, 1000)}
	m.config = claims.Config{Boot: "b1", Objects: m, WipingDelay: time.Hour, CallTimeout: 30 * time.Second}
	m.start()
	t.Cleanup(func() { m.stop() })
	return m
}

// start is a new agent, which knows what is on the disk only.
func (m *machine) start() {
	m.t.Helper()
	var err error
	if m.store, err = state.Open(filepath.Join(m.dir, "state.db"), state.Options{FlushDelay: time.Hour}); err != nil {
		m.t.Fatal(err)
	}
	c := m.config
	c.Store = m.store
	c.Changed = func() { m.changes <- struct{}{} }
	c.HealthChanged = func(pods []string) { m.healths <- pods }
	if m.Manager, err = claims.New(c); err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	watcher := pluginwatch.New(pluginwatch.Config{Dir: filepath.Join(m.dir, "plugins_registry"), Handlers: map[string]pluginwatch.Handler{pluginwatch.TypeDRA: m.Manager}})
	for _, run := range []func(context.Context) error{m.Manager.Run, watcher.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				m.t.Error(err)
			}
		})
	}
	m.end = func() {
		cancel()
		wg.Wait()
	}
}

// stop ends the agent; what it was to write later is written then.
func (m *machine) stop() {
	m.end()
	if err := m.store.Close(); err != nil {
		m.t.Error(err)
	}
}

func (m *machine) Object(kind, namespace, name string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	raw, found := m.objects[kind+"/"+namespace+"/"+name]
	return raw, found, nil
}

// driver starts one and waits until it can be used.
func (m *machine) driver(name string, change ...func(*dradriver.Driver)) *dradriver.Driver {
	m.t.Helper()
	d := &dradriver.Driver{Name: name, Node: "board", Client: m.api, KubeletDir: m.dir, CDIDir: filepath.Join(m.dir, "cdi"), Log: m.t.Logf}
	for _, c := range change {
		c(d)
	}
	if err := d.Start(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(d.Stop)
	m.eventually("the driver's registration", d.Registered)
	return d
}

func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	for began := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			m.t.Fatalf("%s: not in 30 s", what)
		}
	}
}

// result is a device of an allocation.
func result(request, driver, device string) resourceapi.DeviceRequestAllocationResult {
	return resourceapi.DeviceRequestAllocationResult{Request: request, Driver: driver, Pool: "board", Device: device}
}

// claim makes a claim as the scheduler leaves it.
func (m *machine) claim(name string, users []*v1.Pod, results ...resourceapi.DeviceRequestAllocationResult) *resourceapi.ResourceClaim {
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)}}
	if len(results) > 0 {
		c.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: results}}
	}
	for _, p := range users {
		c.Status.ReservedFor = append(c.Status.ReservedFor, resourceapi.ResourceClaimConsumerReference{Resource: "pods", Name: p.Name, UID: p.UID})
	}
	m.put(c)
	return c
}

func (m *machine) put(c *resourceapi.ResourceClaim) {
	m.t.Helper()
	raw, err := c.Marshal()
	if err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	m.objects["ResourceClaim/ns/"+c.Name] = kubeobj.Join(kubeobj.Header{APIVersion: "resource.k8s.io/v1", Kind: "ResourceClaim"}, raw)
	m.mu.Unlock()
	_ = m.api.Tracker().Delete(resourceapi.SchemeGroupVersion.WithResource("resourceclaims"), "ns", c.Name)
	if err := m.api.Tracker().Add(c.DeepCopy()); err != nil {
		m.t.Fatal(err)
	}
}

// pod has one container that uses all claims, each by the name that the pod has it by.
func pod(name string, claimNames ...string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("pod-" + name)}}
	c := v1.Container{Name: "main"}
	for _, n := range claimNames {
		p.Spec.ResourceClaims = append(p.Spec.ResourceClaims, v1.PodResourceClaim{Name: n, ResourceClaimName: &n})
		c.Resources.Claims = append(c.Resources.Claims, v1.ResourceClaim{Name: n})
	}
	p.Spec.Containers = []v1.Container{c}
	return p
}

func (m *machine) prepare(p *v1.Pod) {
	m.t.Helper()
	if err := m.Prepare(m.t.Context(), p, true); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) unprepare(p *v1.Pod) {
	m.t.Helper()
	if err := m.Unprepare(m.t.Context(), string(p.UID)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) asked(d *dradriver.Driver, want ...string) {
	m.t.Helper()
	got := d.Asked()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		m.t.Errorf("the driver was asked %q, want %q", got, want)
	}
}

func (m *machine) cdi(p *v1.Pod, container int, want ...string) {
	m.t.Helper()
	got, err := m.CDI(p, &p.Spec.Containers[container])
	if err != nil || !slices.Equal(got, want) {
		m.t.Errorf("container %s has %q, %v, want %q", p.Spec.Containers[container].Name, got, err, want)
	}
}

// A claim has two requests and devices of two drivers; containers have those of the
// requests that they name, by the driver's name for the subrequest or without it.
func TestContainersHaveTheDevicesOfTheirRequests(t *testing.T) {
	m := newMachine(t)
	a, b := m.driver("a.example"), m.driver("b.example")
	p := pod("p", "c")
	p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "second"}, v1.Container{Name: "none"})
	p.Spec.Containers[1].Resources.Claims = []v1.ResourceClaim{{Name: "c", Request: "gpu"}}
	m.claim("c", []*v1.Pod{p}, result("gpu/large", "a.example", "d1"), result("nic", "a.example", "d2"), result("nic", "b.example", "d3"))
	m.prepare(p)
	m.prepare(p)
	m.asked(a, "prepare c")
	m.asked(b, "prepare c")
	d1, d2, d3 := "a.example/device=uid-c-d1", "a.example/device=uid-c-d2", "b.example/device=uid-c-d3"
	m.cdi(p, 0, d1, d2, d3)
	m.cdi(p, 1, d1)
	m.cdi(p, 2)
	both := []claims.Held{{Namespace: "ns", Name: "c", Devices: []claims.HeldDevice{{Driver: "a.example", Pool: "board", Device: "d1", CDI: []string{d1}},
		{Driver: "a.example", Pool: "board", Device: "d2", CDI: []string{d2}}, {Driver: "b.example", Pool: "board", Device: "d3", CDI: []string{d3}}}}}
	for i, want := range [][]claims.Held{both, both, nil} {
		if got := m.Holds(p, &p.Spec.Containers[i]); !reflect.DeepEqual(got, want) {
			t.Errorf("container %d holds %+v, want %+v", i, got, want)
		}
	}
	if !m.Uses("pod-p") || !slices.Equal(m.Pods(), []string{"pod-p"}) {
		t.Errorf("pods with claims: %q", m.Pods())
	}
	m.unprepare(p)
	m.unprepare(p)
	m.asked(a, "unprepare c")
	m.asked(b, "unprepare c")
	if m.Uses("pod-p") {
		t.Error("it still has claims")
	}
	if records, err := m.store.ClaimRecords(); err != nil || len(records) > 3 {
		t.Errorf("%q %v", slices.Collect(maps.Keys(records)), err)
	}
}

// Claims that were made of templates are found by the pod's status, and one that
// wasn't needed is none; extended resources have a claim of their own.
func TestClaimsByStatus(t *testing.T) {
	m := newMachine(t)
	d := m.driver(driverName)
	p := pod("p")
	template, made, ext := "t", "p-made", "p-ext"
	p.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "a", ResourceClaimTemplateName: &template}, {Name: "b", ResourceClaimTemplateName: &template}}
	p.Spec.Containers[0].Resources.Claims = []v1.ResourceClaim{{Name: "a"}, {Name: "b"}}
	if err := m.Prepare(t.Context(), p, true); err == nil || !strings.Contains(err.Error(), `pod "ns/p": ResourceClaim not created yet`) {
		t.Error(err)
	}
	p.Status.ResourceClaimStatuses = []v1.PodResourceClaimStatus{{Name: "a", ResourceClaimName: &made}, {Name: "b"}}
	p.Status.ExtendedResourceClaimStatus = &v1.PodExtendedResourceClaimStatus{ResourceClaimName: ext,
		RequestMappings: []v1.ContainerExtendedResourceRequest{{ContainerName: "main", ResourceName: "example.com/gpu", RequestName: "container-0-request-0"}}}
	p.Spec.Containers[0].Resources.Requests = v1.ResourceList{"example.com/gpu": *quantity(1)}
	c := m.claim(made, []*v1.Pod{p}, result("r", driverName, "d1"))
	m.claim(ext, []*v1.Pod{p}, result("container-0-request-0", driverName, "d2"), result("container-1-request-0", driverName, "d3"))
	if err := m.Prepare(t.Context(), p, true); err == nil || !strings.Contains(err.Error(), "ResourceClaim ns/p-made was not created for Pod ns/p (Pod is not owner)") {
		t.Error(err)
	}
	c.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(p, v1.SchemeGroupVersion.WithKind("Pod"))}
	m.put(c)
	m.prepare(p)
	m.asked(d, "prepare p-made", "prepare p-ext")
	m.cdi(p, 0, driverName+"/device=uid-p-made-d1", driverName+"/device=uid-p-ext-d2")
	m.unprepare(p)
	m.asked(d, "unprepare p-made", "unprepare p-ext")
}

// A pod waits for what isn't as it must be, in a kubelet's words, and leaves nothing
// that a driver which may never come would have to undo.
func TestWhyAPodWaits(t *testing.T) {
	m := newMachine(t)
	p := pod("p", "c")
	other := pod("other")
	for _, c := range []struct {
		make func()
		want string
	}{
		{func() {}, `prepare dynamic resources: fetch ResourceClaim c: resourceclaims.resource.k8s.io "c" not found`},
		{func() { m.claim("c", []*v1.Pod{other}, result("r", driverName, "d")) }, "pod p (pod-p) is not allowed to use ResourceClaim c (uid-c)"},
		{func() { m.claim("c", []*v1.Pod{p}) }, "ResourceClaim c: not allocated"},
		{func() { m.claim("c", []*v1.Pod{other, p}, result("r", driverName, "d")) }, "DRA driver test.example.com is not registered"},
	} {
		c.make()
		err := m.Prepare(t.Context(), p, true)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	if m.Uses("pod-p") {
		t.Error("something was noted")
	}
	d := m.driver(driverName)
	d.Fail("prepare", errors.New("no power"))
	if err := m.Prepare(t.Context(), p, true); err == nil || !strings.Contains(err.Error(), "NodePrepareResources failed for ResourceClaim c: no power") {
		t.Error(err)
	}
	if !m.Uses("pod-p") {
		t.Error("a driver that failed may have done something")
	}
	if _, err := m.CDI(p, &p.Spec.Containers[0]); err == nil {
		t.Error("devices that aren't prepared")
	}
	d.Fail("prepare", nil)
	m.prepare(p)
	d.Fail("unprepare", errors.New("busy"))
	if err := m.Unprepare(t.Context(), "pod-p"); err == nil || !strings.Contains(err.Error(), "unprepare dynamic resources: NodeUnprepareResources failed for ResourceClaim c: busy") {
		t.Error(err)
	}
	d.Fail("unprepare", nil)
	m.unprepare(p)

	// A claim of the same name, while a pod of the old one ends.
	m.prepare(p)
	anew := m.claim("c", []*v1.Pod{other}, result("r", driverName, "d"))
	anew.UID = "another"
	m.put(anew)
	q := pod("other", "c")
	if err := m.Prepare(t.Context(), q, true); err == nil || !strings.Contains(err.Error(), "old ResourceClaim with same name c and different UID uid-c still exists (previous pod force-deleted?!)") {
		t.Error(err)
	}
	if err := m.Blocked(q); err == nil || !strings.Contains(err.Error(), "prepare dynamic resources: old ResourceClaim with same name c and different UID uid-c still exists") {
		t.Error(err)
	}
	m.unprepare(p)
	if err := m.Blocked(q); err != nil {
		t.Error(err)
	}
	m.prepare(q)
}

// Two pods use a claim: it is prepared once and undone with the last of them.
func TestASharedClaim(t *testing.T) {
	m := newMachine(t)
	d := m.driver(driverName)
	p, q := pod("p", "c"), pod("q", "c", "own")
	m.claim("c", []*v1.Pod{p, q}, result("r", driverName, "d"))
	m.claim("own", []*v1.Pod{q}, result("r", driverName, "e"))
	d.Hang(true)
	ended := make(chan error, 2)
	go func() { ended <- m.Prepare(t.Context(), p, true) }()
	m.eventually("the call", func() bool { return slices.Equal(d.Asked(), []string{"prepare c"}) })
	go func() { ended <- m.Prepare(t.Context(), q, true) }() // and waits for the other
	time.Sleep(50 * time.Millisecond)
	d.Hang(false)
	for range 2 {
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	m.asked(d, "prepare own")
	m.unprepare(p)
	m.asked(d)
	m.cdi(q, 0, driverName+"/device=uid-c-d", driverName+"/device=uid-own-e")
	m.stop()
	m.start()
	m.eventually("the driver again", func() bool { return m.Unprepare(t.Context(), "pod-q") == nil })
	m.asked(d, "unprepare c", "unprepare own")
}

// Allocated anew to other devices while a pod that was deleted by force still ends.
func TestAClaimThatWasAllocatedAnew(t *testing.T) {
	m := newMachine(t)
	d := m.driver(driverName)
	p, q := pod("p", "c"), pod("q", "c")
	m.claim("c", []*v1.Pod{p}, result("r", driverName, "d"))
	m.prepare(p)
	m.claim("c", []*v1.Pod{q}, result("r", driverName, "e"))
	if err := m.Prepare(t.Context(), q, true); err == nil || !strings.Contains(err.Error(), "allocated anew") {
		t.Error(err)
	}
	m.unprepare(p)
	m.prepare(q)
	m.asked(d, "prepare c", "unprepare c", "prepare c")
	m.cdi(q, 0, driverName+"/device=uid-c-e")
}

// The agent dies: a claim that is prepared in this boot is so, without its driver;
// after a reboot the driver is asked again; what was begun is undone.
func TestTheAgentDies(t *testing.T) {
	m := newMachine(t)
	d := m.driver(driverName)
	p, q := pod("p", "c"), pod("q", "e")
	m.claim("c", []*v1.Pod{p}, result("r", driverName, "d"))
	m.claim("e", []*v1.Pod{q}, result("r", driverName, "f"))
	m.prepare(p)
	m.asked(d, "prepare c")
	// It dies while the driver prepares another pod's.
	d.Hang(true)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Prepare(ctx, q, true) }()
	m.eventually("the call", func() bool { return slices.Equal(d.Asked(), []string{"prepare e"}) })
	// What a power cut would leave.
	raw, err := os.ReadFile(filepath.Join(m.dir, "state.db"))
	if err == nil {
		err = os.WriteFile(filepath.Join(m.dir, "copy.db"), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	left, err := state.Open(filepath.Join(m.dir, "copy.db"), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if records, err := left.ClaimRecords(); err != nil || records["uid-e"] == nil {
		t.Errorf("nothing durable of what a driver is about to do: %q %v", slices.Collect(maps.Keys(records)), err)
	}
	if err := left.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("prepared without an answer")
	}
	d.Hang(false)
	d.Stop()
	m.stop()
	m.start()
	m.cdi(p, 0, driverName+"/device=uid-c-d")
	m.prepare(p) // it keeps what it has
	if !slices.Equal(m.Pods(), []string{"pod-p", "pod-q"}) {
		t.Errorf("pods with claims: %q", m.Pods())
	}
	if err := m.Unprepare(t.Context(), "pod-q"); err == nil || !strings.Contains(err.Error(), "DRA driver test.example.com is not registered") {
		t.Error(err)
	}
	m.stop()
	m.config.Boot = "b2"
	m.start()
	if err := m.Prepare(t.Context(), p, false); !errors.Is(err, claims.ErrNotRegistered) {
		t.Error(err)
	}
	d = m.driver(driverName)
	m.prepare(p)
	m.asked(d, "prepare c")
	m.unprepare(q)
	m.asked(d, "unprepare e")
}

// Writes of a pod's start: one is waited for, and its end waits for none.
func TestAStartIsOneWrite(t *testing.T) {
	m := newMachine(t)
	m.driver(driverName)
	p := pod("p", "a", "b", "c")
	for _, n := range []string{"a", "b", "c"} {
		m.claim(n, []*v1.Pod{p}, result("r", driverName, n))
	}
	if err := m.store.Sync(); err != nil {
		t.Fatal(err)
	}
	before := m.store.Written().Commits
	m.prepare(p)
	if err := m.store.Sync(); err != nil {
		t.Fatal(err)
	}
	if n := m.store.Written().Commits - before; n > 2 {
		t.Errorf("%d writes for a pod with three claims, and what is written with it", n)
	}
	before = m.store.Written().Commits
	m.prepare(p)
	if n := m.store.Written().Commits - before; n > 0 {
		t.Errorf("%d writes although nothing changed", n)
	}
}

// A driver that hangs keeps nobody waiting but its own pods, and those no longer than
// a call may take.
func TestADriverHangs(t *testing.T) {
	m := newMachine(t)
	m.stop()
	m.config.CallTimeout = 200 * time.Millisecond
	m.start()
	hung, well := m.driver("hung.example"), m.driver("well.example")
	p, q, r := pod("p", "c"), pod("q", "e"), pod("r", "c")
	m.claim("c", []*v1.Pod{p, r}, result("r", "hung.example", "d"))
	m.claim("e", []*v1.Pod{q}, result("r", "well.example", "d"))
	hung.Hang(true)
	both := make(chan error, 2)
	for _, p := range []*v1.Pod{p, r} { // they share a claim
		go func() { both <- m.Prepare(t.Context(), p, true) }()
	}
	m.eventually("the call", func() bool { return len(hung.Asked()) > 0 })
	m.prepare(q)
	m.asked(well, "prepare e")
	for range 2 {
		if err := <-both; err == nil || !strings.Contains(err.Error(), "DRA driver hung.example: no answer within 200ms") {
			t.Error(err)
		}
	}
	hung.Hang(false)
	m.prepare(r)
	hung.Hang(true)
	if err := m.Unprepare(t.Context(), "pod-r"); err != nil { // p's is left
		t.Error(err)
	}
	if err := m.Unprepare(t.Context(), "pod-p"); err == nil || !strings.Contains(err.Error(), "no answer within 200ms") {
		t.Error(err)
	}
	m.unprepare(q)
	hung.Hang(false)
	m.unprepare(p)
}
