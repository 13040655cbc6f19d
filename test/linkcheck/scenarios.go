package linkcheck

import "github.com/coracle-edge/coracle/test/linkcheck/play"

// Scenarios are all that are explored.
func Scenarios() []*Scenario {
	two := map[string]play.Object{"a": pod("a", 1), "b": pod("b", 1)}
	list := []*Scenario{
		{
			Name: "first-contact", About: "a new node; the network loses, repeats and reorders",
			Objects: two, Running: []string{NodeItself}, Script: []Change{gone("a"), set("c", pod("c", 1))}, Short: 6, Wide: 8, Deep: 14, Faults: 3,
			Limits: [budgets]uint8{losses: 2, copies: 1, reorders: 2, nodeTimers: 2, hubTimers: 2, breaks: 1, changes: 2},
		},
		{
			Name: "network", About: "changes over a network that loses, repeats and reorders; timers fire early",
			Objects: two, Script: []Change{gone("a"), set("c", pod("c", 1)), set("b", pod("b", 2))}, Settled: true, Short: 7, Wide: 10, Deep: 16, Faults: 3,
			Limits: [budgets]uint8{losses: 3, copies: 2, reorders: 2, nodeTimers: 2, hubTimers: 3, breaks: 2, changes: 3},
		},
		{
			Name: "alone", About: "the same with every part in a message of its own; the hub can't make an order",
			Objects: two, Script: []Change{gone("a"), set("c", pod("c", 1))}, Settled: true, Short: 7, Wide: 9, Deep: 14, Faults: 3, Alone: true,
			Limits: [budgets]uint8{losses: 1, copies: 1, reorders: 2, nodeTimers: 1, hubTimers: 2, breaks: 1, changes: 2, unables: 1, says: 1},
		},
		{
			Name: "node-crash", About: "power cuts before and after each write, a full disk",
			Objects: two, Script: []Change{gone("a"), set("c", pod("c", 1))}, Settled: true, Short: 7, Wide: 10, Deep: 14, Faults: 3,
			Limits: [budgets]uint8{losses: 1, nodeTimers: 1, hubTimers: 1, breaks: 1, crashes: 2, fulls: 2, flushes: 1, says: 1, changes: 2},
		},
		{
			Name: "hub-crash", About: "hubs die and are followed by others; hubs lose the broker",
			Objects: two, Running: []string{NodeItself}, Script: []Change{gone("a"), set("c", pod("c", 1))}, Settled: true, Short: 6, Wide: 8, Deep: 10, Faults: 3,
			Limits: [budgets]uint8{losses: 1, nodeTimers: 1, hubTimers: 2, breaks: 1, cuts: 1, hubCrashes: 2, hubStarts: 2, says: 1, changes: 2},
		},
		{
			Name: "unsynced", About: "hubs that speak before their informers have synced",
			Objects: two, Script: []Change{gone("a"), set("c", pod("c", 1))}, Settled: true, Short: 6, Wide: 9, Deep: 14, Faults: 3,
			Limits: [budgets]uint8{losses: 1, nodeTimers: 1, hubTimers: 1, breaks: 1, hubCrashes: 1, hubStarts: 2, hubBlind: 2, changes: 2},
		},
		{
			Name: "takeover", About: "another hub takes over; the deposed one lives, sleeps, wakes, sees more or less than the newer one",
			Objects: two, Script: []Change{gone("a"), set("c", pod("c", 1)), set("b", pod("b", 2))}, Settled: true, Short: 6, Wide: 8, Deep: 12, Faults: 3,
			Limits: [budgets]uint8{losses: 1, copies: 1, reorders: 1, nodeTimers: 1, hubTimers: 1, breaks: 2, cuts: 1, hubCrashes: 1, hubStarts: 2, changes: 3},
		},
		{
			Name: "reversal", About: "two hubs, of which one orders what the other knows to have been undone",
			Objects: two, Script: []Change{set("c", pod("c", 1)), gone("c"), gone("a")}, Settled: true, Short: 9, Wide: 20, Deep: 0, Faults: 3,
			Limits: [budgets]uint8{nodeTimers: 1, hubStarts: 1, changes: 3, reorders: 1},
		},
		{
			Name: "deposed", About: "a hub that was deposed in its sleep wakes, and the node may hear nobody else",
			Objects: two, Script: []Change{gone("a"), set("c", pod("c", 1)), gone("b")}, Settled: true, Before: (*World).takenOver, Short: 6, Wide: 9, Deep: 13, Faults: 3,
			Limits: [budgets]uint8{losses: 1, copies: 1, reorders: 2, nodeTimers: 3, hubTimers: 1, breaks: 2, changes: 2, hubCrashes: 1},
		},
		{
			Name: "takeover-reports", About: "reports while hubs take over from each other and both write",
			Objects: two, Running: []string{NodeItself}, Settled: true, Short: 5, Wide: 7, Deep: 8, Faults: 3,
			Limits: [budgets]uint8{losses: 1, nodeTimers: 1, hubTimers: 2, breaks: 1, hubCrashes: 1, hubStarts: 1, says: 3, crashes: 1, flushes: 1},
		},
		{
			Name: "restore", About: "etcd is restored from a snapshot as another incarnation; hubs of the lost past live on for a while",
			Objects: two, Script: []Change{set("c", pod("c", 1)), gone("a"), gone("b")}, Settled: true, Short: 6, Wide: 8, Deep: 10, Faults: 3,
			Limits: [budgets]uint8{losses: 1, nodeTimers: 1, breaks: 1, hubCrashes: 1, hubStarts: 2, restores: 1, adoptions: 1, changes: 3, says: 1},
		},
		{
			Name: "rollback", About: "etcd is restored from a snapshot and nobody says so",
			Objects: two, Script: []Change{set("c", pod("c", 1)), gone("a"), gone("b")}, Settled: true, Short: 6, Wide: 8, Deep: 10, Faults: 3,
			Limits: [budgets]uint8{losses: 1, nodeTimers: 1, breaks: 1, hubCrashes: 1, hubStarts: 2, rollbacks: 1, adoptions: 1, changes: 3, says: 1},
		},
		{
			Name: "rollback-epoch", About: "the hub after a restored snapshot has the epoch of one that was lost",
			Objects: two, Script: []Change{set("c", pod("c", 1)), gone("a"), gone("b")}, Settled: true, Before: (*World).lost, Short: 6, Wide: 8, Deep: 14, Faults: 3,
			Limits: [budgets]uint8{losses: 1, copies: 1, reorders: 1, nodeTimers: 2, hubTimers: 1, breaks: 1, hubCrashes: 1, hubStarts: 2, rollbacks: 1, adoptions: 1, changes: 2, says: 1},
		},
		{
			Name: "reports", About: "reports over a bad network; the API server refuses some; pods are deleted once they are gone",
			Objects: two, Running: []string{NodeItself}, Script: []Change{set("a", deleting("a")), gone("b")}, Settled: true, Short: 6, Wide: 7, Deep: 8, Faults: 3,
			Limits: [budgets]uint8{losses: 2, copies: 1, reorders: 1, nodeTimers: 2, hubTimers: 1, says: 3, refusals: 1, changes: 2, breaks: 1},
		},
		{
			Name: "journal", About: "the journal over a bad network, with crashes of both sides, and little room",
			Objects: map[string]play.Object{}, Settled: true, Short: 6, Wide: 8, Deep: 12, Faults: 3, JournalRoom: 2, JournalPerMessage: 1,
			Limits: [budgets]uint8{losses: 2, copies: 1, reorders: 1, nodeTimers: 2, breaks: 1, crashes: 1, flushes: 2, hubCrashes: 1, hubStarts: 1, notes: 4},
		},
		{
			Name: "large", About: "objects that are fetched, that change or go meanwhile, or can't be had",
			Objects: two, Script: []Change{
				set("c", sized(play.ConfigMap, "c", 1, large)), set("d", pod("d", 1)), set("c", sized(play.ConfigMap, "c", 2, large)), gone("c"),
			}, Settled: true, Short: 7, Wide: 10, Deep: 12, Faults: 3,
			Limits: [budgets]uint8{losses: 1, nodeTimers: 1, hubTimers: 2, breaks: 1, crashes: 1, fulls: 1, fetchErrors: 2, changes: 4, hubCrashes: 1, hubStarts: 1},
		},
		{
			Name: "clock", About: "orders that expire, and clocks that jump",
			Objects: two, Script: []Change{gone("a"), set("c", pod("c", 1))}, Settled: true, Short: 6, Wide: 9, Deep: 14, Faults: 3, Expires: 60,
			Limits: [budgets]uint8{losses: 1, copies: 1, reorders: 1, nodeTimers: 1, hubTimers: 2, breaks: 1, clocks: 2, changes: 2, hubCrashes: 1, hubStarts: 1},
		},
		{
			Name: "lost-state", About: "a state file that can't be read is set aside, while pods run and need several orders",
			Objects: map[string]play.Object{"a": sized(play.Pod, "a", 1, half), "b": sized(play.Pod, "b", 1, half)},
			Script:  []Change{set("b", sized(play.Pod, "b", 2, half)), gone("a")}, Settled: true, Short: 6, Wide: 8, Deep: 10, Faults: 3,
			Limits: [budgets]uint8{losses: 1, copies: 1, nodeTimers: 1, hubTimers: 1, breaks: 1, stateLosses: 1, crashes: 1, changes: 2, says: 1, notes: 1},
		},
	}
	t := play.Real()
	for _, s := range list {
		s.Transitions = t
	}
	return list
}
