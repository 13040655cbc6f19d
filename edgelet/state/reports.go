package state

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

// PodReport is what the node says of one pod. It replaces what it said before.
type PodReport struct {
	Namespace, Name, UID string
	// Status is a protobuf of core/v1 PodStatus.
	Status []byte
	// Gone says that the pod's containers, volumes and cgroup are gone: the API
	// object may be deleted.
	Gone bool
	// Mirror is, for a static pod, the protobuf of its core/v1 Pod: the hub makes
	// its mirror. UID is then the pod's hash (annotation
	// kubernetes.io/config.hash), which stands in for the UID on the node.
	Mirror []byte
	// Trace, if nil, is [Store.Times] of the UID.
	Trace *trace.NodeTimes
}

// reportState is a report and how far it got.
type reportState struct {
	msg   *fleet.PodReport // never changed once it is here
	acked bool
	times tracked
	said  string // what was urgent of the last one that was answered for; empty: none was
}

type reports struct {
	seq       uint64
	pods      map[string]*reportState
	node      *fleet.NodeReport
	nodeAcked bool
	nodeSaid  string // as reportState.said

	// What isn't on disk yet. Only those that are urgent have the writer woken.
	dirtyPods map[string]bool
	dirtyAcks map[string]bool
	dirtyNode bool
	bootDirty bool
}

func (r *reports) init() {
	*r = reports{pods: map[string]*reportState{}, dirtyPods: map[string]bool{}, dirtyAcks: map[string]bool{}}
}

func (r *reports) load(tx *bolt.Tx) error {
	acked := tx.Bucket(bucketAcked)
	if err := tx.Bucket(bucketReports).ForEach(func(k, value []byte) error {
		msg := &fleet.PodReport{}
		if err := proto.Unmarshal(value, msg); err != nil {
			return fmt.Errorf("report %q: %w", k, err)
		}
		st := &reportState{msg: msg, acked: sameStamp(acked.Get(k), msg.GetStamp())}
		if st.acked {
			st.said = podUrgency(msg)
		}
		r.pods[string(k)] = st
		return nil
	}); err != nil {
		return err
	}
	if value := getMeta(tx, keyNode); value != nil {
		r.node = &fleet.NodeReport{}
		if err := proto.Unmarshal(value, r.node); err != nil {
			return fmt.Errorf("node report: %w", err)
		}
		if r.nodeAcked = sameStamp(getMeta(tx, keyNodeAcked), r.node.GetStamp()); r.nodeAcked {
			r.nodeSaid = nodeUrgency(r.node)
		}
	}
	return nil
}

func sameStamp(stored []byte, stamp *fleet.Stamp) bool {
	var s fleet.Stamp
	return stored != nil && proto.Unmarshal(stored, &s) == nil && fleet.StampFrom(&s) == fleet.StampFrom(stamp)
}

// stamp makes the next one; mu is held.
func (s *Store) stamp() *fleet.Stamp {
	s.reports.seq++
	return &fleet.Stamp{Store: []byte(s.id), Boot: s.boot, Seq: s.reports.seq}
}

