package shutdown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods"
	logindlab "github.com/coracle-edge/coracle/test/lab/logind"
)

// somePods end when the test says so.
type somePods struct {
	mu      sync.Mutex
	active  []pods.Active
	ended   []string // NAME grace resume
	resumed int
	hang    map[string]bool
}

func (p *somePods) Active() []pods.Active { return p.active }

func (p *somePods) End(ctx context.Context, uid string, v pods.Verdict) error {
	if v.Reason != "Terminated" || v.Message != "Pod was terminated in response to imminent node shutdown." || v.Disruption != v.Message {
		return fmt.Errorf("verdict %+v", v)
	}
	p.mu.Lock()
	p.ended = append(p.ended, fmt.Sprintf("%s %d %t", uid, *v.Grace, v.Resume))
	hang := p.hang[uid]
	p.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (p *somePods) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resumed++
}

func (p *somePods) said() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.ended)
}

func pod(uid string, priority int32, grace int64) pods.Active {
	return pods.Active{Namespace: "default", Name: uid, UID: uid, Priority: priority, Grace: grace, RestartPolicy: v1.RestartPolicyAlways}
}

// run starts a manager on the bus.
func run(t *testing.T, b *logindlab.Bus, p *somePods, change func(*Config)) *Manager {
	c := Config{Pods: func() Pods { return p }, Bus: b.Path, ConfDir: b.ConfDir,
		Periods: []Period{{0, 2 * time.Second}, {systemCriticalPriority, 10 * time.Second}}}
	if change != nil {
		change(&c)
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return m
}

func TestPodsEndInOrderBeforeTheMachineGoesDown(t *testing.T) {
	b := logindlab.Start(t)
	static := pod("static", systemCriticalPriority, 30)
	static.Static = true
	p := &somePods{active: []pods.Active{pod("critical", systemCriticalPriority+1, 5), pod("web", 0, 30), static, pod("low", -5, 1)}, hang: map[string]bool{"web": true}}
	var flushed, changed sync.Map
	m := run(t, b, p, func(c *Config) {
		c.Flush = func(context.Context) { flushed.Store("", b.Holds(0)) }
		c.Changed = func() { changed.Store("", true) }
	})
	b.Lock(0)
	if got := b.Held(0); got != "shutdown edgelet delay" {
		t.Errorf("lock %q", got)
	}
	// logind waited five seconds; the pods may take twelve, and the report two.
	if b.Delay() != 14*time.Second {
		t.Errorf("logind waits %s", b.Delay())
	}
	if reason, _ := m.Admit(nil); reason != "" || m.ShuttingDown() {
		t.Fatal("it goes down already:", reason)
	}
	b.Prepare(true)
	b.Released(0)
	if reason, message := m.Admit(nil); reason != "NodeShutdown" || message != "Pod was rejected as the node is shutting down." {
		t.Errorf("%s: %s", reason, message)
	}
	got := p.said()
	slices.Sort(got[:2])
	slices.Sort(got[2:])
	// "web" hung and was cut; the period bounds its grace. The node's own pod runs again.
	if want := "low 1 false, web 2 false, critical 5 false, static 10 true"; strings.Join(got, ", ") != want {
		t.Errorf("ended %s, want %s", strings.Join(got, ", "), want)
	}
	if held, ok := flushed.Load(""); !ok || held != true {
		t.Error("the control plane was told with the machine going down already")
	}
	if _, ok := changed.Load(""); !ok || !m.ShuttingDown() {
		t.Error("the node isn't unready")
	}
}

func TestAShutdownThatIsCancelled(t *testing.T) {
	b := logindlab.Start(t)
	p := &somePods{active: []pods.Active{pod("web", 0, 30), func() pods.Active { p := pod("job", 0, 30); p.RestartPolicy = v1.RestartPolicyNever; return p }()},
		hang: map[string]bool{"web": true}}
	var mu sync.Mutex
	var events []string
	m := run(t, b, p, func(c *Config) {
		c.Periods, c.Resume = []Period{{0, time.Hour}}, true
		c.Event = func(kind, reason, message string) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, kind+" "+reason+": "+message)
		}
	})
	b.Lock(0)
	b.Prepare(true)
	await(t, "the pods to be told", func() bool { return len(p.said()) == 2 })
	b.Prepare(false)
	b.Lock(1)
	await(t, "the pods to run again", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.resumed == 1 })
	await(t, "the node to be well", func() bool { return !m.ShuttingDown() })
	if !b.Holds(1) {
		t.Error("the new lock isn't held")
	}
	got := p.said()
	slices.Sort(got)
	if want := "job 30 false, web 30 true"; strings.Join(got, ", ") != want {
		t.Errorf("ended %s, want %s: what ends by itself is over, or its success would be believed", strings.Join(got, ", "), want)
	}
	// And it is noticed again.
	b.Prepare(true)
	await(t, "the second shutdown", m.ShuttingDown)
	await(t, "the node's events", func() bool {
		mu.Lock()
		defer mu.Unlock()
		const down, cancelled = "Normal Shutdown: Shutdown manager detected shutdown event", "Normal Shutdown: Shutdown manager detected shutdown cancellation"
		return slices.Equal(events, []string{down, cancelled, down})
	})
}

