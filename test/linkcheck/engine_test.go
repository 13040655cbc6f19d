package linkcheck

import (
	"context"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/test/linkcheck/play"
)

func scenario(t *testing.T, name string) *Scenario {
	t.Helper()
	for _, s := range Scenarios() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no scenario %q", name)
	return nil
}

// TestWorkersDoNotMatter: the same states, whoever finds them, and the same way to
// what is broken.
func TestWorkersDoNotMatter(t *testing.T) {
	s := *scenario(t, "deposed")
	explore := func(workers int) Result {
		r, err := Explore(context.Background(), &s, Options{Depth: 5, Workers: workers})
		if err != nil {
			t.Fatal(err)
		}
		r.Took = 0
		return r
	}
	one, three := explore(1), explore(3)
	if !reflect.DeepEqual(one, three) || one.States < 1000 || one.Violation != nil {
		t.Errorf("one worker: %v, three: %v", one, three)
	}
	s = *scenario(t, "network")
	s.Transitions = play.Real()
	s.Transitions.Synced = func(bool) bool { return false } // nothing is ever taken away
	one, three = explore(1), explore(3)
	if one.Violation == nil || !reflect.DeepEqual(one, three) {
		t.Errorf("broken, one worker: %v, three: %v", one.Violation, three.Violation)
	}
}

func TestAnExplorationEndsWhenItIsTold(t *testing.T) {
	s := scenario(t, "takeover")
	if _, err := Explore(context.Background(), s, Options{Depth: 20, MaxStates: 500}); err == nil || !strings.Contains(err.Error(), s.Name) {
		t.Errorf("too many states: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Explore(ctx, s, Options{Depth: 20}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestASmallScenarioIsSeenWhole(t *testing.T) {
	s := *scenario(t, "reversal")
	s.Limits = [budgets]uint8{changes: 1}
	r, err := Explore(context.Background(), &s, Options{Depth: 50})
	if err != nil || !r.Complete() || r.Depth > 10 {
		t.Errorf("%v, %v", r, err)
	}
	// A change that is seen, ordered, carried out and acknowledged.
	if want := []int{1, 1, 1, 1, 1, 0}; !slices.Equal(r.New, want) {
		t.Errorf("new states %v, want %v", r.New, want)
	}
}

// everyField calls do with each simple field below v, changed to something else.
func everyField(v reflect.Value, path string, do func(path string)) {
	if v.Kind() != reflect.Pointer && v.CanAddr() {
		v = reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem()
	}
	change := func(set func()) {
		before := reflect.New(v.Type()).Elem()
		before.Set(v)
		set()
		do(path)
		v.Set(before)
	}
	switch v.Kind() {
	case reflect.Bool:
		change(func() { v.SetBool(!v.Bool()) })
	case reflect.Int, reflect.Int64, reflect.Int32:
		change(func() { v.SetInt(v.Int() + int64(time.Hour)) })
	case reflect.Uint64, reflect.Uint32, reflect.Uint8, reflect.Uint16:
		change(func() { v.SetUint(v.Uint() + 1) })
	case reflect.String:
		change(func() { v.SetString(v.String() + "x") })
	case reflect.Map:
		change(func() {
			if v.IsNil() {
				v.Set(reflect.MakeMap(v.Type())) // not known is not nothing
			} else {
				v.SetZero()
			}
		})
	case reflect.Slice:
		change(func() { v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem()))) })
	case reflect.Array:
		everyField(v.Index(0), path+"[0]", do)
	case reflect.Struct:
		for i := range v.NumField() {
			everyField(v.Field(i), path+"."+v.Type().Field(i).Name, do)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			everyField(v.Elem(), path, do)
		}
	default:
		panic(path + " is a " + v.Type().String())
	}
}

// TestEveryFieldOfAMachineCounts: a field that the key leaves out would hide
// states.
func TestEveryFieldOfAMachineCounts(t *testing.T) {
	order := &fleet.Order{Version: fleet.OrderVersion{Incarnation: "A", Epoch: 1, Counter: 1}.Proto(), Upserts: []*fleet.Object{}}
	m := link.NewMachine("store", 1, fleet.OrderVersion{}, fleet.Set{"a": {1}})
	m.Connected(time.Second)
	m.Down(time.Second, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 1, Grant: fleet.GrantID{Epoch: 1, Hub: "h", Number: 1}.Proto(),
		Welcome: &fleet.Welcome{Version: order.Version}})
	base := m.Set().Digest()
	order.Base, order.Digest = base[:], base[:]
	m.Down(time.Second, 0, 0, &fleet.Down{Session: m.Session().Proto(), Seq: 2, Grant: fleet.GrantID{Epoch: 1, Hub: "h", Number: 1}.Proto(), Order: order})
	m.Outbox(time.Second, []link.Ref{{UID: "a"}}, false)
	p := fleethub.NewPeer(time.Second, fleethub.Epoch{Incarnation: "A", Number: 1, Hub: "h"}, timing, true)
	p.SetDesired(time.Second, fleethub.Desired{"a": {Hash: fleet.Hash{1}, Later: true}}, 3)
	p.Up(time.Second, &fleet.Up{Session: m.Session().Proto(), Seq: 1, Hello: &fleet.Hello{Version: order.Version, Digest: make([]byte, 32)}})

	count := 0
	machine, peer := newCanon[link.Machine](), newCanon[fleethub.Peer]()
	check := func(of any, key func() Key) {
		before := key()
		everyField(reflect.ValueOf(of), reflect.TypeOf(of).String(), func(path string) {
			if count++; key() == before {
				t.Errorf("%s doesn't count", path)
			}
		})
		if key() != before {
			t.Errorf("a key of %T isn't the same twice", of)
		}
	}
	check(m, func() Key { return machine.key(time.Second, m) })
	check(p, func() Key { return peer.key(time.Second, p) })
	if count < 60 {
		t.Errorf("%d fields", count)
	}
}

func TestMomentsCountFromNow(t *testing.T) {
	type state struct{ Never, Past, Soon time.Duration }
	c := newCanon[state]()
	if c.key(10, &state{0, 5, 20}) != c.key(110, &state{0, 90, 120}) {
		t.Error("the same seen from now isn't the same")
	}
	base := c.key(10, &state{0, 5, 20})
	for what, other := range map[string]state{"past is not never": {5, 5, 20}, "later": {0, 5, 21}, "due": {0, 5, 10}} {
		if c.key(10, &other) == base {
			t.Error(what)
		}
	}
	type lengths struct{ T fleethub.Timing }
	l := newCanon[lengths]()
	if l.key(0, &lengths{timing}) != l.key(time.Hour, &lengths{timing}) {
		t.Error("a length is taken for a moment")
	}
}

func TestTable(t *testing.T) {
	table := newTable()
	key := func(n uint64) (k Key) {
		binary.LittleEndian.PutUint64(k[:], n*0x9e3779b97f4a7c15)
		return k
	}
	const n = 20_000 // grows several times
	for i := range uint64(n) {
		if !table.put(key(i), uint32(i+1)) {
			t.Fatalf("%d is there already", i)
		}
	}
	for i := range uint64(n) {
		if table.put(key(i), 7) || table.get(key(i)) != uint32(i+1) {
			t.Fatalf("%d: %d", i, table.get(key(i)))
		}
	}
	if table.get(key(n)) != 0 || table.used != n {
		t.Errorf("%d entries, %d for what isn't there", table.used, table.get(key(n)))
	}
}
