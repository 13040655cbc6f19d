package fleetlink

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/link"
)

// world runs the pure halves of the protocol against each other, over a network
// that loses, repeats, delays and reorders, with crashes and restarts of both
// sides at any moment. What production runs is what is tested here.
type world struct {
	t   *testing.T
	rnd *rand.Rand
	now time.Duration
	log []string

	// The cluster: what the node should have, by revision.
	desired  fleethub.Desired
	content  map[fleet.Hash]string
	revision uint64
	epoch    uint64
	peer     *fleethub.Peer

	// The node.
	disk    disk
	boot    uint64
	machine *link.Machine
	reports map[string]*report
	seq     uint64

	// The way between them.
	up, down []proto.Message
	lossy    bool

	accepted map[string]fleet.StampID // newest report that the hub took, by UID
	wasTaken map[fleet.StampID]int
	removed  int
}

type disk struct {
	version fleet.OrderVersion
	set     fleet.Set
}

type report struct {
	stamp fleet.StampID
	acked bool
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), desired: fleethub.Desired{}, content: map[fleet.Hash]string{},
		reports: map[string]*report{}, accepted: map[string]fleet.StampID{}, wasTaken: map[fleet.StampID]int{}, lossy: true, revision: 1}
	w.startHub()
	w.startNode()
	return w
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%8s ", w.now.Round(time.Millisecond))+fmt.Sprintf(format, args...))
	if len(w.log) > 60 {
		w.log = w.log[1:]
	}
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	for _, l := range w.log {
		w.t.Log(l)
	}
	w.t.Fatalf(format, args...)
}

func (w *world) startHub() {
	w.epoch++
	w.revision++
	w.note("hub starts, epoch %d", w.epoch)
	w.peer = fleethub.NewPeer(w.now, fleethub.Epoch{Incarnation: "one", Number: w.epoch, Hub: fmt.Sprint("hub", w.rnd.Uint32())},
		fleethub.Timing{Keepalive: time.Minute, WillGrace: time.Second, Jitter: 2 * time.Second}, true)
	w.hub(w.peer.SetDesired(w.now, maps.Clone(w.desired), w.revision))
	w.hub(w.peer.LinkUp(w.now))
}

func (w *world) startNode() {
	w.boot++
	w.seq = 0
	w.note("node starts, boot %d", w.boot)
	w.machine = link.NewMachine("store", w.boot, w.disk.version, w.disk.set.Clone())
	w.node(w.machine.Connected(w.now))
}

// hub carries out what the peer decided.
func (w *world) hub(outputs []fleethub.Output) {
	for _, o := range outputs {
		switch o := o.(type) {
		case fleethub.SendWelcome:
			d := w.peer.Header()
			d.Welcome = &fleet.Welcome{Version: w.peer.Version().Proto(), InSync: o.InSync}
			w.down = append(w.down, d)
		case fleethub.SendOrder:
			d := w.peer.Header()
			d.Order = w.build(o)
			w.down = append(w.down, d)
		case fleethub.SendRebirth:
			w.down = append(w.down, &fleet.Down{Rebirth: &fleet.Rebirth{Version: w.peer.Version().Proto(), Jitter: 100}})
		case fleethub.Foreign:
			w.fail("the node is taken for foreign: its %v, ours %v", o.Version, w.peer.Version())
		case fleethub.Deposed:
			w.fail("the newest hub believes that it was deposed: node %v, ours %v", o.Version, w.peer.Version())
		}
	}
}

// build: a resent order must be as it was, so content is found by hash.
func (w *world) build(o fleethub.SendOrder) *fleet.Order {
	out := &fleet.Order{Version: o.Version.Proto(), Synced: true, Removes: o.Removes}
	if o.List != nil {
		out.List, out.Entries = true, o.List.Entries()
		return out
	}
	out.Base, out.Digest = o.Base[:], o.Digest[:]
	for _, uid := range o.Upserts {
		hash := w.peer.Desired()[uid].Hash
		out.Upserts = append(out.Upserts, &fleet.Object{Kind: "Pod", Namespace: "default", Name: uid, Uid: uid, Hash: hash[:], Raw: []byte(w.content[hash])})
	}
	return out
}

