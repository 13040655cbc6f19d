package state

import (
	"fmt"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

// Kinds in the desired set.
const (
	KindPod          = "Pod"
	KindConfigMap    = "ConfigMap"
	KindSecret       = "Secret"
	KindService      = "Service"
	KindRuntimeClass = "RuntimeClass"
)

// Object is one object of the desired set. Raw is the Kubernetes protobuf
// ("k8s\x00" + runtime.Unknown), opened if it was sealed.
type Object struct {
	Kind, Namespace, Name, UID string
	Hash                       string // hex
	Raw                        []byte
}

// indexed is what is kept in memory of an object.
type indexed struct {
	kind, namespace, name string
	hash                  fleet.Hash
	damaged               bool
}

type named struct{ kind, namespace, name string }

// tracked is the trace of a pod on this node, until it was reported Running.
type tracked struct {
	arrived time.Time
	times   *trace.NodeTimes
}

type desired struct {
	version fleet.OrderVersion
	partial bool
	objects map[string]indexed // by UID
	names   map[named]string   // UID
	traces  map[string]tracked // by UID
}

func (d *desired) init() {
	*d = desired{objects: map[string]indexed{}, names: map[named]string{}, traces: map[string]tracked{}}
}

func (d *desired) load(tx *bolt.Tx) error {
	var v fleet.Version
	if err := proto.Unmarshal(getMeta(tx, keyVersion), &v); err != nil {
		return fmt.Errorf("version: %w", err)
	}
	d.version = fleet.VersionFrom(&v)
	d.partial = getMeta(tx, keyPartial) != nil
	return tx.Bucket(bucketDesired).ForEach(func(k, value []byte) error {
		var o fleet.Object
		if err := proto.Unmarshal(value, &o); err != nil {
			return fmt.Errorf("object %q: %w", k, err)
		}
		d.put(&o, !intact(&o))
		return nil
	})
}

// intact is false if o's bytes aren't those of its hash. Sealed objects prove
// themselves when they are opened.
func intact(o *fleet.Object) bool {
	hash, err := fleet.HashFrom(o.GetHash())
	return err == nil && (len(o.GetSealed()) > 0 || fleet.HashObject(o.GetRaw()) == hash)
}

func (d *desired) put(o *fleet.Object, damaged bool) {
	hash, _ := fleet.HashFrom(o.GetHash())
	if damaged {
		hash = fleet.Hash{} // differs from the hub's: it is sent again
	}
	d.drop(o.GetUid())
	d.objects[o.GetUid()] = indexed{o.GetKind(), o.GetNamespace(), o.GetName(), hash, damaged}
	d.names[named{o.GetKind(), o.GetNamespace(), o.GetName()}] = o.GetUid()
}

func (d *desired) drop(uid string) {
	o, ok := d.objects[uid]
	if !ok {
		return
	}
	delete(d.objects, uid)
	if n := (named{o.kind, o.namespace, o.name}); d.names[n] == uid {
		delete(d.names, n)
	}
}

// Version of the order that made the desired set what it is. It is zero if no
// hub ever said what this node should have.
func (s *Store) Version() fleet.OrderVersion {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.desired.version
}

// Complete is true once all pods that this node should have came at least once.
// Before that (no hub has said anything yet, or not all of it: a new node, or one
// whose state file was lost) nothing is to be stopped for not being in the set.
func (s *Store) Complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.desired.version.IsZero() && !s.desired.partial
}

// Set is the desired set's UIDs and hashes, and the version it came with.
func (s *Store) Set() (fleet.Set, fleet.OrderVersion) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := make(fleet.Set, len(s.desired.objects))
	for uid, o := range s.desired.objects {
		set[uid] = o.hash
	}
	return set, s.desired.version
}

// Has is true if the desired set has this UID.
func (s *Store) Has(uid string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.desired.objects[uid]
	return ok
}

// Desired returns all objects of a kind, sorted by namespace and name. If one of
// them is damaged or can't be unsealed the others are returned with an error
// ([ErrDamaged] or [fleet.ErrSealed]) that names it: then don't conclude
// anything from what is absent.
func (s *Store) Desired(kind string) ([]Object, error) {
	s.mu.Lock()
	uids := make([]string, 0, len(s.desired.objects))
	for uid, o := range s.desired.objects {
		if o.kind == kind {
			uids = append(uids, uid)
		}
	}
	s.mu.Unlock()
	out := make([]Object, 0, len(uids))
	var bad error
	for _, uid := range uids {
		o, ok, err := s.read(uid)
		switch {
		case err != nil:
			bad = err
		case ok:
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b Object) int {
		return strings.Compare(a.Namespace+"\x00"+a.Name+"\x00"+a.UID, b.Namespace+"\x00"+b.Name+"\x00"+b.UID)
	})
	return out, bad
}

