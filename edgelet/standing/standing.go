package standing

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// setting is where the standing is kept.
const setting = "identity.standing"

// How often a refused node asks: half an hour costs some 150 KB a day.
const (
	firstWait = 30 * time.Second
	lastWait  = 30 * time.Minute
)

// Settings is the durable store; edgelet/state is one.
type Settings interface {
	Setting(name string) string
	PutSetting(name, value string) error
}

// Standing of a node.
type Standing struct {
	// State is Good, or a code of enrollment.Problem: Revoked, Cloned, Removed,
	// NodeKey (another board took the name), NodeUnknown.
	State   string    `json:"state"`
	Message string    `json:"message,omitempty"`
	Since   time.Time `json:"since,omitzero"` // when the node first heard it, by its own clock
}

// Good is the state of a node that is one of the cluster's.
const Good = "Good"

// Keeper keeps it. Safe for concurrent use.
type Keeper struct {
	settings Settings
	log      *slog.Logger
	now      func() time.Time
	wait     time.Duration // for the first repeat

	mu      sync.Mutex
	current Standing
}

// New reads what was last heard, and says it if it isn't good. now may be nil.
func New(settings Settings, log *slog.Logger, now func() time.Time) *Keeper {
	if now == nil {
		now = time.Now
	}
	k := &Keeper{settings: settings, log: log, now: now, wait: firstWait, current: Standing{State: Good}}
	text := settings.Setting(setting)
	if text == "" {
		return k
	}
	var s Standing
	if err := json.Unmarshal([]byte(text), &s); err != nil || s.State == "" {
		log.Warn("what the cluster last said of this node can't be read; it will say it again", "setting", setting, "text", text)
		return k
	}
	k.current = s
	if s.State != Good {
		k.say()
	}
	return k
}

// Current is what was last heard.
func (k *Keeper) Current() Standing {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current
}

// Told takes what came over the fleet link; nil is in good standing.
func (k *Keeper) Told(s *fleet.Standing) {
	switch s.GetState() {
	case fleet.StandingState_REVOKED:
		k.set("Revoked", s.GetMessage())
	case fleet.StandingState_CLONED:
		k.set("Cloned", s.GetMessage())
	case fleet.StandingState_REMOVED:
		k.set("Removed", s.GetMessage())
	case fleet.StandingState_GOOD:
		k.set(Good, "")
	default:
		if s == nil {
			k.set(Good, "")
			return
		}
		k.set("NodeUnknown", s.GetMessage())
	}
}

// Await asks until the cluster knows the node again, or until it can't be reached:
// then the caller tries in its own way. readmitted is true if it was refused and no
// longer is: nothing else kept it out. ask is identity.Renew.
func (k *Keeper) Await(ctx context.Context, ask func(context.Context) error) (readmitted bool) {
	for wait := k.wait; ; wait = min(2*wait, lastWait) {
		err := ask(ctx)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil:
			k.set(Good, "")
			return readmitted
		case !enrollment.Ended(err):
			k.log.Warn("the cluster refuses this node, and why couldn't be asked", "err", err)
			return false
		}
		readmitted = true
		problem, _ := enrollment.ProblemOf(err)
		k.set(problem.Code, enrollment.Message(err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// set writes only what changed: a node that is welcomed a thousand times writes nothing.
func (k *Keeper) set(state, message string) {
	k.mu.Lock()
	before := k.current
	if before.State == state && before.Message == message {
		k.mu.Unlock()
		return
	}
	k.current = Standing{State: state, Message: message, Since: k.now().UTC().Truncate(time.Second)}
	if before.State == state {
		k.current.Since = before.Since
	}
	now := k.current
	k.mu.Unlock()
	k.say()
	text := ""
	if now.State != Good {
		raw, err := json.Marshal(now)
		if err != nil {
			panic(fmt.Sprintf("standing: %v", err)) // strings and a time always marshal
		}
		text = string(raw)
	}
	if err := k.settings.PutSetting(setting, text); err != nil {
		k.log.Warn("what the cluster says of this node is not durable", "err", err)
	}
}

func (k *Keeper) say() {
	s := k.Current()
	switch s.State {
	case Good:
		k.log.Info("the cluster takes this node as one of its own")
	case "Removed":
		k.log.Error("this node was removed from the cluster: its pods are stopped, and it gets none until it is readmitted", "why", s.Message, "since", s.Since)
	default:
		k.log.Error("the cluster refuses this node: its pods go on as they are, and nothing is ordered or reported until it is readmitted",
			"state", s.State, "why", s.Message, "since", s.Since)
	}
}
