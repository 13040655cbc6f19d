package main

import (
	"context"
	"sync/atomic"

	"github.com/coracle-edge/coracle/boards"
)

// conditionBudget is a condition of the Node.
const conditionBudget = "DataBudgetExceeded"

// tellBudget has the node's condition looked at when what is held changes.
func (a *agent) tellBudget(ctx context.Context) {
	watch := a.budget.Watch()
	for {
		select {
		case <-ctx.Done():
			return
		case <-watch:
			a.node.Changed()
		}
	}
}

// budgetCondition says whether the node holds something back. A node that never
// had a budget says nothing. The text is the same all day: another would be
// another report.
func (a *agent) budgetCondition() func() []boards.Condition {
	var had atomic.Bool
	return func() []boards.Condition {
		s := a.budget.Status()
		switch {
		case s.Limit == 0 && !had.Load():
			return nil
		case s.Limit == 0:
			return []boards.Condition{{Type: conditionBudget, Reason: "NoDataBudget", Message: "this node has no data budget"}}
		}
		had.Store(true)
		if !s.Held {
			return []boards.Condition{{Type: conditionBudget, Reason: "WithinDataBudget", Message: "less than nine tenths of the day's data are used"}}
		}
		return []boards.Condition{{Type: conditionBudget, Status: true, Reason: "DataBudgetNearlyUsed",
			Message: "nine tenths of the day's data are used: until the day ends, or the annotation coracle.dev/data-budget is raised, events, changes of the node's labels and images, " +
				"of pods without a change of phase, readiness or address, and objects too large for the rest have to wait; with nothing left logs and metrics do, too"}}
	}
}
