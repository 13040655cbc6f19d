package standing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// memory is a state file's settings.
type memory struct {
	values map[string]string
	writes int
	err    error
}

func (m *memory) Setting(name string) string { return m.values[name] }

func (m *memory) PutSetting(name, value string) error {
	m.writes++
	if m.err != nil {
		return m.err
	}
	m.values[name] = value
	return nil
}

func keeper(m *memory) (*Keeper, *bytes.Buffer) {
	var log bytes.Buffer
	return New(m, slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return time.Unix(2e9, 5) }), &log
}

func TestWhatWasSaidOutlivesTheAgent(t *testing.T) {
	m := &memory{values: map[string]string{}}
	k, log := keeper(m)
	if s := k.Current(); s.State != Good || log.Len() > 0 {
		t.Errorf("at first: %+v, %s", s, log)
	}
	for range 3 {
		k.Told(nil)
	}
	if m.writes != 0 {
		t.Errorf("a node in good standing wrote %d times", m.writes)
	}
	for range 3 {
		k.Told(&fleet.Standing{State: fleet.StandingState_REVOKED, Message: "stolen"})
	}
	if m.writes != 1 || strings.Count(log.String(), "refuses this node") != 1 || !strings.Contains(log.String(), "stolen") {
		t.Errorf("%d writes; log %s", m.writes, log)
	}
	again, log := keeper(m)
	if s := again.Current(); s.State != "Revoked" || s.Message != "stolen" || !s.Since.Equal(time.Unix(2e9, 0)) || !strings.Contains(log.String(), "stolen") {
		t.Errorf("after a start: %+v; log %s", s, log)
	}
	again.Told(nil)
	if third, log := keeper(m); third.Current().State != Good || log.Len() > 0 {
		t.Errorf("after readmission: %+v; log %s", third.Current(), log)
	}
	// A disk that is full is no reason not to know.
	m.err = errors.New("disk full")
	again.Told(&fleet.Standing{State: fleet.StandingState_REMOVED, Message: "deleted"})
	if s := again.Current(); s.State != "Removed" {
		t.Errorf("with a full disk: %+v", s)
	}
	// Nor is something unreadable.
	if k, _ := keeper(&memory{values: map[string]string{setting: "{"}}); k.Current().State != Good {
		t.Errorf("unreadable: %+v", k.Current())
	}
}

func TestEveryRefusalHasAState(t *testing.T) {
	for state, want := range map[fleet.StandingState]string{
		fleet.StandingState_GOOD: Good, fleet.StandingState_REVOKED: "Revoked", fleet.StandingState_CLONED: "Cloned",
		fleet.StandingState_REMOVED: "Removed", fleet.StandingState_STANDING_UNKNOWN: "NodeUnknown", 99: "NodeUnknown",
	} {
		k, _ := keeper(&memory{values: map[string]string{}})
		k.Told(&fleet.Standing{State: state, Message: "m"})
		if got := k.Current().State; got != want {
			t.Errorf("%v: %s, want %s", state, got, want)
		}
	}
}

func TestARefusedNodeAsksEverLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{values: map[string]string{}}
		k, _ := keeper(m)
		refusal := error(fmt.Errorf("renew: %w: stolen", enrollment.ErrRevoked))
		var asked []time.Time
		readmitted := k.Await(t.Context(), func(context.Context) error {
			asked = append(asked, time.Now())
			if len(asked) == 40 {
				return nil
			}
			return refusal
		})
		if !readmitted {
			t.Error("not readmitted")
		}
		// A broker that refuses a node which the cluster knows is no readmission: it
		// would be tried again at once, for ever.
		if k.Await(t.Context(), func(context.Context) error { return nil }) {
			t.Error("readmitted though it was never refused")
		}
		var last time.Duration
		for i := 1; i < len(asked); i++ {
			wait := asked[i].Sub(asked[i-1])
			if wait < last || wait > lastWait {
				t.Errorf("wait %d is %v after %v", i, wait, last)
			}
			last = wait
		}
		if last != lastWait || k.Current().State != Good {
			t.Errorf("last wait %v, standing %+v", last, k.Current())
		}
		// Who can't be asked says nothing: the link tries in its own way.
		k.Told(&fleet.Standing{State: fleet.StandingState_CLONED, Message: "two"})
		began := time.Now()
		k.Await(t.Context(), func(context.Context) error { return errors.New("no route to host") })
		if k.Current().State != "Cloned" || time.Since(began) != 0 {
			t.Errorf("after no answer: %+v, %v", k.Current(), time.Since(began))
		}
		for code, err := range map[string]error{"NodeKey": enrollment.ErrNodeKey, "NodeUnknown": enrollment.ErrNodeUnknown, "Cloned": enrollment.ErrCloned} {
			ctx, cancel := context.WithCancel(t.Context())
			k.Await(ctx, func(context.Context) error { time.AfterFunc(time.Second, cancel); return fmt.Errorf("%w: so", err) })
			if k.Current().State != code {
				t.Errorf("%v: %+v", err, k.Current())
			}
		}
	})
}