// node carries out what the machine decided.
func (w *world) node(outputs []link.Output) {
	for _, o := range outputs {
		switch o := o.(type) {
		case link.SendHello:
			u := w.machine.Header()
			digest := w.machine.Set().Digest()
			u.Hello = &fleet.Hello{Version: w.machine.Version().Proto(), Digest: digest[:], Keepalive: 60}
			w.up = append(w.up, u)
		case link.SendAck:
			u := w.machine.Header()
			u.Ack = o.Ack
			w.up = append(w.up, u)
		case link.Use:
			u := w.machine.Header()
			digest := w.machine.Set().Digest()
			u.Ack = &fleet.Ack{Version: w.machine.Version().Proto(), Status: fleet.AckStatus_DUPLICATE, Current: w.machine.Version().Proto(), Digest: digest[:]}
			w.up = append(w.up, u)
			w.outbox()
		case link.SendReports:
			u := w.machine.Header()
			u.Report = &fleet.Report{}
			for _, uid := range o.UIDs {
				u.Report.Pods = append(u.Report.Pods, &fleet.PodReport{Uid: uid, Stamp: w.reports[uid].stamp.Proto()})
			}
			w.up = append(w.up, u)
		case link.StoreOrder:
			w.store(o)
		case link.ReleaseReport:
			if r := w.reports[o.UID]; r != nil && r.stamp == o.Stamp {
				r.acked = true
			}
		}
	}
}

// store is the only place where something is taken from the node.
func (w *world) store(o link.StoreOrder) {
	if r := fleet.Compare(w.disk.version, o.Version); r != fleet.Newer {
		w.fail("an order %v is carried out after %v: %v", o.Version, w.disk.version, r)
	}
	if o.Version.Epoch > w.epoch {
		w.fail("an order of an epoch that never was")
	}
	if w.rnd.IntN(20) == 0 {
		w.node(w.machine.Stored(fmt.Errorf("disk full")))
		return
	}
	w.disk.set = w.disk.set.Clone()
	for _, uid := range o.Removes {
		if _, wanted := w.desired[uid]; wanted && o.Version.Epoch == w.epoch && o.Version.Counter > 1<<40 {
			w.fail("impossible")
		}
		delete(w.disk.set, uid)
		w.removed++
	}
	for _, obj := range o.Upserts {
		w.disk.set[obj.GetUid()] = fleet.Hash(obj.GetHash())
	}
	w.disk.version = o.Version
	if w.rnd.IntN(15) == 0 { // power cut between storing and answering
		w.note("node crashes after storing %v", o.Version)
		w.startNode()
		return
	}
	w.node(w.machine.Stored(nil))
}

func (w *world) outbox() {
	var refs []link.Ref
	for uid, r := range w.reports {
		if !r.acked {
			refs = append(refs, link.Ref{UID: uid, Stamp: r.stamp, Size: 500})
		}
	}
	w.node(w.machine.Outbox(w.now, refs, false))
}

// deliver one message of a queue, perhaps not, perhaps twice, perhaps out of turn.
func (w *world) deliver(queue *[]proto.Message, take func(proto.Message)) {
	if len(*queue) == 0 {
		return
	}
	i := 0
	if w.lossy && w.rnd.IntN(6) == 0 {
		i = w.rnd.IntN(len(*queue))
	}
	m := (*queue)[i]
	if !w.lossy || w.rnd.IntN(8) != 0 { // else: stays, and comes again
		*queue = append((*queue)[:i:i], (*queue)[i+1:]...)
	}
	if w.lossy && w.rnd.IntN(6) == 0 {
		return // lost
	}
	take(proto.Clone(m))
}

func (w *world) atNode(m proto.Message) {
	w.node(w.machine.Down(w.now, 0, w.rnd.Float64(), m.(*fleet.Down)))
}

