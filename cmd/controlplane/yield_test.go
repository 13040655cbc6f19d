package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// scene is what a doubt sees, second by second.
type scene struct {
	d     *doubt
	at    time.Time
	reach fleethub.Reach
}

func newScene() *scene {
	s := &scene{at: time.Unix(1e9, 0)}
	s.d = &doubt{now: func() time.Time { return s.at }, reach: func() fleethub.Reach { return s.reach }, logger: slog.New(slog.DiscardHandler)}
	s.reach = fleethub.Reach{Sessions: 3, Heard: s.at, Keepalive: 20 * time.Second, Broker: true}
	return s
}

// look after so long, with what changed meanwhile.
func (s *scene) look(t *testing.T, after time.Duration, change func(), hold, yields bool) {
	t.Helper()
	s.at = s.at.Add(after)
	if change != nil {
		change()
	}
	h, err := s.d.look()
	if yielded := errors.Is(err, errCutOff); h != hold || yielded != yields {
		t.Errorf("at %v: holds %v, yields %v; want %v, %v", s.at.Unix(), h, yielded, hold, yields)
	}
}

func (s *scene) knock() { s.d.knocked.Store(s.at.UnixNano()) }
func (s *scene) heard() { s.reach.Heard = s.at }

func TestWhoIsCutOffYields(t *testing.T) {
	for name, play := range map[string]func(t *testing.T, s *scene){
		"all connections break and nodes go elsewhere": func(t *testing.T, s *scene) {
			s.look(t, 0, nil, false, false)
			s.look(t, time.Second, func() { s.reach.Sessions = 0 }, true, false)
			s.look(t, time.Second, s.knock, true, true)
		},
		"all connections break and nodes go nowhere": func(t *testing.T, s *scene) {
			s.look(t, 0, nil, false, false)
			s.look(t, time.Second, func() { s.reach.Sessions = 0 }, true, false)
			s.look(t, 9*time.Second, nil, true, false)
			s.look(t, time.Second, nil, false, false)
			// One that is started later finds the other door first.
			s.look(t, time.Minute, s.knock, true, true)
		},
		"silence, while nodes go elsewhere": func(t *testing.T, s *scene) {
			s.look(t, 0, nil, false, false)
			s.look(t, 25*time.Second, nil, false, false)
			s.look(t, time.Second, nil, true, false)
			s.look(t, 4*time.Second, func() { s.reach.Sessions = 2 }, true, false)
			s.look(t, 5*time.Second, s.knock, true, false)
			s.look(t, time.Second, func() { s.reach.Sessions = 1 }, true, true)
		},
		"silence of all": func(t *testing.T, s *scene) {
			s.look(t, 0, nil, false, false)
			s.look(t, 26*time.Second, nil, true, false)
			s.look(t, 4*time.Second, func() { s.reach.Sessions = 2 }, true, false)
			s.look(t, 10*time.Second, nil, true, false)
			s.look(t, time.Second, nil, false, false)
		},
		"one node's way is broken": func(t *testing.T, s *scene) {
			s.look(t, 0, nil, false, false)
			s.look(t, 10*time.Second, func() { s.knock(); s.reach.Sessions = 2 }, true, false)
			s.look(t, 5*time.Second, func() { s.knock(); s.heard() }, false, false) // another one
			s.look(t, time.Second, func() { s.reach.Sessions = 1 }, false, false)
		},
		"a knock long ago": func(t *testing.T, s *scene) {
			s.look(t, 0, nil, false, false)
			s.look(t, time.Second, s.knock, true, false)
			s.look(t, knockCounts, s.heard, false, false)
			s.look(t, time.Second, func() { s.reach.Sessions = 0 }, true, false)
			s.look(t, allGone, nil, false, false)
		},
		"a new one that never had nodes": func(t *testing.T, s *scene) {
			s.reach = fleethub.Reach{Broker: true}
			s.look(t, 0, nil, false, false)
			s.look(t, time.Second, s.knock, false, false)
		},
		"the way to the broker is lost": func(t *testing.T, s *scene) {
			s.look(t, 0, nil, false, false)
			s.look(t, time.Second, func() { s.heard(); s.reach.Broker = false }, false, false)
			s.look(t, 29*time.Second, s.heard, false, false)
			s.look(t, time.Second, func() { s.heard(); s.reach.Broker = true }, false, false)
			s.look(t, time.Second, func() { s.heard(); s.reach.Broker = false }, false, false)
			s.look(t, 30*time.Second, nil, true, true)
		},
		"a broker that never was there": func(t *testing.T, s *scene) {
			s.reach = fleethub.Reach{}
			s.look(t, 0, nil, false, false)
			s.look(t, time.Hour, nil, false, false)
		},
	} {
		t.Run(name, func(t *testing.T) { play(t, newScene()) })
	}
}

// A knock at one control plane is heard by the other, once each time; what was
// there before isn't.
func TestKnocksAreHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: knockLease, ResourceVersion: "7"}})
		// The fake gives no versions: each write gets the next one.
		leases := &versioned{LeaseInterface: client.CoordinationV1().Leases("ns")}
		ctx, stop := context.WithCancel(t.Context())
		heard := 0
		done := make(chan struct{}, 2)
		go func() { watchKnocks(leases)(ctx, func() { heard++ }); done <- struct{}{} }()
		k := newKnocks(leases, "other", slog.New(slog.DiscardHandler))
		go func() { k.run(ctx); done <- struct{}{} }()
		synctest.Wait()
		if heard != 0 {
			t.Errorf("an old knock is heard")
		}
		for range 10 { // together, they are one; and the next one waits
			k.knock()
		}
		synctest.Wait()
		if heard != 1 {
			t.Errorf("%d knocks are heard", heard)
		}
		k.knock()
		synctest.Wait()
		if heard != 1 {
			t.Error("knocks are passed on without a pause")
		}
		time.Sleep(knockEvery)
		synctest.Wait()
		if heard != 2 {
			t.Errorf("%d knocks are heard", heard)
		}
		stop()
		<-done
		<-done
	})
}

// versioned raises the resource version with each write.
type versioned struct {
	coordinationclient.LeaseInterface
	version int
}

func (v *versioned) Update(ctx context.Context, l *coordinationv1.Lease, o metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	v.version++
	l = l.DeepCopy()
	l.ResourceVersion = fmt.Sprint(100 + v.version)
	return v.LeaseInterface.Update(ctx, l, o)
}
