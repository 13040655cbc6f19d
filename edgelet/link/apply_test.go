package link

import (
	"testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

var have = fleet.OrderVersion{Incarnation: "A", Epoch: 5, Counter: 10, Hub: "h5", Revision: 100}

func next() fleet.OrderVersion { v := have; v.Counter++; return v }

func obj(uid, content string) *fleet.Object {
	h := fleet.HashObject([]byte(content))
	return &fleet.Object{Kind: "Pod", Namespace: "default", Name: uid, Uid: uid, Hash: h[:], Raw: []byte(content)}
}

func delta(v fleet.OrderVersion, base, result fleet.Set, upserts []*fleet.Object, removes ...string) *fleet.Order {
	b, r := base.Digest(), result.Digest()
	return &fleet.Order{Version: v.Proto(), Base: b[:], Digest: r[:], Upserts: upserts, Removes: removes, Synced: true}
}

func TestDecide(t *testing.T) {
	set := fleet.Set{"a": fleet.HashObject([]byte("a")), "b": fleet.HashObject([]byte("b"))}
	only := fleet.Set{"a": set["a"]}
	with := fleet.Set{"a": set["a"], "b": set["b"], "c": fleet.HashObject([]byte("c"))}
	add := []*fleet.Object{obj("c", "c")}
	list := func(v fleet.OrderVersion, s fleet.Set) *fleet.Order {
		return &fleet.Order{Version: v.Proto(), List: true, Entries: s.Entries(), Synced: true}
	}
	change := func(o *fleet.Order, f func(*fleet.Order)) *fleet.Order { f(o); return o }
	version := func(f func(*fleet.OrderVersion)) fleet.OrderVersion { v := next(); f(&v); return v }
	for _, x := range []struct {
		what    string
		o       *fleet.Order
		want    fleet.AckStatus
		result  fleet.Set
		removes int
		wants   int
	}{
		{"adding", delta(next(), set, with, add), fleet.AckStatus_APPLIED, with, 0, 0},
		{"removing", delta(next(), set, only, nil, "b"), fleet.AckStatus_APPLIED, only, 1, 0},
		{"removing by a hub that hasn't synced", change(delta(next(), set, only, nil, "b"), func(o *fleet.Order) { o.Synced = false }), fleet.AckStatus_NOT_SYNCED, set, 0, 0},
		{"adding by a hub that hasn't synced", change(delta(next(), set, with, add), func(o *fleet.Order) { o.Synced = false }), fleet.AckStatus_APPLIED, with, 0, 0},
		{"from another base", delta(next(), only, with, add), fleet.AckStatus_MISMATCH, set, 0, 0},
		{"to another result", delta(next(), set, only, add), fleet.AckStatus_MISMATCH, set, 0, 0},
		{"the same again", delta(have, only, set, nil), fleet.AckStatus_DUPLICATE, set, 0, 0},
		{"older", delta(version(func(v *fleet.OrderVersion) { v.Counter = 3 }), set, only, nil, "b"), fleet.AckStatus_STALE, set, 0, 0},
		{"of a deposed hub", delta(version(func(v *fleet.OrderVersion) { v.Epoch, v.Counter = 4, 99 }), set, only, nil, "b"), fleet.AckStatus_STALE, set, 0, 0},
		{"of another incarnation", delta(version(func(v *fleet.OrderVersion) { v.Incarnation, v.Epoch = "B", 99 }), set, only, nil, "b"), fleet.AckStatus_OTHER_INCARNATION, set, 0, 0},
		{"of a restored etcd", delta(version(func(v *fleet.OrderVersion) { v.Epoch, v.Revision = 6, 50 }), set, only, nil, "b"), fleet.AckStatus_OTHER_INCARNATION, set, 0, 0},
		{"expired", change(delta(next(), set, only, nil, "b"), func(o *fleet.Order) { o.Expires = 999 }), fleet.AckStatus_FAILED, set, 0, 0},
		{"not yet expired", change(delta(next(), set, only, nil, "b"), func(o *fleet.Order) { o.Expires = 1001 }), fleet.AckStatus_APPLIED, only, 1, 0},
		{"without incarnation", delta(version(func(v *fleet.OrderVersion) { v.Incarnation = "" }), set, only, nil, "b"), fleet.AckStatus_FAILED, set, 0, 0},
		{"a list of the same", list(next(), set), fleet.AckStatus_APPLIED, set, 0, 0},
		{"a list with less", list(next(), only), fleet.AckStatus_APPLIED, only, 1, 0},
		{"a list with more", list(next(), with), fleet.AckStatus_APPLIED, set, 0, 1},
		{"a list with another version", list(next(), fleet.Set{"a": set["a"], "b": set["a"]}), fleet.AckStatus_APPLIED, set, 0, 1},
		{"an empty list", list(next(), nil), fleet.AckStatus_APPLIED, fleet.Set{}, 2, 0},
		{"an empty list by a hub that hasn't synced", change(list(next(), nil), func(o *fleet.Order) { o.Synced = false }), fleet.AckStatus_NOT_SYNCED, set, 0, 0},
		{"a list with an entry twice", change(list(next(), only), func(o *fleet.Order) { o.Entries = append(o.Entries, o.Entries[0]) }), fleet.AckStatus_FAILED, set, 0, 0},
	} {
		d := Decide(have, set, x.o, 1000)
		if d.Status != x.want || d.Result.Digest() != x.result.Digest() || len(d.Removes) != x.removes || len(d.Want) != x.wants {
			t.Errorf("%s: %v, %d left, removes %v, wants %v (%s); want %v", x.what, d.Status, len(d.Result), d.Removes, d.Want, d.Message, x.want)
		}
	}
	if len(set) != 2 {
		t.Error("Decide changed what it was given")
	}
}

func TestObjectsThatAreNotTaken(t *testing.T) {
	for what, change := range map[string]func(*fleet.Object){
		"other bytes than its hash": func(o *fleet.Object) { o.Raw = []byte("evil") },
		"a short hash":              func(o *fleet.Object) { o.Hash = o.Hash[:5] },
		"no UID":                    func(o *fleet.Object) { o.Uid = "" },
		"no content":                func(o *fleet.Object) { o.Raw = nil },
		"two contents":              func(o *fleet.Object) { o.Size = 5 },
		"too large":                 func(o *fleet.Object) { o.Raw, o.Size = nil, fleet.MaxObject+1 },
		"a Secret in clear":         func(o *fleet.Object) { o.Kind = "Secret" },
	} {
		o := obj("c", "c")
		change(o)
		if d := Decide(have, nil, delta(next(), nil, fleet.Set{"c": fleet.HashObject([]byte("c"))}, []*fleet.Object{o}), 0); d.Status != fleet.AckStatus_FAILED {
			t.Errorf("%s: %v", what, d.Status)
		}
	}
}

func TestFreshNodeTakesTheFirstOrder(t *testing.T) {
	v := fleet.OrderVersion{Incarnation: "any", Epoch: 1, Counter: 1}
	o := &fleet.Order{Version: v.Proto(), List: true, Synced: true}
	if d := Decide(fleet.OrderVersion{}, nil, o, 0); d.Status != fleet.AckStatus_APPLIED {
		t.Errorf("%v", d.Status)
	}
}

// FuzzMachine: whatever a hub (or who stole its key) sends, the machine neither
// panics nor carries out an order that its rules forbid.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{}, uint64(1))
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		var d fleet.Down
		if err := unmarshal(data, &d); err != nil {
			return
		}
		m := NewMachine("s", 1, have, fleet.Set{"a": fleet.HashObject([]byte("a"))})
		m.Connected(0)
		m.Down(0, 0, 0.5, &d)
		// And as if it were of this session.
		d.Session, d.Seq = m.Session().Proto(), 1
		if d.Welcome == nil {
			d.Welcome = &fleet.Welcome{Version: next().Proto()}
		}
		for _, o := range m.Down(0, 0, 0.5, &d) {
			if s, ok := o.(StoreOrder); ok && d.GetAdopt() == nil && fleet.Compare(have, s.Version) != fleet.Newer {
				t.Errorf("carries out %v after %v", s.Version, have)
			}
		}
		m.Stored(nil)
		m.Outbox(0, []Ref{{UID: "a"}}, true)
		m.Tick(1 << 40)
	})
}
