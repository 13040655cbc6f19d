package linkcheck

import (
	"context"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"google.golang.org/protobuf/proto"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/test/linkcheck/play"
)

// mutation is a rule that is broken on purpose: production's transitions are
// wrapped in functions that change what goes in, what comes out, or what is left
// behind. Production code has no switch for it.
type mutation struct {
	rule     string // as it would be broken
	scenario string
	breaks   []Invariant // one of these
	depth    int         // 7 if less
	limits   func(*[budgets]uint8)
	mutate   func(*play.Transitions)
}

// field of a machine or peer, to be read and set.
func field[T any](of any, name string) *T {
	f := reflect.ValueOf(of).Elem().FieldByName(name)
	if f.Type() != reflect.TypeFor[T]() {
		panic("linkcheck: field " + name + " is a " + f.Type().String())
	}
	return (*T)(unsafe.Pointer(f.UnsafeAddr()))
}

// inner is a field of an unexported type.
func inner(of any, name string) reflect.Value {
	f := reflect.ValueOf(of).Elem().FieldByName(name)
	return reflect.NewAt(f.Type(), f.Addr().UnsafePointer()).Elem()
}

// down changes a message before the node's machine sees it.
func down(change func(*link.Machine, *fleet.Down)) func(*play.Transitions) {
	return func(t *play.Transitions) {
		real := t.Down
		t.Down = func(m *link.Machine, now time.Duration, unix int64, random float64, d *fleet.Down) []link.Output {
			d = proto.CloneOf(d)
			change(m, d)
			return real(m, now, unix, random, d)
		}
	}
}

// order changes an order before the node's machine sees it.
func orders(change func(*link.Machine, *fleet.Order)) func(*play.Transitions) {
	return down(func(m *link.Machine, d *fleet.Down) {
		if d.Order != nil {
			change(m, d.Order)
		}
	})
}

// outputs changes what the node's machine decides on a message.
func outputs(change func(*link.Machine, *fleet.Down, []link.Output) []link.Output) func(*play.Transitions) {
	return func(t *play.Transitions) {
		real := t.Down
		t.Down = func(m *link.Machine, now time.Duration, unix int64, random float64, d *fleet.Down) []link.Output {
			return change(m, d, real(m, now, unix, random, d))
		}
	}
}

// after does something to the peer whenever its timers are served.
func after(change func(*fleethub.Peer)) func(*play.Transitions) {
	return func(t *play.Transitions) {
		real := t.HubTick
		t.HubTick = func(p *fleethub.Peer, now time.Duration) []fleethub.Output {
			out := real(p, now)
			change(p)
			return out
		}
	}
}

// up changes a message before the hub's peer sees it.
func up(change func(*fleethub.Peer, *fleet.Up)) func(*play.Transitions) {
	return func(t *play.Transitions) {
		real := t.Up
		t.Up = func(p *fleethub.Peer, now time.Duration, u *fleet.Up) ([]fleethub.Output, bool) {
			u = proto.CloneOf(u)
			change(p, u)
			return real(p, now, u)
		}
	}
}

// versions changes every version that the node tells the hub.
func versions(change func(*fleethub.Peer, *fleet.Version)) func(*play.Transitions) {
	return up(func(p *fleethub.Peer, u *fleet.Up) {
		for _, v := range []*fleet.Version{u.GetHello().GetVersion(), u.GetAck().GetCurrent()} {
			if v != nil && len(v.Incarnation) > 0 {
				change(p, v)
			}
		}
	})
}

// only leaves these faults.
func only(limits map[int]uint8) func(*[budgets]uint8) {
	return func(l *[budgets]uint8) {
		*l = [budgets]uint8{}
		for b, n := range limits {
			l[b] = n
		}
	}
}

// asOlder gives a version to a hub that lets it go on.
func asOlder(p *fleethub.Peer, v *fleet.Version) {
	mine := p.Version()
	v.Incarnation, v.Epoch, v.Revision = []byte(mine.Incarnation), mine.Epoch-1, 0
}

