package play

import (
	"fmt"
	"maps"
	"strings"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// Pod and ConfigMap are the kinds that are played.
const (
	Pod       = "Pod"
	ConfigMap = "ConfigMap"
)

// Object is an object of the API that the node should have.
type Object struct {
	Kind     string
	Raw      string `canon:"-"` // as the node gets it
	Hash     fleet.Hash
	Size     int  // bytes that it is taken for
	Deleting bool // it has a deletion timestamp
}

// NewObject makes the object of this version.
func NewObject(kind, uid string, version, size int, deleting bool) Object {
	raw := fmt.Sprintf("%s %s %d of %d bytes %v", kind, uid, version, size, deleting)
	return Object{Kind: kind, Raw: raw, Hash: fleet.HashObject([]byte(raw)), Size: size, Deleting: deleting}
}

// deleting reads what NewObject wrote.
func deleting(raw string) bool { return strings.HasSuffix(raw, " true") }

// View is what informers show of etcd at a revision. It is never changed in place.
type View struct {
	Timeline int
	Revision uint64
	Epoch    uint64
	Away     bool              // what the Node object says
	Objects  map[string]Object `canon:"-"` // by UID
	desired  fleethub.Desired  `canon:"-"`
	digest   fleet.Hash        // of all objects
}

// with is another view of the same, with these objects.
func (v *View) with(objects map[string]Object) *View {
	c := *v
	c.Objects, c.desired = objects, make(fleethub.Desired, len(objects))
	for uid, o := range objects {
		c.desired[uid] = fleethub.Item{Hash: o.Hash, Size: o.Size, Later: o.Kind == Pod}
	}
	c.digest = c.desired.Set().Digest()
	return &c
}

// Blind is what informers show before they have synced.
func (v *View) Blind() *View { return v.with(map[string]Object{}) }

// Desired is what the node should have.
func (v *View) Desired() fleethub.Desired { return v.desired }

// Written is a report that etcd has.
type Written struct {
	Stamp   fleet.StampID
	Content uint32
}

// Etcd is what etcd has. It is never changed in place. A restored snapshot is
// the beginning of another timeline.
type Etcd struct {
	Incarnation string
	View        *View
	Reports     map[string]Written // by UID; empty: the node's own
	Events      map[string]uint32  // content of journal entries by name
	Lost        map[string]bool    // names of those that the node said to have dropped
}

// NewEtcd is the etcd of a new cluster.
func NewEtcd(incarnation string, objects map[string]Object) *Etcd {
	v := &View{Revision: 10}
	return &Etcd{Incarnation: incarnation, View: v.with(objects), Reports: map[string]Written{}, Events: map[string]uint32{}, Lost: map[string]bool{}}
}

// see changes what informers show.
func (e *Etcd) see(change func(*View)) *Etcd {
	c, v := *e, *e.View
	change(&v)
	c.View = &v
	return &c
}

// RaiseEpoch is the write with which a hub begins.
func (e *Etcd) RaiseEpoch(next func(uint64) uint64) *Etcd {
	return e.see(func(v *View) {
		v.Revision++
		v.Epoch = next(v.Epoch)
	})
}

// Put makes an object what it should be.
func (e *Etcd) Put(uid string, o Object) *Etcd {
	objects := maps.Clone(e.View.Objects)
	objects[uid] = o
	return e.with(objects)
}

// Delete removes an object at once.
func (e *Etcd) Delete(uid string) *Etcd {
	objects := maps.Clone(e.View.Objects)
	delete(objects, uid)
	c := e.with(objects)
	c.Reports = maps.Clone(e.Reports)
	delete(c.Reports, uid)
	return c
}

func (e *Etcd) with(objects map[string]Object) *Etcd {
	c := *e
	c.View = e.View.with(objects)
	c.View.Revision++
	return &c
}

// Restore is this snapshot, in use again as another timeline. An empty
// incarnation keeps the one there was.
func (e *Etcd) Restore(timeline int, incarnation string) *Etcd {
	c := e.see(func(v *View) { v.Timeline = timeline })
	if incarnation != "" {
		c.Incarnation = incarnation
	}
	return c
}

// Skip lets revisions pass that concern other nodes.
func (e *Etcd) Skip(revisions uint64) *Etcd {
	return e.see(func(v *View) { v.Revision += revisions })
}

func (e *Etcd) wrote(uid string, w Written) *Etcd {
	c := *e
	c.Reports = maps.Clone(e.Reports)
	c.Reports[uid] = w
	return &c
}

// away changes the Node object, if there is one.
func (e *Etcd) away(is bool) *Etcd {
	if _, registered := e.Reports[""]; !registered || e.View.Away == is {
		return e
	}
	return e.see(func(v *View) { v.Away = is })
}

func (e *Etcd) event(name string, content uint32) *Etcd {
	c := *e
	c.Events = maps.Clone(e.Events)
	c.Events[name] = content
	return &c
}

func (e *Etcd) lost(name string) *Etcd {
	if e.Lost[name] {
		return e
	}
	c := *e
	c.Lost = maps.Clone(e.Lost)
	c.Lost[name] = true
	return &c
}

// EventName is what a journal entry is known by.
func EventName(store string, m Mark) string { return eventName(store, m.Boot, m.Seq) }

func eventName(store string, boot, seq uint64) string {
	return fmt.Sprintf("%s.%x.%x", store, boot, seq)
}
