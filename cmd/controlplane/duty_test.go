package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	wire "github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/leadership"
)

// An embedded broker's port turns nodes away, and takes them from the moment on that
// it is the broker's.
func TestTurnAwayHandsThePortOver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var knocked atomic.Int64
	go func() { defer close(done); turnAway(ctx, l, func() { knocked.Add(1) }) }()
	for range 3 {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("not turned away: %v", err)
		}
		conn.Close()
	}
	cancel()
	<-done
	if n := knocked.Load(); n != 3 {
		t.Errorf("%d were noticed, of 3", n)
	}
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = io.WriteString(conn, "x")
			conn.Close()
		}
		served <- err
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Errorf("after the handing over: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("the port isn't the broker's: %v", err)
	}
}

// Parts that act run on duty only; losing it is the process's end.
func TestPartsRunOnDuty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		plane := func(name string) (*parts, *atomic.Int64, *atomic.Int64, *atomic.Int64) {
			lead, err := leadership.New(leadership.Config{Client: client, Namespace: "ns", Name: "hub", Identity: name, Duration: 10 * time.Second,
				Clock: func() func() time.Duration {
					t0 := time.Now()
					return func() time.Duration { return time.Since(t0) + time.Hour }
				}()})
			if err != nil {
				t.Fatal(err)
			}
			var always, onDuty, aside atomic.Int64
			runs := func(n *atomic.Int64) func(context.Context) error {
				return func(ctx context.Context) error {
					n.Store(1)
					<-ctx.Done()
					n.Store(-1)
					return nil
				}
			}
			return &parts{begin: func(context.Context) {}, duty: &duty{lead: lead}, logger: slog.New(slog.DiscardHandler),
				aside: func(ctx context.Context) { _ = runs(&aside)(ctx) },
				list:  []part{{name: "always", always: true, run: runs(&always)}, {name: "acts", fatal: true, run: runs(&onDuty)}}}, &always, &onDuty, &aside
		}
		settle := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		one, always1, acts1, aside1 := plane("one")
		two, always2, acts2, aside2 := plane("two")
		ctx1, stop1 := context.WithCancel(t.Context())
		ctx2, stop2 := context.WithCancel(t.Context())
		ended := make(chan struct{}, 2)
		never := func(err error) { t.Errorf("failed: %v", err) }
		go func() { one.run(ctx1, never); ended <- struct{}{} }()
		settle(time.Second)
		go func() { two.run(ctx2, never); ended <- struct{}{} }()
		settle(20 * time.Second)
		if always1.Load() != 1 || always2.Load() != 1 || acts1.Load() != 1 || acts2.Load() != 0 || aside1.Load() != -1 || aside2.Load() != 1 {
			t.Errorf("always %d %d, acts %d %d, aside %d %d", always1.Load(), always2.Load(), acts1.Load(), acts2.Load(), aside1.Load(), aside2.Load())
		}
		stop1()
		<-ended
		settle(10 * time.Second)
		if acts1.Load() != -1 || acts2.Load() != 1 || aside2.Load() != -1 {
			t.Errorf("acts %d %d, aside %d", acts1.Load(), acts2.Load(), aside2.Load())
		}
		stop2()
		<-ended
	})
}

type carrier struct {
	sent int
	got  func(string, wire.Direction, []byte)
}

func (c *carrier) Run(_ context.Context, message func(string, wire.Direction, []byte), _ func(bool)) error {
	c.got = message
	return nil
}
func (c *carrier) Publish(string, []byte) error { c.sent++; return nil }
func (c *carrier) Disconnect(string)            {}

// listener is a carrier that knows when a node was heard.
type listener struct{ carrier }

func (*listener) Heard(node string) (time.Time, bool) { return time.Unix(1, 0), node == "n" }

func TestWhatABrokerHearsIsKnown(t *testing.T) {
	on := func() bool { return true }
	if _, ok := carried(&carrier{}, on).(hearing); ok {
		t.Error("a transport that hears nothing seems to")
	}
	h, ok := carried(&listener{}, on).(hearing)
	if !ok {
		t.Fatal("what it hears is lost")
	}
	if at, ok := h.Heard("n"); !ok || !at.Equal(time.Unix(1, 0)) {
		t.Errorf("heard %v at %v", ok, at)
	}
}

func TestNothingIsCarriedOffDuty(t *testing.T) {
	active, heard := true, 0
	c := &carrier{}
	d := carried(c, func() bool { return active })
	if err := d.Run(t.Context(), func(string, wire.Direction, []byte) { heard++ }, nil); err != nil {
		t.Fatal(err)
	}
	for _, active = range []bool{true, false, true} {
		if err := d.Publish("n", nil); (err == nil) != active || err != nil && !errors.Is(err, leadership.ErrNotActive) {
			t.Errorf("on duty %v: %v", active, err)
		}
		c.got("n", wire.DirUp, nil)
	}
	if c.sent != 2 || heard != 2 {
		t.Errorf("%d sent, %d heard", c.sent, heard)
	}
}

func TestWhoIsAskedElsewhere(t *testing.T) {
	lead, err := leadership.New(leadership.Config{Client: fake.NewClientset(), Namespace: "ns", Name: "hub", Identity: "one"})
	if err != nil {
		t.Fatal(err)
	}
	d := &duty{lead: lead}
	w := httptest.NewRecorder()
	d.only(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "isn't the active one") || !strings.Contains(w.Body.String(), "no control plane is active") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = httptest.NewRecorder()
	(&duty{}).only(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("with an embedded etcd: %d", w.Code)
	}
}