func both(changes ...func(*play.Transitions)) func(*play.Transitions) {
	return func(t *play.Transitions) {
		for _, c := range changes {
			c(t)
		}
	}
}

// asNewer gives an order the version that the node would carry out next.
func asNewer(m *link.Machine, o *fleet.Order) {
	v := m.Version()
	v.Counter++
	o.Version = v.Proto()
}

const never = time.Duration(1) << 50

func mutations() []mutation {
	return []mutation{
		{
			rule: "epochs aren't compared", scenario: "deposed", breaks: []Invariant{NoOlderOrder},
			mutate: both(
				orders(func(m *link.Machine, o *fleet.Order) {
					if o.Version.GetEpoch() < m.Version().Epoch {
						asNewer(m, o)
					}
				}),
				versions(func(p *fleethub.Peer, v *fleet.Version) {
					if v.Epoch > p.Version().Epoch {
						asOlder(p, v)
					}
				}),
			),
		},
		{
			rule: "incarnations aren't compared", scenario: "restore", breaks: []Invariant{NoOlderOrder},
			mutate: both(
				orders(func(m *link.Machine, o *fleet.Order) {
					if have := m.Version().Incarnation; have != "" && have != string(o.Version.GetIncarnation()) {
						asNewer(m, o)
					}
				}),
				versions(func(p *fleethub.Peer, v *fleet.Version) {
					if string(v.Incarnation) != p.Version().Incarnation {
						asOlder(p, v)
					}
				}),
			),
		},
		{
			rule: "revisions aren't compared", scenario: "rollback", breaks: []Invariant{NoOlderOrder},
			mutate: both(
				orders(func(m *link.Machine, o *fleet.Order) {
					o.Version.Revision = max(o.Version.Revision, m.Version().Revision)
				}),
				versions(func(p *fleethub.Peer, v *fleet.Version) { v.Revision = min(v.Revision, p.Version().Revision) }),
			),
		},
		{
			rule: "the names of hubs in one epoch aren't compared", scenario: "rollback-epoch", breaks: []Invariant{NoOlderOrder},
			mutate: both(
				orders(func(m *link.Machine, o *fleet.Order) {
					if have := m.Version(); have.Epoch == o.Version.GetEpoch() {
						o.Version.Hub = []byte(have.Hub)
					}
				}),
				versions(func(p *fleethub.Peer, v *fleet.Version) {
					if mine := p.Version(); mine.Epoch == v.GetEpoch() {
						v.Hub = []byte(mine.Hub)
					}
				}),
			),
		},
		{
			rule: "the node takes something away for a hub that hasn't synced", scenario: "unsynced", breaks: []Invariant{StopsOnlyByOrder},
			mutate: orders(func(_ *link.Machine, o *fleet.Order) { o.Synced = true }),
		},
		{
			rule: "a hub says that it has synced before it has", scenario: "unsynced", breaks: []Invariant{StopsOnlyByOrder},
			mutate: func(t *play.Transitions) { t.Synced = func(bool) bool { return true } },
		},
		{
			// And says that it has come to what the order says.
			rule: "the node applies a delta to a wrong base", scenario: "reversal", breaks: []Invariant{Converges}, depth: 9,
			mutate: func(t *play.Transitions) {
				real := t.Down
				t.Down = func(m *link.Machine, now time.Duration, unix int64, random float64, d *fleet.Down) []link.Output {
					o := d.GetOrder()
					if o == nil || o.GetList() {
						return real(m, now, unix, random, d)
					}
					d = proto.CloneOf(d)
					set := m.Set().Clone()
					for _, uid := range o.Removes {
						delete(set, uid)
					}
					for _, obj := range o.Upserts {
						set[obj.Uid] = fleet.Hash(obj.Hash)
					}
					base, digest := m.Set().Digest(), set.Digest()
					d.Order.Base, d.Order.Digest = base[:], digest[:]
					out := real(m, now, unix, random, d)
					if order := inner(m, "order"); !order.IsNil() {
						field[link.Decision](order.Interface(), "decision").Message = string(o.Digest)
					}
					return out
				}
				stored := t.Stored
				t.Stored = func(m *link.Machine, err error) []link.Output {
					digest := field[link.Decision](inner(m, "order").Interface(), "decision").Message
					out := stored(m, err)
					for _, o := range out {
						if a, ok := o.(link.SendAck); ok && digest != "" && err == nil {
							a.Ack.Digest, a.Ack.Message = []byte(digest), ""
						}
					}
					return out
				}
			},
		},
		{
			rule: "the node releases reports without a verdict", scenario: "network", breaks: []Invariant{NothingLostOrTwice},
			limits: func(l *[budgets]uint8) { l[says] = 1 },
			mutate: func(t *play.Transitions) {
				real := t.Outbox
				t.Outbox = func(m *link.Machine, now time.Duration, refs []link.Ref, journal bool) []link.Output {
					out := real(m, now, refs, journal)
					for _, r := range refs {
						out = append(out, link.ReleaseReport{UID: r.UID, Stamp: r.Stamp})
					}
					return out
				}
			},
		},
		{
			rule: "a verdict releases whatever is said of the pod by then", scenario: "reports", breaks: []Invariant{NothingLostOrTwice},
			mutate: func(t *play.Transitions) { t.Releases = func(fleet.StampID, fleet.StampID) bool { return true } },
		},
		{
			rule: "the node follows an older hub's Welcome", scenario: "takeover", breaks: []Invariant{Converges},
			mutate: down(func(m *link.Machine, d *fleet.Down) {
				if g := field[fleet.GrantID](m, "grant"); d.Welcome != nil && m.Phase() == link.Live && d.GetGrant().GetEpoch() < g.Epoch {
					g.Epoch = 0
				}
			}),
		},
		{
			rule: "the node acknowledges an order before it is stored", scenario: "node-crash", breaks: []Invariant{Converges},
			mutate: outputs(func(m *link.Machine, d *fleet.Down, out []link.Output) []link.Output {
				for i, o := range out {
					if s, ok := o.(link.StoreOrder); ok {
						return slices.Insert(out, i, link.Output(link.SendAck{Ack: &fleet.Ack{
							Version: s.Version.Proto(), Status: fleet.AckStatus_APPLIED, Current: s.Version.Proto(), Digest: d.GetOrder().GetDigest(),
						}}))
					}
				}
				return out
			}),
		},
		{
			rule: "the node says that an order is stored though the disk was full", scenario: "node-crash", breaks: []Invariant{Converges},
			mutate: func(t *play.Transitions) {
				real := t.Stored
				t.Stored = func(m *link.Machine, _ error) []link.Output { return real(m, nil) }
			},
		},
		{
			rule: "the node carries out an order twice", scenario: "hub-crash", breaks: []Invariant{NoOlderOrder}, depth: 9,
			limits: only(map[int]uint8{changes: 1, hubCrashes: 1, hubStarts: 1, hubTimers: 2, nodeTimers: 1}),
			mutate: orders(func(m *link.Machine, o *fleet.Order) {
				if fleet.Compare(m.Version(), fleet.VersionFrom(o.Version)) == fleet.Same {
					asNewer(m, o)
				}
			}),
		},
		{
			rule: "the node takes messages of any session", scenario: "lost-state", breaks: []Invariant{NothingLostOrTwice}, depth: 8,
			limits: only(map[int]uint8{notes: 1, stateLosses: 1, reorders: 1}),
			mutate: down(func(m *link.Machine, d *fleet.Down) {
				if d.Session != nil && d.Welcome == nil && m.Phase() == link.Live {
					d.Session, d.Seq = m.Session().Proto(), *field[uint64](m, "downSeq")+1
					d.Grant = field[fleet.GrantID](m, "grant").Proto()
				}
			}),
		},
		{
			rule: "the node carries out orders that have expired", scenario: "clock", breaks: []Invariant{NoOlderOrder},
			mutate: orders(func(_ *link.Machine, o *fleet.Order) { o.Expires = 0 }),
		},
		{
			rule: "the boot number isn't raised", scenario: "node-crash", breaks: []Invariant{Converges, NoSlotHeld},
			mutate: func(t *play.Transitions) { t.NextBoot = func(boot uint64) uint64 { return max(boot, 1) } },
		},
		{
			rule: "the node sends a report once", scenario: "reports", breaks: []Invariant{NoSlotHeld},
			mutate: func(t *play.Transitions) {
				real := t.Outbox
				t.Outbox = func(m *link.Machine, now time.Duration, refs []link.Ref, journal bool) []link.Output {
					out := real(m, now, refs, journal)
					flights := inner(m, "flights")
					for _, uid := range flights.MapKeys() {
						f := reflect.New(flights.Type().Elem())
						f.Elem().Set(flights.MapIndex(uid))
						*field[time.Duration](f.Interface(), "due") = never
						flights.SetMapIndex(uid, f.Elem())
					}
					return out
				}
			},
		},
		{
			rule: "the node ignores that a report was refused", scenario: "reports", breaks: []Invariant{NoSlotHeld},
			mutate: down(func(_ *link.Machine, d *fleet.Down) {
				if d.ReportAck != nil {
					d.ReportAck.Verdicts = slices.DeleteFunc(d.ReportAck.Verdicts, func(v *fleet.ReportVerdict) bool { return v.Verdict == fleet.Verdict_REJECTED })
				}
			}),
		},
		{
			rule: "an order that is being fetched outlives its connection", scenario: "large", breaks: []Invariant{Converges},
			mutate: func(t *play.Transitions) {
				real := t.Disconnected
				t.Disconnected = func(m *link.Machine) {
					order := inner(m, "order")
					before := reflect.New(order.Type()).Elem()
					before.Set(order)
					real(m)
					order.Set(before)
				}
			},
		},
		{
			rule: "the first of several orders counts as all", scenario: "lost-state", breaks: []Invariant{StopsOnlyByOrder},
			mutate: orders(func(_ *link.Machine, o *fleet.Order) { o.More = false }),
		},
		{
			rule: "the hub isn't told of an order that came between Hello and Welcome", scenario: "rollback", breaks: []Invariant{Converges}, depth: 9,
			limits: only(map[int]uint8{changes: 1, hubStarts: 1, nodeTimers: 1, rollbacks: 1, says: 1}),
			mutate: down(func(m *link.Machine, d *fleet.Down) {
				if d.Welcome != nil {
					*field[fleet.OrderVersion](m, "said") = m.Version()
				}
			}),
		},
		{
			rule: "stamps aren't compared", scenario: "takeover-reports", breaks: []Invariant{NothingLostOrTwice}, depth: 10,
			limits: only(map[int]uint8{says: 2, hubStarts: 1, nodeTimers: 1}),
			mutate: func(t *play.Transitions) { t.Obsoletes = func(fleet.StampID, fleet.StampID) bool { return true } },
		},
		{
			rule: "the hub answers reports before etcd has them", scenario: "network", breaks: []Invariant{NothingLostOrTwice},
			limits: func(l *[budgets]uint8) { l[says] = 1 },
			mutate: func(t *play.Transitions) { t.Early = true },
		},
		{
			rule: "the hub doesn't answer what is obsolete", scenario: "reports", breaks: []Invariant{NoSlotHeld},
			mutate: func(t *play.Transitions) {
				t.Answer = func(v fleet.Verdict) fleet.Verdict {
					if v == fleet.Verdict_OBSOLETE {
						return fleet.Verdict_VERDICT_UNKNOWN
					}
					return v
				}
			},
		},
		{
			rule: "journal entries of two boots have one name", scenario: "journal", breaks: []Invariant{NothingLostOrTwice},
			mutate: func(t *play.Transitions) {
				t.EventName = func(_ int, store string, _, seq uint64) string { return play.Real().EventName(0, store, 0, seq) }
			},
		},
		{
			rule: "each hub gives journal entries names of its own", scenario: "journal", breaks: []Invariant{NothingLostOrTwice},
			mutate: func(t *play.Transitions) {
				t.EventName = func(reign int, store string, boot, seq uint64) string {
					return play.Real().EventName(0, store, boot+100*uint64(reign), seq)
				}
			},
		},
		{
			rule: "a journal is answered to another state file", scenario: "lost-state", breaks: []Invariant{NothingLostOrTwice},
			mutate: func(t *play.Transitions) { t.SameFile = func(string, string) bool { return true } },
		},
		{
			rule: "the hub believes that a list was carried out as it stood", scenario: "takeover", breaks: []Invariant{Converges},
			mutate: up(func(p *fleethub.Peer, u *fleet.Up) {
				if sent := inner(p, "sent"); u.Ack != nil && !sent.IsNil() {
					order := *field[fleethub.SendOrder](sent.Interface(), "order")
					if order.List != nil {
						digest := order.List.Digest()
						u.Ack.Want, u.Ack.Digest = nil, digest[:]
					}
				}
			}),
		},
		{
			rule: "the hub sends an order once", scenario: "network", breaks: []Invariant{Converges},
			mutate: after(func(p *fleethub.Peer) {
				if sent := inner(p, "sent"); !sent.IsNil() {
					*field[time.Duration](sent.Interface(), "due") = never
				}
			}),
		},
		{
			rule: "the hub asks for no Hello", scenario: "network", breaks: []Invariant{Converges},
			mutate: after(func(p *fleethub.Peer) { *field[time.Duration](p, "reborn") = 0 }),
		},
		{
			rule: "the epoch isn't raised", scenario: "hub-crash", breaks: []Invariant{Converges, NoOlderOrder},
			mutate: func(t *play.Transitions) { t.NextEpoch = func(epoch uint64) uint64 { return max(epoch, 1) } },
		},
		{
			rule: "the hub adopts a node without being told to", scenario: "restore", breaks: []Invariant{StopsOnlyByOrder},
			mutate: func(t *play.Transitions) {
				real := t.Up
				t.Up = func(p *fleethub.Peer, now time.Duration, u *fleet.Up) ([]fleethub.Output, bool) {
					out, accept := real(p, now, u)
					if p.IsForeign() && p.Confirmed() {
						out = append(out, p.Adopt(now)...)
					}
					return out, accept
				}
			},
		},
		{
			rule: "a deposed hub goes on", scenario: "takeover-reports", breaks: []Invariant{NewestSaysAway, Converges},
			mutate: func(t *play.Transitions) { t.Depose = func(*fleethub.Peer) {} },
		},
	}
}

