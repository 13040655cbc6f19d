package boards

import (
	"fmt"
	"time"
)

// Types of node conditions. Each is True when something is wrong.
const (
	UnderVoltage     = "UnderVoltage"
	ThermalThrottled = "ThermalThrottled"
	ClockUnset       = "ClockUnset"
	StorageWearHigh  = "StorageWearHigh"
)

// Condition is a node condition, without times: who reports it knows when it
// changed.
type Condition struct {
	Type    string
	Status  bool
	Reason  string // CamelCase
	Message string
}

// Conditions are those of the node. What the board can't tell is left out.
func (r *Readings) Conditions() []Condition {
	c := []Condition{r.clockCondition()}
	if r.Power {
		c = append(c, r.powerCondition())
	}
	if r.Power || len(r.Zones) > 0 {
		c = append(c, r.heatCondition())
	}
	if r.Wear.Known() {
		c = append(c, r.wearCondition())
	}
	return c
}

func (r *Readings) clockCondition() Condition {
	if r.ClockUnset() {
		return Condition{ClockUnset, true, "ClockBehind",
			fmt.Sprintf("the clock says %s, which is over", r.Time.UTC().Format(time.DateOnly))}
	}
	return Condition{ClockUnset, false, "ClockPlausible", ""}
}

func (r *Readings) powerCondition() Condition {
	switch {
	case r.Throttled.Is(UnderVoltageNow):
		return Condition{UnderVoltage, true, "UnderVoltageNow", "the supply is below 4.63 V"}
	case r.Throttled.Is(UnderVoltageBefore):
		return Condition{UnderVoltage, false, "UnderVoltageSinceBoot", "the supply was below 4.63 V since the board started"}
	}
	return Condition{UnderVoltage, false, "PowerGood", ""}
}

// heatCondition doesn't carry temperatures while all is well: a message that
// changes all the time would be sent all the time.
func (r *Readings) heatCondition() Condition {
	if why, slowed := r.Slowed(); slowed {
		return Condition{ThermalThrottled, true, "TooHot", why}
	}
	if r.Throttled.Is(ThrottledBefore | SoftLimitBefore) {
		return Condition{ThermalThrottled, false, "TooHotSinceBoot", "the board was slowed down for heat since it started"}
	}
	return Condition{ThermalThrottled, false, "Cool", ""}
}

func (r *Readings) wearCondition() Condition {
	message := ""
	if r.Wear.Used >= 0 {
		message = fmt.Sprintf("%s used up to %d %% of its life", r.disk, r.Wear.Used)
	}
	if r.Wear.Reserve == "warning" || r.Wear.Reserve == "urgent" {
		message = fmt.Sprintf("%s says its spare blocks run out (%s)", r.disk, r.Wear.Reserve)
	}
	if r.Wear.High() {
		return Condition{StorageWearHigh, true, "NearEndOfLife", message}
	}
	return Condition{StorageWearHigh, false, "WearNormal", message}
}