// PutPodStatus says st of its pod. Saying the same again does nothing. The link
// hears of it at once; it is durable within FlushDelay.
func (s *Store) PutPodStatus(uid string, st PodReport) error {
	if uid == "" || (st.UID != "" && st.UID != uid) {
		return fmt.Errorf("report of pod %s/%s: UID %q does not match %q", st.Namespace, st.Name, st.UID, uid)
	}
	if len(st.Status)+len(st.Mirror) > fleet.MaxReportBytes {
		return fmt.Errorf("report of pod %s/%s (%s): %d bytes: %w; shorten messages", st.Namespace, st.Name, uid, len(st.Status)+len(st.Mirror), fleet.ErrTooLarge)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.reports.pods[uid]
	if old != nil && old.msg.GetGone() == st.Gone && bytes.Equal(old.msg.GetStatus(), st.Status) && bytes.Equal(old.msg.GetMirror(), st.Mirror) {
		return nil
	}
	times := s.desired.traces[uid]
	if st.Trace != nil {
		times.times = st.Trace
	}
	if st.Mirror == nil && phase(st.Status) == "Running" {
		times.times.Mark(trace.StatusQueued, s.opts.Now())
	}
	s.reports.pods[uid] = &reportState{
		msg: &fleet.PodReport{
			Uid: uid, Namespace: st.Namespace, Name: st.Name, Stamp: s.stamp(),
			Status: bytes.Clone(st.Status), Gone: st.Gone, Mirror: bytes.Clone(st.Mirror),
		},
		times: times,
	}
	if old != nil {
		s.reports.pods[uid].said = old.said
	}
	s.reports.dirtyPods[uid] = true
	delete(s.reports.dirtyAcks, uid)
	s.wake()
	signal(s.outbox)
	return nil
}

// PutNodeReport says what the node is: a protobuf of core/v1 Node with labels,
// annotations, spec and status. Leave out what changes by itself (heartbeat
// times, free memory): saying the same again does nothing, and an idle node
// sends nothing.
func (s *Store) PutNodeReport(raw []byte) error {
	if len(raw) > fleet.MaxReportBytes {
		return fmt.Errorf("report of the node: %d bytes: %w; report fewer images", len(raw), fleet.ErrTooLarge)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reports.node != nil && bytes.Equal(s.reports.node.GetNode(), raw) {
		return nil
	}
	s.reports.node = &fleet.NodeReport{Stamp: s.stamp(), Node: bytes.Clone(raw)}
	s.reports.nodeAcked = false
	s.reports.dirtyNode = true
	s.wake()
	signal(s.outbox)
	return nil
}

// PodStatus returns what was last said of a pod.
func (s *Store) PodStatus(uid string) (PodReport, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.reports.pods[uid]
	if !ok {
		return PodReport{}, false
	}
	m := r.msg
	return PodReport{Namespace: m.GetNamespace(), Name: m.GetName(), UID: uid, Status: m.GetStatus(), Gone: m.GetGone(), Mirror: m.GetMirror()}, true
}

// ReportRef is a report without its content.
type ReportRef struct {
	UID                   string // empty: the node's own
	Namespace, Name       string
	Stamp                 fleet.StampID
	Acked, Gone, IsMirror bool
	// Urgent: it says something that can't wait, see podUrgency and nodeUrgency.
	Urgent bool
	Size   int
}

// Reports lists all pod reports, oldest first; the node's own, if any, is the
// first.
func (s *Store) Reports() []ReportRef {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]ReportRef, 0, len(s.reports.pods)+1)
	for uid, r := range s.reports.pods {
		m := r.msg
		out = append(out, ReportRef{uid, m.GetNamespace(), m.GetName(), fleet.StampFrom(m.GetStamp()), r.acked,
			m.GetGone(), len(m.GetMirror()) > 0, r.said != podUrgency(m), len(m.GetStatus()) + len(m.GetMirror()) + 160})
	}
	slices.SortFunc(out, func(a, b ReportRef) int {
		if a.Stamp == b.Stamp {
			return 0
		}
		if a.Stamp.Obsoletes(b.Stamp) {
			return 1
		}
		return -1
	})
	if n := s.reports.node; n != nil {
		out = slices.Insert(out, 0, ReportRef{Stamp: fleet.StampFrom(n.GetStamp()), Acked: s.reports.nodeAcked, Urgent: s.reports.nodeSaid != nodeUrgency(n), Size: len(n.GetNode()) + 100})
	}
	return out
}

// Report returns a pod's report as it travels now, nil if there is none any more.
func (s *Store) Report(uid string) *fleet.PodReport {
	now := s.opts.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.reports.pods[uid]
	if !ok {
		return nil
	}
	msg := proto.CloneOf(r.msg)
	if r.times.times != nil && !r.acked {
		for _, o := range r.times.times.Offsets() {
			msg.Trace = append(msg.Trace, &fleet.Offset{Step: string(o.Step), Offset: int64(o.Offset)})
		}
		if !r.times.arrived.IsZero() {
			msg.Elapsed = int64(now.Sub(r.times.arrived))
		}
	}
	return msg
}

// NodeReport returns the node's own report, nil if there is none.
func (s *Store) NodeReport() *fleet.NodeReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reports.node
}

// Acked releases the report of this stamp (uid empty: the node's own); an older
// or newer one stays. A pod that is gone is forgotten.
func (s *Store) Acked(uid string, stamp fleet.StampID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid == "" {
		if n := s.reports.node; n != nil && fleet.StampFrom(n.GetStamp()) == stamp {
			s.reports.nodeAcked, s.reports.nodeSaid = true, nodeUrgency(n)
			s.reports.dirtyAcks[""] = true
		}
		return
	}
	r, ok := s.reports.pods[uid]
	if !ok || fleet.StampFrom(r.msg.GetStamp()) != stamp {
		return
	}
	s.reports.dirtyAcks[uid] = true
	if r.msg.GetGone() {
		delete(s.reports.pods, uid)
		delete(s.desired.traces, uid)
		s.reports.dirtyPods[uid] = true
		return
	}
	s.reports.pods[uid] = &reportState{msg: r.msg, acked: true, said: podUrgency(r.msg)}
	if running(r) {
		delete(s.desired.traces, uid) // the way is told
	}
}

// Unack has the report of uid (empty: the node's own) sent once more.
func (s *Store) Unack(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid == "" {
		s.reports.nodeAcked, s.reports.nodeSaid = false, "" // who asks has none
	} else if r, ok := s.reports.pods[uid]; ok {
		s.reports.pods[uid] = &reportState{msg: r.msg, times: r.times}
	}
	signal(s.outbox)
}

