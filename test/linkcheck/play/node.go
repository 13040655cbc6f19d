package play

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/link"
)

// Outcome of storing an order.
type Outcome int

// What may become of a durable write.
const (
	Done        Outcome = iota
	Full                // the disk is full
	CrashBefore         // power cut before the write
	CrashAfter          // after it, before anything else
)

func (o Outcome) String() string {
	return [...]string{"stored", "disk full", "power cut before the write", "power cut after the write"}[o]
}

var errFull = errors.New("disk full")

// Origin is what is known of who gave an order, beside what the message says. It
// isn't on the wire.
type Origin struct {
	Reign       int // hubs in the order in which they began
	Incarnation string
	Timeline    int
	Revision    uint64 // that it had seen
	Counter     uint64 // of the order
	Expires     int64  // the order
	Live        bool   // its informers had synced
	Adopts      bool   // it's an adoption
	Operator    bool   // which an operator wants
	View        *View  // of what should be
}

// Running is a pod's containers on the node.
type Running struct {
	UID string
	// Content is what there is to report; 0 is nothing yet.
	Content uint32
	// Gone: they were stopped. That is still to be said if Unsaid.
	Gone, Unsaid bool
}

// Ordered is a pod that should be here.
type Ordered struct {
	UID string
	// Deleting: it is to be stopped, and the node says when it is gone.
	Deleting bool
}

// Disk is what a node finds when it starts.
type Disk struct {
	Store   string
	Boot    uint64
	Version fleet.OrderVersion
	Set     fleet.Set // never changed in place
	Pods    []Ordered // in Set, by UID; never changed in place
	Partial bool      // not all that should be here came yet
	Outbox  Outbox
}

// Watcher is told of what a node does for good.
type Watcher interface {
	// Storing an order, which changes what the node has.
	Storing(n *Node, o link.StoreOrder, from *Origin)
	// Stopping a pod's containers.
	Stopping(n *Node, uid string, from *Origin)
	// Released is a report's slot, by this verdict.
	Released(n *Node, r Report, v fleet.Verdict, from *Origin)
	// JournalReleased up to and including a mark.
	JournalReleased(n *Node, from, to Mark, by *Origin)
}

// Node is edgelet: its disk, its memory, its machine. It is copied by Clone.
type Node struct {
	Transitions *Transitions `canon:"-"`
	Watch       Watcher      `canon:"-"`

	Disk    Disk
	Memory  Outbox // more than the disk has
	Machine *link.Machine
	Now     time.Duration // its monotonic clock
	Unix    int64         // seconds that have surely passed
	Seq     uint64        // stamps of this boot
	Running []Running     // by UID; never changed in place

	Fetching  []*fleet.Object
	fetchFrom *Origin
	// MaxEntries of the journal, and how many travel in a message.
	MaxEntries, PerMessage int `canon:"-"`

	// Sent is what was published, for who plays the network; Wills are the
	// broker's word on connections that broke.
	Sent  []*fleet.Up       `canon:"-"`
	Wills []fleet.SessionID `canon:"-"`
	// Outcome of the next durable write; Stored is how many there were.
	Outcome Outcome `canon:"-"`
	Stored  int     `canon:"-"`

	// While an event is handled.
	from    *Origin           `canon:"-"`
	crashed bool              `canon:"-"`
	ack     *fleet.Ack        `canon:"-"`
	reports []string          `canon:"-"`
	journal *link.SendJournal `canon:"-"`
	confirm bool              `canon:"-"`
}

// NewNode starts for the first time, and isn't connected yet.
func NewNode(t *Transitions, store string, pods ...string) *Node {
	n := &Node{Transitions: t, Disk: Disk{Store: store}, MaxEntries: 100, PerMessage: 100}
	for _, uid := range pods {
		n.Running = append(n.Running, Running{UID: uid})
	}
	n.start()
	return n
}

// Clone copies the node.
func (n *Node) Clone() *Node {
	c := *n
	c.Machine = n.Machine.Clone()
	c.Sent, c.Wills, c.Stored = nil, nil, 0
	return &c
}

