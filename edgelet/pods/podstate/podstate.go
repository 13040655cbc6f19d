package podstate

import (
	"errors"
	"fmt"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// component is what events say they come from: clients look for a kubelet's.
const component = "kubelet"

// Store is a [pods.Store] in a state file.
type Store struct{ state *state.Store }

var _ pods.Store = (*Store)(nil)

// New returns a Store that keeps everything in s.
func New(s *state.Store) *Store { return &Store{s} }

// Desired implements [pods.Store]. Pods that can't be read are left out, and
// then nothing may be concluded from what is absent.
func (s *Store) Desired() ([]pods.Object, bool, error) {
	list, err := s.state.Desired(state.KindPod)
	unreadable := errors.Is(err, state.ErrDamaged) || errors.Is(err, fleet.ErrSealed)
	if err != nil && !unreadable {
		return nil, false, err
	}
	out := make([]pods.Object, len(list))
	for i, o := range list {
		out[i] = pods.Object{Namespace: o.Namespace, Name: o.Name, UID: o.UID, Hash: o.Hash, Raw: o.Raw, Trace: s.state.Times(o.UID)}
	}
	return out, !unreadable && s.state.Complete(), nil
}

// Object implements [pods.Store].
func (s *Store) Object(kind, namespace, name string) ([]byte, bool, error) {
	o, found, err := s.state.Get(kind, namespace, name)
	return o.Raw, found, err
}

// Services returns the raw Services of this node.
func (s *Store) Services() [][]byte {
	list, _ := s.state.Desired(state.KindService) // those that can be read
	out := make([][]byte, len(list))
	for i := range list {
		out[i] = list[i].Raw
	}
	return out
}

// Changed implements [pods.Store].
func (s *Store) Changed() <-chan struct{} { return s.state.Changed() }

// Report implements [pods.Store].
func (s *Store) Report(r pods.Report) error {
	status, err := r.Status.Marshal()
	if err != nil {
		return fmt.Errorf("encoding the status of pod %s/%s: %w", r.Namespace, r.Name, err)
	}
	out := state.PodReport{Namespace: r.Namespace, Name: r.Name, UID: r.UID, Status: status, Gone: r.Gone, Trace: r.Trace}
	if len(r.Mirror) > 0 {
		if _, out.Mirror, err = kubeobj.Split(r.Mirror); err != nil {
			return err
		}
	}
	return s.state.PutPodStatus(r.UID, out)
}

// Event implements [pods.Store].
func (s *Store) Event(e pods.Event) error {
	return s.state.Journal(state.Entry{Kind: state.EntryEvent, ObjectKind: "Pod", Namespace: e.Namespace, Name: e.Name, UID: e.UID,
		FieldPath: e.FieldPath, Type: e.Type, Reason: e.Reason, Message: e.Message, Component: component, Count: e.Count})
}

// Record implements [pods.Store].
func (s *Store) Record(uid string) ([]byte, error) {
	raw, _, err := s.state.PodRecord(uid)
	return raw, err
}

// PutRecord implements [pods.Store].
func (s *Store) PutRecord(uid string, record []byte) error { return s.state.PutPodRecord(uid, record) }

// DeleteRecord implements [pods.Store].
func (s *Store) DeleteRecord(uid string) error { return s.state.PutPodRecord(uid, nil) }