// Anybody may send a signal to a name on the bus.
func TestASignalThatIsNotLogindsIsIgnored(t *testing.T) {
	b := logindlab.Start(t)
	p := &somePods{active: []pods.Active{pod("web", 0, 1)}}
	var said strings.Builder
	var mu sync.Mutex
	m := run(t, b, p, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&locked{&mu, &said}, nil)) })
	b.Lock(0)
	b.Forge()
	// The bus keeps the order: once logind's own signal is here, the strangers' are.
	time.Sleep(200 * time.Millisecond)
	if m.ShuttingDown() || len(p.said()) > 0 {
		t.Fatal("a stranger shut the node down")
	}
	mu.Lock()
	if log := said.String(); !strings.Contains(log, "somebody who isn't logind says that the machine goes down") || !strings.Contains(log, "sender=:") {
		t.Errorf("the log doesn't say who it was: %s", log)
	}
	mu.Unlock()
	b.Prepare(true)
	await(t, "logind's own signal", m.ShuttingDown)
}

// locked is a log that is read while it is written.
type locked struct {
	mu *sync.Mutex
	to *strings.Builder
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(b)
}

// The agent starts, or finds the bus again, while the machine goes down already.
func TestAShutdownThatBeganBefore(t *testing.T) {
	b := logindlab.Start(t)
	b.Began()
	m := run(t, b, &somePods{active: []pods.Active{pod("web", 0, 1)}}, nil)
	b.Released(0)
	if !m.ShuttingDown() {
		t.Error("nobody noticed")
	}
}

func TestABusThatIsNotThereIsWaitedFor(t *testing.T) {
	m, err := New(Config{Pods: func() Pods { return &somePods{} }, Periods: []Period{{0, time.Second}}, Bus: t.TempDir() + "/none"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := m.Run(ctx); err != nil || m.ShuttingDown() {
		t.Error(err, m.ShuttingDown())
	}
}

func TestPeriods(t *testing.T) {
	for _, c := range []struct {
		total, critical time.Duration
		want            string
	}{
		{0, 0, "[]"}, {30 * time.Second, 10 * time.Second, "[{0 20s} {2000000000 10s}]"}, {30 * time.Second, 0, "[{0 30s} {2000000000 0s}]"},
		{0, time.Second, ""}, {time.Second, 2 * time.Second, ""}, {-1, 0, ""}, {time.Millisecond, 0, ""},
	} {
		got, err := Periods(c.total, c.critical)
		if c.want == "" != (err != nil) || err == nil && fmt.Sprint(got) != c.want || err != nil && !errors.Is(err, ErrPeriods) {
			t.Errorf("%s, %s: %v, %v; want %s", c.total, c.critical, got, err, c.want)
		}
	}
	for in, want := range map[string]string{
		"": "[]", "1000=5s, 0=10s": "[{0 10s} {1000 5s}]", "-10=1m": "[{-10 1m0s}]",
		"0": "", "x=1s": "", "0=soon": "", "0=-1s": "", "0=1s,0=2s": "", "99999999999=1s": "",
	} {
		got, err := ParsePeriods(in)
		if want == "" != (err != nil) || err == nil && fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v; want %s", in, got, err, want)
		}
	}
	groups := group([]Period{{0, 1}, {100, 1}, {1000, 1}}, []pods.Active{pod("lower", -1, 1), pod("0", 0, 1), pod("99", 99, 1), pod("100", 100, 1), pod("5000", 5000, 1)})
	if n := fmt.Sprint(len(groups[0]), len(groups[1]), len(groups[2])); n != "3 1 1" {
		t.Errorf("groups of %s pods", n)
	}
}

func FuzzMessage(f *testing.F) {
	m := message{kind: typeCall, serial: 7, path: "/a", iface: "b.c", member: "D", destination: "e.f", signature: "s"}
	var body encoder
	body.str("hello")
	m.body = body.b
	f.Add(m.encode())
	f.Add([]byte("B\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x08\x09\x01u\x00\x00\x00\x00\x02"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := decode(raw)
		if err != nil {
			return
		}
		d := m.args()
		d.variant("t")
		_ = d.u64()
		d = m.args()
		_ = d.str()
		_ = d.signature()
		_ = d.u32()
		if m.order.String() == "LittleEndian" && m.kind == typeCall && len(m.path)+len(m.iface) > 0 {
			// What is written is read as it was.
			again, err := decode(m.encode())
			if err != nil || again.path != m.path || again.member != m.member || string(again.body) != string(m.body) {
				t.Fatalf("%+v became %+v: %v", m, again, err)
			}
		}
	})
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("timed out waiting for " + what)
		}
	}
}

func FuzzPeriods(f *testing.F) {
	f.Add("0=20s,2000000000=10s")
	f.Add("0=9223372036854775807ns,1=9223372036854775807ns")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := ParsePeriods(text)
		if err != nil {
			return
		}
		for i, p := range list {
			if p.Grace < 0 || i > 0 && list[i-1].Priority >= p.Priority {
				t.Errorf("%q became %v", text, list)
			}
		}
		if total(list) < 0 {
			t.Errorf("%q takes %s", text, total(list))
		}
	})
}
