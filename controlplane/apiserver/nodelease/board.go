package nodelease

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/apis/coordination"
)

const (
	// Period is how often watchers are told of renewals, as upstream's kubelets
	// renew.
	Period = 10 * time.Second
	// maxGraves is how many leases that went are remembered for watchers that come
	// back; one that comes from before them lists again.
	maxGraves = 256
)

// Lease of one node.
type Lease struct {
	Node    string
	UID     types.UID // the Node's
	Created time.Time // the Node
	// Renewed is when the node was last heard; zero if that isn't known.
	Renewed time.Time
	// Duration is how long that holds.
	Duration time.Duration
}

// Source knows the nodes' leases.
type Source interface {
	// NodeLeases returns those of all nodes, one each, in any order; false as long
	// as they aren't known yet. It is called often and must be cheap.
	NodeLeases() ([]Lease, bool)
}

type entry struct {
	Lease
	rev     uint64 // of its last change
	created uint64
}

// board is what was last read of the source, with revisions of its own: every
// reading that finds a change is one. They begin at the time of the start, so
// that those of an earlier process are told from them.
type board struct {
	source Source
	// open says whether the namespace is there; without it there are no leases.
	open func() bool
	now  func() time.Time

	mu       sync.Mutex
	read     time.Time
	rev      uint64
	floor    uint64 // what happened up to here is forgotten
	leases   map[string]entry
	graves   []entry // rev is of the deletion; oldest first
	watchers map[*watcher]bool
}

func newBoard(source Source, open func() bool, now func() time.Time) *board {
	start := uint64(now().UnixMilli())
	return &board{source: source, open: open, now: now, rev: start, floor: start, leases: map[string]entry{}, watchers: map[*watcher]bool{}}
}

// refresh reads the source; false if it knows nothing yet. mu is held.
func (b *board) refresh() bool {
	list, known := b.source.NodeLeases()
	if !known {
		return false
	}
	b.read = b.now()
	if !b.open() {
		list = nil
	}
	rev, changed := b.rev+1, []string(nil)
	gone := maps.Clone(b.leases)
	for _, l := range list {
		l.Renewed = l.Renewed.Truncate(time.Microsecond)
		before, had := b.leases[l.Node]
		delete(gone, l.Node)
		switch {
		case had && before.Lease == l:
			continue
		case had && before.UID == l.UID:
			b.leases[l.Node] = entry{l, rev, before.created}
		default:
			if had {
				b.bury(before, rev)
			}
			b.leases[l.Node] = entry{l, rev, rev}
		}
		changed = append(changed, l.Node)
	}
	for name, e := range gone {
		delete(b.leases, name)
		b.bury(e, rev)
		changed = append(changed, name)
	}
	if len(changed) == 0 {
		return true
	}
	b.rev = rev
	for w := range b.watchers {
		w.mark(changed)
	}
	return true
}

func (b *board) bury(e entry, rev uint64) {
	e.rev = rev
	b.graves = append(b.graves, e)
	if drop := len(b.graves) - maxGraves; drop > 0 {
		b.floor = b.graves[drop-1].rev
		b.graves = slices.Clone(b.graves[drop:])
	}
}

// poll refreshes unless somebody else just did.
func (b *board) poll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now().Sub(b.read) >= Period/2 {
		b.refresh()
	}
}

// get returns one lease as it is now.
func (b *board) get(name string) (lease *coordination.Lease, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known = b.refresh()
	if e, ok := b.leases[name]; ok {
		return e.object(e.rev), known
	}
	return nil, known
}

// list returns all of them by name, and the revision.
func (b *board) list() (list []coordination.Lease, rev uint64, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known = b.refresh()
	for _, name := range slices.Sorted(maps.Keys(b.leases)) {
		e := b.leases[name]
		list = append(list, *e.object(e.rev))
	}
	return list, b.rev, known
}

// object is the lease as a kubelet would have made it
// (k8s.io/kubernetes/pkg/kubelet/util/nodelease.go).
func (e entry) object(rev uint64) *coordination.Lease {
	seconds := int32(max((e.Duration+time.Second-1)/time.Second, 1))
	l := &coordination.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: corev1.NamespaceNodeLease, Name: e.Node, UID: leaseUID(e.UID), CreationTimestamp: metav1.NewTime(e.Created),
			ResourceVersion: strconv.FormatUint(rev, 10),
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: e.Node, UID: e.UID}},
		},
		Spec: coordination.LeaseSpec{HolderIdentity: &e.Node, LeaseDurationSeconds: &seconds},
	}
	if !e.Renewed.IsZero() {
		l.Spec.RenewTime = &metav1.MicroTime{Time: e.Renewed}
	}
	return l
}

// leaseUID is always the same for one Node.
func leaseUID(node types.UID) types.UID {
	sum := sha256.Sum256([]byte("coracle node lease of " + node))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // RFC 9562, version 8
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16]))
}