func (n *Node) start() {
	n.Disk.Boot = n.Transitions.NextBoot(n.Disk.Boot)
	n.Memory = n.Disk.Outbox
	n.Seq = 0
	n.Fetching, n.fetchFrom = nil, nil
	n.ack, n.reports, n.journal, n.confirm = nil, nil, nil, false
	n.Machine = link.NewMachine(n.Disk.Store, n.Disk.Boot, n.Disk.Version, n.Disk.Set)
	// What is to be said and isn't on the disk is said anew.
	for _, r := range n.Running {
		if old, ok := n.Memory.Report(r.UID); r.Content != 0 && (!ok || old.Content != r.Content) {
			n.put(r)
		}
	}
}

func (n *Node) put(r Running) {
	n.Seq++
	n.Memory.put(Report{UID: r.UID, Stamp: fleet.StampID{Store: n.Disk.Store, Boot: n.Disk.Boot, Seq: n.Seq}, Content: r.Content, Gone: r.Gone})
}

// event handles one thing and sends what has gathered.
func (n *Node) event(from *Origin, handle func() []link.Output) {
	n.from, n.crashed = from, false
	if n.do(handle()); !n.crashed {
		n.send()
	}
	n.from, n.crashed = nil, false
}

// Connect makes a connection and says Hello on it.
func (n *Node) Connect() {
	n.event(nil, func() []link.Output { return n.Transitions.Connected(n.Machine, n.Now) })
}

// Break ends the connection; the broker says the will.
func (n *Node) Break() {
	n.Wills = append(n.Wills, n.Machine.Session())
	n.Transitions.Disconnected(n.Machine)
	n.Fetching, n.fetchFrom = nil, nil // ends with its connection
}

// Crash is a power cut: what isn't on the disk is lost. It starts again at once,
// and isn't connected yet.
func (n *Node) Crash() {
	if n.Machine.Phase() != link.Offline {
		n.Wills = append(n.Wills, n.Machine.Session())
	}
	n.crashed = true
	n.start()
}

// Lose is a start with a state file that can't be read: it was set aside for an
// empty one with this name. The pods' containers still run.
func (n *Node) Lose(store string) {
	n.Disk = Disk{Store: store}
	n.Crash()
}

// Flush brings to the disk what is only in memory.
func (n *Node) Flush() { n.Disk.Outbox = n.Memory }

// Receive a message.
func (n *Node) Receive(d *fleet.Down, from *Origin) {
	n.event(from, func() []link.Output { return n.Transitions.Down(n.Machine, n.Now, n.Unix, 0, d) })
}

// Tick does what is due on the machine's timers, as its shell does.
func (n *Node) Tick() {
	n.event(nil, func() []link.Output {
		n.do(n.Transitions.NodeTick(n.Machine, n.Now))
		return n.outbox()
	})
}

// Fetched says what came of Fetching: all of it, or nothing.
func (n *Node) Fetched(content func(uid string) (string, bool)) {
	got, failed := map[string]*fleet.Object{}, map[string]string{}
	for _, o := range n.Fetching {
		raw, ok := content(o.GetUid())
		if !ok {
			failed[o.GetUid()] = "the hub no longer has it"
			continue
		}
		got[o.GetUid()] = &fleet.Object{Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName(), Uid: o.GetUid(), Hash: o.GetHash(), Raw: []byte(raw)}
	}
	from := n.fetchFrom
	n.Fetching, n.fetchFrom = nil, nil
	n.event(from, func() []link.Output { return n.Transitions.Fetched(n.Machine, got, failed) })
}

// Say has something new to report: of a pod, or of the node itself (empty). Of a
// pod that is to be deleted that is that it's gone.
func (n *Node) Say(uid string, content uint32) {
	n.Running = slices.Clone(n.Running)
	i := slices.IndexFunc(n.Running, func(r Running) bool { return r.UID == uid })
	if i < 0 {
		i = 0
		n.Running = slices.Insert(n.Running, 0, Running{UID: uid})
	}
	n.Running[i].Content = content
	if slices.Contains(n.Disk.Pods, Ordered{uid, true}) {
		n.Running[i].Gone = true
	}
	n.Running[i].Unsaid = false
	n.put(n.Running[i])
	n.event(nil, n.outbox)
}

