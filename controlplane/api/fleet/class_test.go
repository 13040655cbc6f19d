package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestBuiltInClassesKeepTheirLimits(t *testing.T) {
	classes := DefaultClasses()
	var before LinkClass
	for _, name := range []string{"lan", "wifi", "lte", "satellite"} {
		c, ok := classes[name]
		if !ok || CheckClass(name) != nil {
			t.Fatalf("class %s: %v, %v", name, ok, CheckClass(name))
		}
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
		// A slower link never costs more.
		if c.Keepalive <= before.Keepalive || c.Retry <= before.Retry || c.Gather < before.Gather || c.Answer < before.Answer || c.Grace < before.Grace {
			t.Errorf("class %s %+v after %+v", name, c, before)
		}
		before = c
	}
	// A ping and its answer are 48 bytes with TLS: what a day of them costs.
	if day := 48 * int64(24*time.Hour/classes["satellite"].Keepalive); day > 30_000 {
		t.Errorf("the frugal class costs %d bytes a day by its keepalive alone", day)
	}
	if err := CheckClass("lora"); !errors.Is(err, ErrClass) || !strings.Contains(err.Error(), "lan, lte, satellite, wifi") {
		t.Errorf("%v", err)
	}
}

func TestClassOfTheFirstNameThatIsOne(t *testing.T) {
	c := DefaultClasses()
	for _, x := range []struct {
		names []string
		want  string
	}{{nil, "lan"}, {[]string{"", "lte"}, "lte"}, {[]string{"satellite", "lte"}, "satellite"}, {[]string{"lora", "wifi"}, "wifi"}, {[]string{"lora"}, "lan"}} {
		if got := c.Of(x.names...).Name; got != x.want {
			t.Errorf("of %q: %s, want %s", x.names, got, x.want)
		}
	}
}

func TestSetClass(t *testing.T) {
	c := DefaultClasses()
	if err := c.Set("lte:keepalive=2m,slots=7,gather=1s"); err != nil {
		t.Fatal(err)
	}
	if l := c["lte"]; l.Keepalive != 2*time.Minute || l.Retry != 80*time.Second || l.Slots != 7 || l.Gather != time.Second || l.Grace != 15*time.Second {
		t.Errorf("%+v", l)
	}
	for _, x := range []struct{ text, why string }{
		{"lora:keepalive=1m", "lan, lte"},
		{"lan", "NAME:KEY=VALUE"},
		{"lan:pings=3", "no setting"},
		{"lan:keepalive=soon", "keepalive"},
		{"lan:keepalive=1s", "5s to 4h"},
		{"lan:retry=25s", "1s to 20s"},
		{"lan:slots=0", "1 to 1000"},
		{"satellite:gather=1m", "0s to 5s"},
	} {
		before := c[strings.SplitN(x.text, ":", 2)[0]]
		err := c.Set(x.text)
		if !errors.Is(err, ErrClass) || !strings.Contains(err.Error(), x.why) {
			t.Errorf("%s: %v, want it to say %q", x.text, err, x.why)
		}
		if after := c[strings.SplitN(x.text, ":", 2)[0]]; after != before {
			t.Errorf("%s changed the class to %+v", x.text, after)
		}
	}
}

// TestSlotsSpread: a thousand nodes don't come in one moment.
func TestSlotsSpread(t *testing.T) {
	c := DefaultClasses()["lan"]
	count := make([]int, c.Slots)
	for i := range 1000 {
		count[c.Slot(fmt.Sprintf("board-%d", i))]++
	}
	for slot, n := range count {
		if n < 25 || n > 90 {
			t.Errorf("slot %d has %d nodes of 1000 in %d slots", slot, n, c.Slots)
		}
	}
	if slot := c.Slot("board-1"); slot != DefaultClasses()["lan"].Slot("board-1") {
		t.Errorf("slot %d is another in the next process", slot)
	}
}

func FuzzSetClass(f *testing.F) {
	f.Add("lte:keepalive=2m,slots=7,gather=1s")
	f.Add("lan:=")
	f.Fuzz(func(t *testing.T, text string) {
		c := DefaultClasses()
		if c.Set(text) != nil {
			return
		}
		for _, class := range c {
			if err := class.Validate(); err != nil {
				t.Errorf("%q: %v", text, err)
			}
		}
	})
}
