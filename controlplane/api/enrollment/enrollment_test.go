package enrollment

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func line() Line {
	return Line{
		URLs:   []string{"https://192.0.2.1:6444", "https://[2001:db8::1]:6444"},
		CAHash: strings.Repeat("0a", 32), Token: "abcd2345.abcdefghijklmnopqrstuvwx", Node: "pi-1.hall",
	}
}

func TestLineRoundTrip(t *testing.T) {
	text := line().String()
	got, err := ParseLine("  " + text + "\n")
	if err != nil || !reflect.DeepEqual(got, line()) {
		t.Fatalf("%+v, %v", got, err)
	}
	if strings.ContainsAny(text, " $&?*'\"\\|<>()!;~`") {
		t.Errorf("a shell would change %s", text)
	}
}

func TestLineCutOffAnywhereIsRefused(t *testing.T) {
	text := line().String()
	for i := range text {
		if _, err := ParseLine(text[:i]); !errors.Is(err, ErrLine) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func TestLineFieldsAreChecked(t *testing.T) {
	for name, harm := range map[string]func(*Line){
		"no address":  func(l *Line) { l.URLs = nil },
		"plain http":  func(l *Line) { l.URLs[0] = "http://192.0.2.1:6444" },
		"short hash":  func(l *Line) { l.CAHash = "0a" },
		"no secret":   func(l *Line) { l.Token = "abcd2345" },
		"node":        func(l *Line) { l.Node = "Pi_1" },
		"node's path": func(l *Line) { l.Node = "a/b" },
		"fleet":       func(l *Line) { l.Node = FleetServerName },
	} {
		l := line()
		harm(&l)
		if _, err := ParseLine(l.String()); !errors.Is(err, ErrLine) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add(line().String())
	f.Add("coracle1.")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseLine(text)
		if err != nil {
			if !errors.Is(err, ErrLine) {
				t.Fatalf("error without its sentinel: %v", err)
			}
			return
		}
		again, err := ParseLine(l.String())
		if err != nil || !reflect.DeepEqual(again, l) {
			t.Fatalf("%+v became %+v, %v", l, again, err)
		}
	})
}

func TestEveryErrorSurvivesTheWire(t *testing.T) {
	for _, c := range codes {
		p, status := ProblemOf(errors.Join(errors.New("node pi-1"), c.err))
		if status != c.status || !errors.Is(p.Err(), c.err) || !strings.Contains(p.Err().Error(), "node pi-1") {
			t.Errorf("%s: %d %+v", c.code, status, p)
		}
	}
	if p, status := ProblemOf(errors.New("etcd at 10.0.0.9 said no")); status != 503 || strings.Contains(p.Message, "10.0.0.9") {
		t.Errorf("an inner error leaked: %+v", p)
	}
}

func TestNodeNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"pi-1": true, "a": true, "pi.hall.example": true, "": false, "-a": false, "a-": false, "a..b": false, "UP": false,
		"a/b": false, "a+": false, "#": false, "mqtt.coracle.internal": false, "coracle.internal": false, strings.Repeat("a", 64): false,
	} {
		if err := CheckNodeName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