// phase is field 1 of a core/v1 PodStatus.
func phase(status []byte) string {
	for len(status) > 0 {
		num, typ, n := protowire.ConsumeTag(status)
		if n < 0 {
			return ""
		}
		status = status[n:]
		if num == 1 && typ == protowire.BytesType {
			v, n := protowire.ConsumeString(status)
			if n < 0 {
				return ""
			}
			return v
		}
		if n = protowire.ConsumeFieldValue(num, typ, status); n < 0 {
			return ""
		}
		status = status[n:]
	}
	return ""
}

func running(r *reportState) bool {
	for _, o := range r.times.times.Offsets() {
		if o.Step == trace.StatusQueued {
			return true
		}
	}
	return false
}

// dirtySet is what one transaction writes of what is buffered; it holds
// pointers to what doesn't change any more.
type dirtySet struct {
	pods    map[string]*fleet.PodReport // nil: delete
	acks    map[string]*fleet.Stamp     // nil: delete
	node    *fleet.NodeReport
	boot    uint64
	usage   *Usage
	journal dirtyJournal
	claims  map[string][]byte // nil: delete
}

// takeDirty moves out what is buffered, nil if there is nothing but what may
// wait; mu is held.
func (s *Store) takeDirty() *dirtySet {
	r := &s.reports
	j := s.journal.take()
	if len(r.dirtyPods) == 0 && len(r.dirtyAcks) == 0 && !r.dirtyNode && !r.bootDirty && !s.usageDirty && len(s.dirtyClaims) == 0 && j.empty() {
		return nil
	}
	d := &dirtySet{pods: map[string]*fleet.PodReport{}, acks: map[string]*fleet.Stamp{}, journal: j, claims: s.dirtyClaims}
	s.dirtyClaims = nil
	for uid := range r.dirtyPods {
		if st, ok := r.pods[uid]; ok {
			d.pods[uid] = st.msg
		} else {
			d.pods[uid] = nil
			d.acks[uid] = nil
		}
	}
	for uid := range r.dirtyAcks {
		if uid == "" {
			if r.nodeAcked {
				d.acks[""] = r.node.GetStamp()
			}
		} else if st, ok := r.pods[uid]; ok && st.acked {
			d.acks[uid] = st.msg.GetStamp()
		}
	}
	if r.dirtyNode {
		d.node = r.node
	}
	if r.bootDirty {
		d.boot = s.boot
	}
	if s.usageDirty {
		u := s.usage
		d.usage = &u
	}
	clear(r.dirtyPods)
	clear(r.dirtyAcks)
	r.dirtyNode, r.bootDirty, s.usageDirty = false, false, false
	return d
}

// putBack makes d dirty again after a failed write; mu is held.
func (s *Store) putBack(d *dirtySet) {
	if d == nil {
		return
	}
	for uid := range maps.Keys(d.pods) {
		s.reports.dirtyPods[uid] = true
	}
	for uid, stamp := range d.acks {
		if stamp != nil {
			s.reports.dirtyAcks[uid] = true
		}
	}
	s.reports.dirtyNode = s.reports.dirtyNode || d.node != nil
	s.reports.bootDirty = s.reports.bootDirty || d.boot != 0
	s.usageDirty = s.usageDirty || d.usage != nil
	s.journal.putBack(d.journal)
	for key, record := range d.claims {
		if s.dirtyClaims == nil {
			s.dirtyClaims = map[string][]byte{}
		}
		if _, newer := s.dirtyClaims[key]; !newer {
			s.dirtyClaims[key] = record
		}
	}
}

func (d *dirtySet) write(tx *bolt.Tx) error {
	if err := putClaims(tx, d.claims); err != nil {
		return err
	}
	for uid, msg := range d.pods {
		if err := putOrDelete(tx.Bucket(bucketReports), []byte(uid), msg); err != nil {
			return err
		}
	}
	for uid, stamp := range d.acks {
		if uid == "" {
			value, err := proto.Marshal(stamp)
			if err != nil {
				return err
			}
			if err := putMeta(tx, keyNodeAcked, value); err != nil {
				return err
			}
			continue
		}
		if err := putOrDelete(tx.Bucket(bucketAcked), []byte(uid), stamp); err != nil {
			return err
		}
	}
	if d.node != nil {
		value, err := proto.Marshal(d.node)
		if err != nil {
			return err
		}
		if err := putMeta(tx, keyNode, value); err != nil {
			return err
		}
	}
	if d.boot != 0 {
		if err := putMeta(tx, keyBoot, be64(d.boot)); err != nil {
			return err
		}
	}
	if d.usage != nil {
		if err := d.usage.write(tx); err != nil {
			return err
		}
	}
	return d.journal.write(tx)
}

func putOrDelete[M interface {
	proto.Message
	comparable
}](b *bolt.Bucket, key []byte, msg M) error {
	var none M
	if msg == none {
		return b.Delete(key)
	}
	value, err := proto.Marshal(msg)
	if err != nil {
		return err
	}
	return b.Put(key, value)
}