// Note writes an entry into the journal.
func (n *Node) Note(content uint32) {
	n.Seq++
	n.Memory.append(Entry{Mark{n.Disk.Boot, n.Seq}, content}, n.MaxEntries)
	n.event(nil, n.outbox)
}

// do carries out what the machine decided.
func (n *Node) do(outputs []link.Output) {
	for _, o := range outputs {
		if n.crashed {
			return
		}
		switch o := o.(type) {
		case link.SendHello:
			n.hello()
		case link.SendAck:
			if n.ack != nil {
				n.send()
			}
			n.ack = o.Ack
		case link.SendReports:
			if len(n.reports) > 0 {
				n.send()
			}
			n.reports = o.UIDs
		case link.SendJournal:
			n.journal = &o
		case link.StoreOrder:
			n.store(o)
		case link.Fetch:
			n.Fetching, n.fetchFrom = o.Objects, n.from
		case link.ReleaseReport:
			n.release(o)
		case link.ReleaseJournal:
			to := Mark{o.Boot, o.Seq}
			if n.Watch != nil {
				n.Watch.JournalReleased(n, n.Memory.Acked, to, n.from)
			}
			n.Memory.release(to)
			n.do(n.outbox())
		case link.RepeatReports:
			n.repeat(o)
		case link.Use:
			n.confirm = true
			n.do(n.outbox())
		case link.OpenTunnel, link.Refused: // nothing that lasts
		default:
			panic(fmt.Sprintf("play: say here what edgelet/link does with a %T", o))
		}
	}
}

func (n *Node) hello() {
	n.ack, n.reports, n.journal, n.confirm = nil, nil, nil, false // of the session before
	digest := n.Machine.Set().Digest()
	up := n.Machine.Header()
	up.Hello = &fleet.Hello{Version: n.Machine.Version().Proto(), Digest: digest[:], Keepalive: 60, RunningComplete: true}
	for _, r := range n.Memory.Reports {
		up.Hello.Running = append(up.Hello.Running, &fleet.RunningPod{Uid: r.UID, Stamp: r.Stamp.Proto(), Gone: r.Gone})
	}
	n.Sent = append(n.Sent, up)
}

// send puts all that has gathered into one message.
func (n *Node) send() {
	if n.ack == nil && len(n.reports) == 0 && n.journal == nil {
		if !n.confirm {
			return
		}
		digest, version := n.Machine.Set().Digest(), n.Machine.Version().Proto()
		n.ack = &fleet.Ack{Version: version, Status: fleet.AckStatus_DUPLICATE, Current: version, Digest: digest[:]}
	}
	n.confirm = false
	up := n.Machine.Header()
	up.Ack = n.ack
	for _, uid := range n.reports {
		r, ok := n.Memory.Report(uid)
		if !ok {
			continue
		}
		if up.Report == nil {
			up.Report = &fleet.Report{}
		}
		if uid == "" {
			up.Report.Node = &fleet.NodeReport{Stamp: r.Stamp.Proto(), Node: content(r.Content)}
			continue
		}
		up.Report.Pods = append(up.Report.Pods, &fleet.PodReport{Uid: uid, Stamp: r.Stamp.Proto(), Status: content(r.Content), Gone: r.Gone})
	}
	if n.journal != nil {
		j := n.Memory.pending(Mark{n.journal.Boot, n.journal.Seq}, n.PerMessage)
		if k := len(j.GetEntries()); k > 0 {
			up.Journal = j
			n.Machine.JournalSent(n.Now, j.Entries[k-1].GetBoot(), j.Entries[k-1].GetSeq())
		} else if k := len(j.GetGaps()); k > 0 {
			up.Journal = j
			n.Machine.JournalSent(n.Now, j.Gaps[k-1].GetBoot(), j.Gaps[k-1].GetTo())
		}
	}
	n.ack, n.reports, n.journal = nil, nil, nil
	n.Sent = append(n.Sent, up)
}

func content(c uint32) []byte { return binary.BigEndian.AppendUint32(nil, c) }