func (w *world) atHub(m proto.Message) {
	u := m.(*fleet.Up)
	out, accept := w.peer.Up(w.now, u)
	if accept {
		for _, r := range u.GetReport().GetPods() {
			stamp := fleet.StampFrom(r.GetStamp())
			w.wasTaken[stamp]++
			if old, ok := w.accepted[r.GetUid()]; !ok || stamp.Obsoletes(old) {
				w.accepted[r.GetUid()] = stamp
			}
			d := w.peer.Header()
			d.ReportAck = &fleet.ReportAck{Verdicts: []*fleet.ReportVerdict{{Uid: r.GetUid(), Stamp: r.GetStamp(), Verdict: fleet.Verdict_STORED}}}
			w.down = append(w.down, d)
		}
	}
	w.hub(out)
}

func (w *world) change() {
	w.revision++
	next := maps.Clone(w.desired)
	uid := fmt.Sprint("pod", w.rnd.IntN(6))
	if w.rnd.IntN(3) == 0 {
		delete(next, uid)
	} else {
		raw := fmt.Sprint(uid, " ", w.rnd.Uint64())
		hash := fleet.HashObject([]byte(raw))
		w.content[hash] = raw
		size := 300
		if w.rnd.IntN(4) == 0 {
			size = 30 << 10 // several orders
		}
		next[uid] = fleethub.Item{Hash: hash, Size: size, Later: true}
	}
	w.desired = next
	w.hub(w.peer.SetDesired(w.now, next, w.revision))
}

func (w *world) say() {
	w.seq++
	w.reports[fmt.Sprint("pod", w.rnd.IntN(6))] = &report{stamp: fleet.StampID{Store: "store", Boot: w.boot, Seq: w.seq}}
	w.outbox()
}

func (w *world) step() {
	w.now += time.Duration(w.rnd.IntN(300)) * time.Millisecond
	switch w.rnd.IntN(24) {
	case 0, 1:
		w.change()
	case 2, 3:
		w.say()
	case 4:
		w.now += time.Duration(w.rnd.IntN(40)) * time.Second
	case 5:
		if w.rnd.IntN(4) == 0 {
			w.startHub()
		}
	case 6:
		if w.rnd.IntN(4) == 0 {
			w.startNode()
		}
	case 7: // the connection breaks; what is under way is lost, or comes late
		w.machine.Disconnected()
		if w.rnd.IntN(2) == 0 {
			w.up, w.down = nil, nil
		}
		if w.rnd.IntN(2) == 0 {
			w.peer.Will(w.now, w.machine.Session())
		}
		w.node(w.machine.Connected(w.now))
	case 8:
		w.now += 90 * time.Second
	}
	w.run()
}

func (w *world) run() {
	w.deliver(&w.up, w.atHub)
	w.deliver(&w.down, w.atNode)
	if at, ok := w.machine.Deadline(); ok && w.now >= at {
		w.node(w.machine.Tick(w.now))
		w.outbox()
	}
	if at, ok := w.peer.Deadline(); ok && w.now >= at {
		w.hub(w.peer.Tick(w.now))
	}
}

// settle: a network that works again brings everything into step.
func (w *world) settle() {
	w.lossy = false
	for range 4000 {
		w.now += 500 * time.Millisecond
		w.run()
		w.run()
		if len(w.up)+len(w.down) == 0 && maps.Equal(w.disk.set, w.desired.Set()) && w.allAcked() && w.peer.Presence() == fleethub.Present {
			return
		}
	}
	has, known := w.peer.Has()
	w.fail("not in step: node has %d of %d, acked %v, presence %v, session open %v confirmed %v, known %v (%d), node phase %v",
		len(w.disk.set), len(w.desired), w.allAcked(), w.peer.Presence(), w.peer.Open(), w.peer.Confirmed(), known, len(has), w.machine.Phase())
}

func (w *world) allAcked() bool {
	for uid, r := range w.reports {
		if !r.acked || w.accepted[uid] != r.stamp {
			return false
		}
	}
	return true
}

func TestBothSidesConvergeWhateverTheNetworkDoes(t *testing.T) {
	seeds := uint64(300)
	if testing.Short() {
		seeds = 50
	}
	for seed := range seeds {
		w := newWorld(t, seed)
		for range 3 {
			w.lossy = true
			for range 150 {
				w.step()
			}
			w.settle()
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
