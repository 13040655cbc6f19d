package linkcheck

import (
	"fmt"

	"github.com/coracle-edge/coracle/test/linkcheck/play"
)

// Change of what the node should have.
type Change struct {
	UID    string
	Object *play.Object // nil: it goes
}

func (c Change) String() string {
	if c.Object == nil {
		return c.UID + " goes"
	}
	return c.Object.Raw
}

// Scenario is a part of everything that can happen, small enough to be explored.
type Scenario struct {
	Name, About string
	// Objects that the node should have at first, by UID.
	Objects map[string]play.Object
	// Running on the node at first; NodeItself has the node report itself.
	Running []string
	// Script of changes, in order.
	Script []Change
	Limits [budgets]uint8
	// Settled begins when all is in step, not with the first Hello; Before is what
	// happened then.
	Settled bool
	Before  func(*World) (*World, error)
	// Short is how deep the exploration goes that is always run. Wide goes deeper;
	// Deep goes deepest, with no more than Faults in all on one way.
	Short, Wide, Deep int
	Faults            uint8

	// JournalRoom is how many entries fit into the journal, and JournalPerMessage
	// how many into a message. 100 if 0.
	JournalRoom, JournalPerMessage int
	// Alone has the hub send each part in a message of its own.
	Alone bool
	// Expires is how long orders live, in seconds; 0 is for ever.
	Expires int64

	Transitions *play.Transitions
}

// begin is the scenario's first state.
func (s *Scenario) begin() (*World, error) {
	w := start(s)
	var err error
	if s.Settled {
		w, err = w.calmed()
	}
	if err == nil && s.Before != nil {
		w, err = s.Before(w)
	}
	if err != nil {
		return nil, fmt.Errorf("scenario %s never begins: %w", s.Name, err)
	}
	w.spent = [budgets]uint8{}
	return w, nil
}

// calmed is w once all is in step.
func (w *World) calmed() (*World, error) {
	for range maxSettle {
		_, what := w.unsettled()
		if what == "" {
			return w, nil
		}
		next, step := w.onward()
		if step.none || next.failure != nil {
			return nil, fmt.Errorf("%s, %v", what, next.failure)
		}
		w = next
	}
	return nil, fmt.Errorf("not in step after %d steps", maxSettle)
}

// takenOver is w after another hub has begun while the first one slept, and has
// had the node carry out the script's first change.
func (w *World) takenOver() (*World, error) {
	asleep, key := w.hubs[0], w.hubKey[0]
	w = w.clone()
	w.killHub(0)
	w.startHub(1, true)
	w.change()
	w, err := w.calmed()
	if err != nil {
		return nil, err
	}
	w = w.clone()
	w.hubs[0], w.hubKey[0] = asleep, key
	return w, nil
}

// lost is w after a snapshot, after which another hub has begun and has had the
// node carry out the script's first change. No hub is left.
func (w *World) lost() (*World, error) {
	w, err := w.apply(action{kind: snapshot}).takenOver()
	if err != nil {
		return nil, err
	}
	w = w.clone()
	w.killHub(0)
	w.killHub(1)
	return w, nil
}

const (
	small = 300
	half  = 30 << 10  // two don't fit into one order
	large = 100 << 10 // is fetched
)

func pod(uid string, version int) play.Object {
	return play.NewObject(play.Pod, uid, version, small, false)
}

func set(uid string, o play.Object) Change { return Change{uid, &o} }

func gone(uid string) Change { return Change{uid, nil} }

func sized(kind, uid string, version, size int) play.Object {
	return play.NewObject(kind, uid, version, size, false)
}

func deleting(uid string) play.Object { return play.NewObject(play.Pod, uid, 1, small, true) }