// Get returns one object of the desired set by name; false if it isn't there.
func (s *Store) Get(kind, namespace, name string) (Object, bool, error) {
	s.mu.Lock()
	uid, ok := s.desired.names[named{kind, namespace, name}]
	s.mu.Unlock()
	if !ok {
		return Object{}, false, nil
	}
	return s.read(uid)
}

func (s *Store) read(uid string) (Object, bool, error) {
	var o fleet.Object
	found := false
	err := s.db.View(func(tx *bolt.Tx) error {
		value := tx.Bucket(bucketDesired).Get([]byte(uid))
		found = value != nil
		return proto.Unmarshal(value, &o) // copies
	})
	if err != nil {
		return Object{}, false, fmt.Errorf("%w: %s in %s: %w", ErrDamaged, uid, s.path, err)
	}
	if !found {
		return Object{}, false, nil
	}
	name := fmt.Sprintf("%s %s/%s (%s)", o.GetKind(), o.GetNamespace(), o.GetName(), uid)
	if !intact(&o) {
		return Object{}, false, fmt.Errorf("%w: %s in %s; it is sent again when the node is connected", ErrDamaged, name, s.path)
	}
	hash := fleet.Hash(o.GetHash())
	raw := o.GetRaw()
	if len(o.GetSealed()) > 0 {
		if s.opts.Unseal == nil {
			return Object{}, false, fmt.Errorf("%w: %s: no key", fleet.ErrSealed, name)
		}
		if raw, err = s.opts.Unseal(uid, hash, o.GetSealed()); err != nil {
			return Object{}, false, fmt.Errorf("%s in %s: %w", name, s.path, err)
		}
	}
	return Object{o.GetKind(), o.GetNamespace(), o.GetName(), uid, hash.String(), raw}, true, nil
}

// Apply changes the desired set in one transaction. It is edgelet/link's: the
// decision that the order may be carried out has been taken. arrived is when it
// came in, with a monotonic reading.
func (s *Store) Apply(version fleet.OrderVersion, upserts []*fleet.Object, removes []string, arrived time.Time) error {
	return s.apply(version, upserts, removes, false, arrived)
}

// ApplyPart is Apply of an order after which pods are still missing that should
// be here. It makes a difference until all have come once, see [Store.Complete].
func (s *Store) ApplyPart(version fleet.OrderVersion, upserts []*fleet.Object, removes []string, arrived time.Time) error {
	return s.apply(version, upserts, removes, true, arrived)
}

func (s *Store) apply(version fleet.OrderVersion, upserts []*fleet.Object, removes []string, more bool, arrived time.Time) error {
	partial := more && !s.Complete()
	if err := s.commit("storing order "+version.String(), func(tx *bolt.Tx) error {
		bucket := tx.Bucket(bucketDesired)
		for _, uid := range removes {
			if err := bucket.Delete([]byte(uid)); err != nil {
				return err
			}
		}
		for _, o := range upserts {
			value, err := proto.Marshal(o)
			if err != nil {
				return err
			}
			if err := bucket.Put([]byte(o.GetUid()), value); err != nil {
				return err
			}
		}
		value, err := proto.Marshal(version.Proto())
		if err != nil {
			return err
		}
		if partial {
			err = putMeta(tx, keyPartial, []byte{1})
		} else {
			err = tx.Bucket(bucketMeta).Delete(keyPartial)
		}
		if err != nil {
			return err
		}
		return putMeta(tx, keyVersion, value)
	}); err != nil {
		return err
	}
	now := s.opts.Now()
	s.mu.Lock()
	for _, uid := range removes {
		s.desired.drop(uid)
		delete(s.desired.traces, uid)
	}
	for _, o := range upserts {
		if _, known := s.desired.objects[o.GetUid()]; !known && o.GetKind() == KindPod {
			times := trace.NewNodeTimes(arrived)
			times.Mark(trace.NodeStored, now)
			s.desired.traces[o.GetUid()] = tracked{arrived, times}
		}
		s.desired.put(o, false)
	}
	whole := s.desired.partial && !partial
	s.desired.version, s.desired.partial = version, partial
	followers := s.followers
	s.mu.Unlock()
	if len(upserts)+len(removes) > 0 || whole {
		signal(s.changed)
		for _, ch := range followers {
			signal(ch)
		}
	}
	return nil
}

// Times is where the steps of a pod that was ordered since the agent started are
// to be marked; nil (which may be marked, too) for others.
func (s *Store) Times(uid string) *trace.NodeTimes {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.desired.traces[uid].times
}
