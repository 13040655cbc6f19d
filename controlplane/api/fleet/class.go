package fleet

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// LabelLinkClass on a Node says what kind of link it has; the hub follows it
	// at once. A node that registers sets it from its --link-class.
	LabelLinkClass = "coracle.dev/link-class"
	// AnnotationDataBudget on a Node is how many bytes it should not exceed in a
	// day, sent and received, as a Kubernetes quantity: 5Mi.
	AnnotationDataBudget = "coracle.dev/data-budget"

	// DefaultClass is that of a node of which nothing is said.
	DefaultClass = "lan"
)

// Limits of what a class may say. Those of the keepalive are also the broker's.
const (
	MinKeepalive = 5 * time.Second
	MaxKeepalive = 4 * time.Hour
	maxJitter    = 10 * time.Minute
	maxSlots     = 1000
	// maxGather and maxAnswer together stay well below the 20 s after which a
	// report is sent again.
	maxGather = 5 * time.Second
	maxAnswer = 5 * time.Second
	maxGrace  = 5 * time.Minute
)

// ErrClass is returned for a link class that doesn't exist, or whose values
// can't be kept.
var ErrClass = errors.New("link class")

// LinkClass is what both sides do on one kind of link. docs/fleet-protocol.md
// has the values and their reasons.
type LinkClass struct {
	Name string
	// Keepalive is how often an idle node says that it is there; silence is
	// noticed after 1.5 of it.
	Keepalive time.Duration
	// Jitter is the time over which nodes that were cut off together come back,
	// in so many Slots.
	Jitter time.Duration
	Slots  int
	// Retry is the longest wait between attempts to connect that fail.
	Retry time.Duration
	// Gather is how long the node's reports wait for others to travel with, and
	// Answer how long the hub's answers to them do.
	Gather, Answer time.Duration
	// Grace is how long a connection that broke may be replaced before the node
	// is called away.
	Grace time.Duration
}

// LinkClasses by name.
type LinkClasses map[string]LinkClass

// DefaultClasses are those that are built in.
func DefaultClasses() LinkClasses {
	out := LinkClasses{}
	for _, c := range []LinkClass{
		{"lan", 30 * time.Second, 2 * time.Second, 20, 8 * time.Second, 2 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond},
		{"wifi", time.Minute, 4 * time.Second, 20, 20 * time.Second, 5 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond},
		{"lte", 4 * time.Minute, 10 * time.Second, 20, 2 * time.Minute, 250 * time.Millisecond, 500 * time.Millisecond, 15 * time.Second},
		{"satellite", 15 * time.Minute, 20 * time.Second, 20, 8 * time.Minute, 2 * time.Second, 3 * time.Second, 30 * time.Second},
	} {
		out[c.Name] = c
	}
	return out
}

// CheckClass returns an error that lists the classes if name isn't one of them.
func CheckClass(name string) error {
	classes := DefaultClasses()
	if _, ok := classes[name]; !ok {
		return fmt.Errorf("%w %q: want one of %s", ErrClass, name, strings.Join(slices.Sorted(maps.Keys(classes)), ", "))
	}
	return nil
}

// Of returns the class of the first of these names that is one, the default
// class if none is.
func (c LinkClasses) Of(names ...string) LinkClass {
	for _, name := range names {
		if class, ok := c[name]; ok {
			return class
		}
	}
	return c[DefaultClass]
}

// Set changes a class as text says: NAME:KEY=VALUE,... with the keys keepalive,
// jitter, retry, gather, answer and grace (durations) and slots. A shorter
// keepalive shortens what retry isn't said to be.
func (c LinkClasses) Set(text string) error {
	name, rest, ok := strings.Cut(text, ":")
	class, known := c[name]
	if !ok || !known {
		return fmt.Errorf("%w %q: want NAME:KEY=VALUE,... with NAME one of %s", ErrClass, text, strings.Join(slices.Sorted(maps.Keys(c)), ", "))
	}
	durations := map[string]*time.Duration{"keepalive": &class.Keepalive, "jitter": &class.Jitter, "retry": &class.Retry,
		"gather": &class.Gather, "answer": &class.Answer, "grace": &class.Grace}
	for pair := range strings.SplitSeq(rest, ",") {
		key, value, _ := strings.Cut(pair, "=")
		var err error
		switch to := durations[key]; {
		case to != nil:
			*to, err = time.ParseDuration(value)
		case key == "slots":
			class.Slots, err = strconv.Atoi(value)
		default:
			return fmt.Errorf("%w %s: %q is no setting: want keepalive, jitter, slots, retry, gather, answer or grace", ErrClass, name, key)
		}
		if err != nil {
			return fmt.Errorf("%w %s: %s=%q: %w", ErrClass, name, key, value, err)
		}
	}
	if !strings.Contains(","+rest, ",retry=") {
		class.Retry = min(class.Retry, class.Keepalive*2/3)
	}
	if err := class.Validate(); err != nil {
		return err
	}
	c[name] = class
	return nil
}

// Validate says which value is outside its limits.
func (c LinkClass) Validate() error {
	for _, x := range []struct {
		name            string
		value, min, max time.Duration
	}{
		{"keepalive", c.Keepalive, MinKeepalive, MaxKeepalive},
		{"jitter", c.Jitter, 0, maxJitter},
		// A node that is there must have tried before silence means away.
		{"retry", c.Retry, time.Second, c.Keepalive * 2 / 3},
		{"gather", c.Gather, 0, maxGather},
		{"answer", c.Answer, 0, maxAnswer},
		{"grace", c.Grace, 0, maxGrace},
	} {
		if x.value < x.min || x.value > x.max {
			return fmt.Errorf("%w %s: %s is %s: want %s to %s", ErrClass, c.Name, x.name, x.value, x.min, x.max)
		}
	}
	if c.Slots < 1 || c.Slots > maxSlots {
		return fmt.Errorf("%w %s: slots is %d: want 1 to %d", ErrClass, c.Name, c.Slots, maxSlots)
	}
	return nil
}

// Slot is where in the window of a class a node comes back. It is always the
// same, so that it isn't written to flash again.
func (c LinkClass) Slot(node string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	return int(h.Sum32() % uint32(max(c.Slots, 1)))
}