// store makes an order durable, with all that waits to be.
func (n *Node) store(o link.StoreOrder) {
	n.Stored++
	switch n.Outcome {
	case Full:
		n.do(n.Transitions.Stored(n.Machine, errFull))
		return
	case CrashBefore:
		n.Crash()
		return
	}
	if n.Watch != nil {
		n.Watch.Storing(n, o, n.from)
	}
	set, pods := n.Disk.Set.Clone(), slices.Clone(n.Disk.Pods)
	drop := func(uid string) {
		pods = slices.DeleteFunc(pods, func(p Ordered) bool { return p.UID == uid })
	}
	for _, uid := range o.Removes {
		delete(set, uid)
		drop(uid)
	}
	for _, obj := range o.Upserts {
		set[obj.GetUid()] = fleet.Hash(obj.GetHash())
		if obj.GetKind() == Pod {
			drop(obj.GetUid())
			pods = append(pods, Ordered{obj.GetUid(), deleting(string(obj.GetRaw()))})
		}
	}
	slices.SortFunc(pods, func(a, b Ordered) int { return strings.Compare(a.UID, b.UID) })
	n.Disk.Set, n.Disk.Pods = set, pods
	n.Disk.Partial = o.More && (n.Disk.Partial || n.Disk.Version.IsZero())
	n.Disk.Version = o.Version
	n.Disk.Outbox = n.Memory
	n.reconcile()
	if n.Outcome == CrashAfter {
		n.Crash()
		return
	}
	n.do(n.Transitions.Stored(n.Machine, nil))
}

// reconcile starts and stops pods as edgelet/pods does: what isn't among the
// pods that should be here is stopped, once a hub has said what should be.
func (n *Node) reconcile() {
	running := make([]Running, 0, len(n.Running)+1)
	for _, r := range n.Running {
		if r.UID != "" && !r.Gone && !n.ordered(r.UID) && !n.Disk.Version.IsZero() && !n.Disk.Partial {
			if n.Watch != nil {
				n.Watch.Stopping(n, r.UID, n.from)
			}
			if r.Content == 0 {
				continue // nothing was ever said of it
			}
			r.Gone, r.Unsaid = true, true
		}
		running = append(running, r)
	}
	for _, p := range n.Disk.Pods {
		if !slices.ContainsFunc(running, func(r Running) bool { return r.UID == p.UID }) {
			running = append(running, Running{UID: p.UID})
		}
	}
	slices.SortFunc(running, func(a, b Running) int { return strings.Compare(a.UID, b.UID) })
	n.Running = running
	n.forget()
}

// forget pods that are gone, should not be here and were answered for.
func (n *Node) forget() {
	n.Running = slices.DeleteFunc(slices.Clone(n.Running), func(r Running) bool {
		_, waits := n.Memory.Report(r.UID)
		return r.Gone && !waits && !n.ordered(r.UID) && !r.Unsaid
	})
}

func (n *Node) ordered(uid string) bool {
	return slices.ContainsFunc(n.Disk.Pods, func(p Ordered) bool { return p.UID == uid })
}

func (n *Node) release(o link.ReleaseReport) {
	r, ok := n.Memory.Report(o.UID)
	if !ok || r.Acked || !n.Transitions.Releases(o.Stamp, r.Stamp) {
		return
	}
	if n.Watch != nil {
		n.Watch.Released(n, r, o.Verdict, n.from)
	}
	if r.Gone {
		n.Memory.drop(o.UID)
		n.forget()
		return
	}
	r.Acked = true
	n.Memory.put(r)
}

func (n *Node) repeat(o link.RepeatReports) {
	for _, r := range n.Memory.Reports {
		if o.All || r.UID == "" && o.Node || r.UID != "" && slices.Contains(o.UIDs, r.UID) {
			r.Acked = false
			n.Memory.put(r)
		}
	}
	n.do(n.outbox())
}

// outbox offers the machine what isn't answered for, oldest first.
func (n *Node) outbox() []link.Output {
	var refs []link.Ref
	for _, r := range n.Memory.Reports {
		if !r.Acked {
			refs = append(refs, link.Ref{UID: r.UID, Stamp: r.Stamp, Size: 500})
		}
	}
	slices.SortFunc(refs, func(a, b link.Ref) int {
		switch {
		case a.Stamp == b.Stamp:
			return 0
		case a.Stamp.Obsoletes(b.Stamp):
			return 1
		}
		return -1
	})
	return n.Transitions.Outbox(n.Machine, n.Now, refs, n.Memory.Waiting())
}
