package link

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/state"
)

func openState(t *testing.T, path string) *state.Store {
	t.Helper()
	s, err := state.Open(path, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestSettingsBeforeAHubWasHeard(t *testing.T) {
	s := openState(t, filepath.Join(t.TempDir(), "state.db"))
	classes := fleet.DefaultClasses()
	for own, want := range map[string]string{"": "lan", "satellite": "satellite", "lora": "lan"} {
		got := readSettings(s, own)
		if got.Name != want || got.Keepalive != classes[want].Keepalive || got.Retry != classes[want].Retry || got.budget != 0 {
			t.Errorf("a node that says %q: %+v", own, got)
		}
	}
}

func TestSettingsAreKeptInOneWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openState(t, path)
	w := &fleet.Welcome{Keepalive: 900, ReconnectJitter: 20000, ObjectsUrl: "https://h:1",
		Link: &fleet.LinkSettings{Class: "satellite", Slots: 20, Slot: 7, RetryMax: 480, Gather: 2000, DataBudget: 5 << 20}}
	before := s.Written().Commits
	if err := keepSettings(s, w); err != nil {
		t.Fatal(err)
	}
	if n := s.Written().Commits - before; n != 1 {
		t.Errorf("%d commits", n)
	}
	if err := keepSettings(s, w); err != nil || s.Written().Commits != before+1 {
		t.Errorf("the same Welcome again: %v, %d commits", err, s.Written().Commits-before)
	}
	_ = s.Close()
	s = openState(t, path)
	got := readSettings(s, "lan") // what the node says itself doesn't count any more
	if got.Name != "satellite" || got.Keepalive != 15*time.Minute || got.Jitter != 20*time.Second || got.Slots != 20 || got.slot != 7 ||
		got.Retry != 8*time.Minute || got.Gather != 2*time.Second || got.budget != 5<<20 || s.Setting(settingObjects) != "https://h:1" {
		t.Errorf("after a restart: %+v", got)
	}
	// A hub of before link classes says keepalive and jitter only.
	if err := keepSettings(s, &fleet.Welcome{Keepalive: 60, ReconnectJitter: 1000}); err != nil {
		t.Fatal(err)
	}
	if got := readSettings(s, ""); got.Keepalive != time.Minute || got.Jitter != time.Second || got.Name != "satellite" || got.budget != 5<<20 {
		t.Errorf("after an older hub's Welcome: %+v", got)
	}
	// A budget that was taken away is gone.
	w.Link.DataBudget = 0
	if err := keepSettings(s, w); err != nil {
		t.Fatal(err)
	}
	if got := readSettings(s, ""); got.budget != 0 {
		t.Errorf("budget %d", got.budget)
	}
}

func TestSettingsOutOfBoundsAreBounded(t *testing.T) {
	s := openState(t, filepath.Join(t.TempDir(), "state.db"))
	if err := s.PutSettings(map[string]string{settingKeepalive: "1", settingRetry: "99999999999999", settingGather: "4000000000", settingSlots: "0", settingSlot: "5"}); err != nil {
		t.Fatal(err)
	}
	got := readSettings(s, "lan")
	if got.Keepalive != fleet.MinKeepalive || got.Retry != fleet.MaxKeepalive || got.Gather != 10*time.Second || got.Slots != 1 || got.slot != 0 {
		t.Errorf("%+v", got)
	}
}

func TestWaits(t *testing.T) {
	s := settings{LinkClass: fleet.LinkClass{Jitter: 20 * time.Second, Slots: 20, Retry: 8 * time.Minute}, slot: 7}
	for random, want := range map[float64]time.Duration{0: 7 * time.Second, 0.5: 7500 * time.Millisecond} {
		if got := s.comeBack(random); got != want {
			t.Errorf("slot 7 of 20 in 20 s, at %v of it: %s, want %s", random, got, want)
		}
	}
	one := settings{LinkClass: fleet.LinkClass{Jitter: 2 * time.Second, Slots: 1}}
	if got := one.comeBack(0.25); got != 500*time.Millisecond {
		t.Errorf("without slots: %s", got)
	}
	for failures, want := range map[int]time.Duration{1: 7500 * time.Millisecond, 2: 15 * time.Second, 7: 8 * time.Minute, 1000: 8 * time.Minute} {
		if got := s.again(failures, 0.5); got != want {
			t.Errorf("after %d failures: %s, want %s", failures, got, want)
		}
	}
	lan := settings{LinkClass: fleet.DefaultClasses()["lan"]}
	if got := lan.again(1, 0.5); got != 250*time.Millisecond {
		t.Errorf("on a lan after one failure: %s", got)
	}
	if lan.attempt() != 8*time.Second || s.attempt() != connectTimeout {
		t.Errorf("attempts of %s and %s", lan.attempt(), s.attempt())
	}
	for _, x := range []struct {
		have, want time.Duration
		differs    bool
	}{{time.Minute, time.Minute, false}, {30 * time.Second, time.Minute, true}, {time.Minute, 30 * time.Second, true}, {60 * time.Second, 70 * time.Second, false}} {
		if got := differs(x.have, x.want); got != x.differs {
			t.Errorf("keepalive %s for %s: %v", x.have, x.want, got)
		}
	}
}
