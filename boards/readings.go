package boards

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
)

// written is when this was written: a clock that says less is unset.
var written = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Throttled is what the firmware of a Raspberry Pi says of its power and heat,
// the bits of `vcgencmd get_throttled`.
type Throttled uint32

const (
	UnderVoltageNow    Throttled = 1 << 0 // below 4.63 V
	FrequencyCapNow    Throttled = 1 << 1
	ThrottledNow       Throttled = 1 << 2
	SoftLimitNow       Throttled = 1 << 3
	UnderVoltageBefore Throttled = 1 << 16 // since the board started
	FrequencyCapBefore Throttled = 1 << 17
	ThrottledBefore    Throttled = 1 << 18
	SoftLimitBefore    Throttled = 1 << 19
)

// Is says whether any of bits is set.
func (t Throttled) Is(bits Throttled) bool { return t&bits != 0 }

// Zone is a thermal zone. Temperatures are in millidegrees Celsius.
type Zone struct {
	Name string
	Temp int64
	// Passive is where the kernel starts to slow the processor down; 0 if it doesn't.
	Passive int64
}

// Readings are what changes while the machine runs.
type Readings struct {
	Time  time.Time
	Floor time.Time // see [Machine.Floor]
	RTC   bool

	Power     bool // the board can tell whether its power is good
	Throttled Throttled
	Zones     []Zone
	Wear      Wear
	disk      string
}

// Read reads what changes while the machine runs. It is cheap: a dozen small
// files.
func (m Machine) Read(b *Board) Readings {
	m = m.defaults()
	t := tree{m.Root}
	r := Readings{Time: m.Now(), Floor: m.Floor, RTC: b.RTC != "", disk: b.Storage.Device}
	r.Throttled, r.Power = t.throttled()
	r.Zones = t.zones()
	r.Wear = t.wear(b.Storage.dir)
	return r
}

// ClockUnset says that the clock can't be right.
func (r *Readings) ClockUnset() bool {
	return r.Time.Before(written) || r.Time.Before(r.Floor)
}

// Hottest returns the warmest zone.
func (r *Readings) Hottest() (z Zone, ok bool) {
	for _, c := range r.Zones {
		if !ok || c.Temp > z.Temp {
			z, ok = c, true
		}
	}
	return z, ok
}

// Slowed says that the machine runs slower than it could because it is hot.
func (r *Readings) Slowed() (why string, slowed bool) {
	if r.Throttled.Is(ThrottledNow | SoftLimitNow) {
		return "the firmware slows the processor down", true
	}
	for _, z := range r.Zones {
		if z.Passive > 0 && z.Temp >= z.Passive {
			return fmt.Sprintf("%s is at %s, the kernel slows down from %s on", z.Name, degrees(z.Temp), degrees(z.Passive)), true
		}
	}
	return "", false
}

func degrees(milli int64) string { return strconv.FormatInt((milli+500)/1000, 10) + " °C" }

func (t tree) throttled() (bits Throttled, known bool) {
	// "soc/soc:firmware" up to the Pi 4, with the address in the name on the Pi 5.
	for _, pattern := range []string{"sys/devices/platform/soc*/soc*:firmware/get_throttled", "sys/devices/platform/soc*:firmware/get_throttled"} {
		for _, file := range t.glob(pattern) {
			if bits, ok := parseThrottled(t.text(file)); ok {
				return bits, true
			}
		}
	}
	for _, dir := range t.glob("sys/class/hwmon/hwmon*") {
		if t.text(dir+"/name") != "rpi_volt" {
			continue
		}
		for _, file := range t.glob(dir + "/in*_lcrit_alarm") {
			if n, ok := t.number(file); ok {
				known = true
				if n != 0 {
					// The alarm stays on for as long as the driver sees the voltage low.
					bits |= UnderVoltageNow
				}
			}
		}
	}
	return bits, known
}

// parseThrottled reads "50005", which is hexadecimal with or without 0x.
func parseThrottled(s string) (Throttled, bool) {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "throttled="), "0x")
	n, err := strconv.ParseUint(s, 16, 32)
	return Throttled(n), err == nil
}

func (t tree) zones() (zones []Zone) {
	for _, dir := range t.glob("sys/class/thermal/thermal_zone*") {
		temp, ok := t.number(dir + "/temp")
		if !ok {
			continue // switched off
		}
		z := Zone{Name: firstOf(t.text(dir+"/type"), path.Base(dir)), Temp: temp}
		for _, file := range t.glob(dir + "/trip_point_*_type") {
			if t.text(file) != "passive" {
				continue
			}
			at, ok := t.number(strings.TrimSuffix(file, "_type") + "_temp")
			if ok && at > 0 && (z.Passive == 0 || at < z.Passive) {
				z.Passive = at
			}
		}
		zones = append(zones, z)
	}
	return zones
}
