package pods

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

// Object is a pod as the node has it: raw bytes that are decoded on use.
type Object struct {
	Namespace, Name, UID string
	// Hash changes with Raw.
	Hash string
	Raw  []byte
	// Static says that the pod comes from this node's own folder.
	Static bool
	// Trace, if any, gets the steps this node takes with the pod.
	Trace *trace.NodeTimes
}

// Report is what the control plane is told of a pod. Latest wins.
type Report struct {
	Namespace, Name, UID string
	Status               *v1.PodStatus
	// Gone says that containers, sandbox, volumes and cgroup are no more.
	Gone bool
	// Mirror is the raw pod of a static pod, for its mirror in the API.
	Mirror []byte
	Trace  *trace.NodeTimes
}

// Event is an event about a pod, to be kept until the control plane has it.
type Event struct {
	Namespace, Name, UID string
	// FieldPath names a container, as in spec.containers{name}; may be empty.
	FieldPath             string
	Type, Reason, Message string
	Time                  time.Time
	// Count is how often it was so since it was last told; 0 is 1.
	Count uint32
}

// Store is the node's durable state, as far as pods are concerned.
// Implementations are safe for concurrent use.
type Store interface {
	// Desired returns the pods this node should run. complete says that all of them
	// were told by a control plane that knows and could be read: only then does a
	// pod's absence stop it.
	Desired() (pods []Object, complete bool, err error)
	// Object returns an object that pods refer to, by kind.
	Object(kind, namespace, name string) (raw []byte, found bool, err error)
	// Changed is signalled when Desired or an Object changed.
	Changed() <-chan struct{}

	// Report hands over a report at once; it may become durable a little later: the
	// next PutRecord takes it along.
	Report(Report) error
	// Event keeps an event until it is delivered.
	Event(Event) error

	// Record is a pod's own memory across reboots: opaque here, nil if there is none.
	Record(uid string) ([]byte, error)
	// PutRecord returns when the record is durable.
	PutRecord(uid string, record []byte) error
	DeleteRecord(uid string) error
}
