package pods

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
)

// drawer is who prepares claims; edgelet/claims has tests with a driver.
type drawer struct {
	mu       sync.Mutex
	prepared map[string]bool
	freshly  []bool
	err      error
	hangs    string // a pod's UID
	blocked  error
}

func (d *drawer) Prepare(ctx context.Context, pod *v1.Pod, fresh bool) error {
	d.mu.Lock()
	err, hangs := d.err, d.hangs == string(pod.UID)
	d.freshly = append(d.freshly, fresh)
	if err == nil && !hangs {
		d.prepared[string(pod.UID)] = true
	}
	d.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (d *drawer) Unprepare(_ context.Context, uid string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		delete(d.prepared, uid)
	}
	return d.err
}

func (d *drawer) Uses(uid string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.prepared[uid]
}

func (d *drawer) CDI(pod *v1.Pod, _ *v1.Container) ([]string, error) {
	if !d.Uses(string(pod.UID)) {
		return nil, errors.New("not prepared")
	}
	return []string{"example.org/x=" + *pod.Status.ResourceClaimStatuses[0].ResourceClaimName}, nil
}

func (d *drawer) Health(pod *v1.Pod, _ *v1.Container) []v1.ResourceStatus {
	if !d.Uses(string(pod.UID)) {
		return nil
	}
	return []v1.ResourceStatus{{Name: "claim:c"}}
}

func (d *drawer) Blocked(*v1.Pod) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.blocked
}

func (d *drawer) Pods() (uids []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for uid := range d.prepared {
		uids = append(uids, uid)
	}
	return uids
}

func (d *drawer) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// claiming is a pod with a claim that was made for it.
func claiming(name string, options ...podOption) *v1.Pod {
	template, made := "t", name+"-made"
	p := testPod(name, options...)
	p.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "c", ResourceClaimTemplateName: &template}}
	p.Spec.Containers[0].Resources.Claims = []v1.ResourceClaim{{Name: "c"}}
	p.Status.ResourceClaimStatuses = []v1.PodResourceClaimStatus{{Name: "c", ResourceClaimName: &made}}
	return p
}

func TestClaimsOfAPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		missing := errors.New("prepare dynamic resources: DRA driver x is not registered")
		d := &drawer{prepared: map[string]bool{}, err: missing}
		b.more = func(c *Config) { c.Claims = d }
		b.boot()
		b.store.put(claiming("p"))
		b.settle(time.Minute)
		s := b.store.status("uid-p")
		if w := s.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "ContainerCreating" || w.Message != "Failed to prepare dynamic resources: "+missing.Error() {
			t.Errorf("%+v", s.ContainerStatuses[0].State)
		}
		if got := b.store.reasons("uid-p"); !strings.Contains(got, "FailedPrepareDynamicResources") {
			t.Errorf("events: %s", got)
		}
		if n, _ := b.rt.Count(); n != 0 {
			t.Errorf("%d sandboxes", n)
		}
		// It comes, and the pod waits no longer.
		d.fail(nil)
		b.m.ClaimsChanged()
		b.settle(time.Millisecond)
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning || len(s.ContainerStatuses[0].AllocatedResourcesStatus) != 1 {
			t.Fatalf("%+v", s)
		}
		if c := b.rt.Config("main"); len(c.CDIDevices) != 1 || c.CDIDevices[0].Name != "example.org/x=p-made" {
			t.Errorf("%v", c.CDIDevices)
		}
		if got, err := b.m.Pod("default", "p", ""); err != nil || len(got.Status.ResourceClaimStatuses) != 1 || got.Status.Phase != v1.PodRunning {
			t.Errorf("the node shows %+v, %v", got, err)
		}
		// A container restarts: nothing is looked at anew.
		d.mu.Lock()
		d.freshly = nil
		d.mu.Unlock()
		b.rt.Kill("uid-p", "main", 1)
		b.settle(time.Minute)
		if s := b.store.status("uid-p"); s.ContainerStatuses[0].RestartCount != 1 || !slices.Equal(d.freshly, []bool{false}) {
			t.Errorf("restarts %d, asked %v", s.ContainerStatuses[0].RestartCount, d.freshly)
		}
		b.store.put(deleted(claiming("p"), 1))
		d.fail(missing)
		b.settle(time.Minute)
		if b.store.gone("uid-p") || !b.store.said("error killing pod: "+missing.Error()) {
			t.Error("a pod is gone whose claims are prepared, or nobody says why it isn't")
		}
		// Another one of its name says why it waits.
		again := claiming("p")
		again.UID = "uid-again"
		d.blocked = errors.New("prepare dynamic resources: old ResourceClaim")
		b.store.put(again)
		b.settle(time.Second)
		if got := b.store.reasons("uid-again"); got != "FailedPrepareDynamicResources" || !b.store.said("Failed to prepare dynamic resources: prepare dynamic resources: old ResourceClaim") {
			t.Errorf("events: %s", got)
		}
		d.fail(nil)
		b.m.ClaimsChanged()
		b.settle(time.Second)
		if !b.store.gone("uid-p") {
			t.Error("the pod isn't gone")
		}
		if s := b.store.status("uid-again"); s.Phase != v1.PodRunning {
			t.Errorf("the pod that waited is %s", s.Phase)
		}

		// One that ends says so when its claims are given back, not before.
		b.rt.Plan("main", planT{RunFor: 10 * time.Second})
		b.store.put(claiming("q", restart(v1.RestartPolicyNever)))
		b.settle(5 * time.Second)
		d.fail(missing)
		b.settle(time.Minute)
		if s := b.store.status("uid-q"); s.Phase != v1.PodRunning {
			t.Errorf("it is %s with its claims prepared", s.Phase)
		}
		d.fail(nil)
		b.m.ClaimsChanged()
		b.settle(time.Second)
		if s := b.store.status("uid-q"); s.Phase != v1.PodSucceeded || d.Uses("uid-q") {
			t.Errorf("it is %s", s.Phase)
		}

		// What vanished while no agent was here is given back, too.
		b.stop()
		d.prepared["uid-lost"] = true
		b.boot()
		b.settle(2 * time.Minute)
		if d.Uses("uid-lost") {
			t.Error("a pod that is no more has claims")
		}
		b.stop()
	})
}

func TestADriverThatHangsKeepsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		d := &drawer{prepared: map[string]bool{}, hangs: "uid-hangs"}
		b.more = func(c *Config) { c.Claims, c.Parallel = d, 1 }
		b.boot()
		b.store.put(claiming("hangs"))
		b.settle(time.Second)
		b.store.put(testPod("plain"))
		b.store.put(claiming("other"))
		b.settle(time.Second)
		for _, name := range []string{"plain", "other"} {
			if s := b.store.status("uid-" + name); s.Phase != v1.PodRunning {
				t.Errorf("%s is %s", name, s.Phase)
			}
		}
		// And the pod itself may be deleted meanwhile.
		b.store.put(deleted(claiming("hangs"), 1))
		b.settle(5 * time.Second)
		if !b.store.gone("uid-hangs") {
			t.Error("a pod that waits for a driver can't be deleted")
		}
		b.stop()
	})
}

func TestAPodWithClaimsWhereNoDriverCanBe(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(claiming("p"))
		b.settle(time.Second)
		if s := b.store.status("uid-p"); s.Phase != v1.PodFailed || s.Message != "Pod was rejected: "+noClaims {
			t.Errorf("%s %s", s.Phase, s.Message)
		}
	})
}