// TestEveryBrokenRuleIsFound: a checker that finds nothing proves nothing.
func TestEveryBrokenRuleIsFound(t *testing.T) {
	scenarios := map[string]*Scenario{}
	for _, s := range Scenarios() {
		scenarios[s.Name] = s
	}
	for _, m := range mutations() {
		t.Run(m.rule, func(t *testing.T) {
			s := scenarios[m.scenario]
			if s == nil {
				t.Fatalf("no scenario %q", m.scenario)
			}
			broken := *s
			broken.Transitions = play.Real()
			m.mutate(broken.Transitions)
			if m.limits != nil {
				m.limits(&broken.Limits)
			}
			r, err := Explore(context.Background(), &broken, Options{Depth: max(m.depth, 7), Workers: runtime.GOMAXPROCS(0)})
			switch {
			case err != nil:
				t.Fatal(err)
			case r.Violation == nil:
				t.Fatalf("not found among %d states", r.States)
			case !slices.Contains(m.breaks, r.Violation.Invariant):
				t.Errorf("another invariant than %q:\n%s", m.breaks, r.Violation)
			case len(r.Violation.Trace) == 0:
				t.Error("no trace")
			}
			t.Logf("found at depth %d among %d states in %v\n%s", r.Depth, r.States, r.Took.Round(time.Millisecond), r.Violation)
		})
	}
}
