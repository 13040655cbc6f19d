package wasmruntime_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// The cache keeps its bound by dropping what was used longest ago, but nothing that a
// guest or a container uses.
func TestCacheIsBoundedByLeastUse(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var dir, wanted string
	rt := newRuntime(t, func(o *wasmruntime.Options) {
		dir, o.CacheBytes, o.Now = o.CacheDir, 1, func() time.Time { return now }
		o.InUse = func(digest string) bool { return digest == wanted }
	})
	keeps := func(when string, names ...string) {
		t.Helper()
		for _, name := range []string{"hello", "exit3", "sleep", "trap", "loop"} {
			if have, want := len(entriesOf(t, dir, name)) == 1, slices.Contains(names, name); have != want {
				t.Errorf("%s: %s is in the cache: %v, want %v", when, name, have, want)
			}
		}
	}
	compile := func(name string) {
		t.Helper()
		if err := rt.Compile(t.Context(), module(name), ""); err != nil {
			t.Fatal(err)
		}
		now = now.Add(48 * time.Hour)
	}
	compile("hello")
	keeps("the newest stays, whatever its size", "hello")
	compile("exit3")
	keeps("one is over the bound", "exit3")

	g := start(t, rt, wasmruntime.Spec{Module: module("sleep")})
	g.says("hello")
	now = now.Add(48 * time.Hour)
	keeps("exit3 went", "sleep")
	compile("trap")
	keeps("a guest uses sleep", "sleep", "trap")
	wanted = digestOf(t, "trap")
	compile("loop")
	keeps("a container is of trap", "sleep", "trap", "loop")
	if _, err := g.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	compile("hello")
	keeps("the guest has ended", "trap", "hello")
}

// Of two that would fit one by one, the one used longer ago goes; a use is noted once
// a day at most.
func TestLastUseIsNotedOnceADay(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var dir string
	rt := newRuntime(t, func(o *wasmruntime.Options) {
		dir, o.Now = o.CacheDir, func() time.Time { return now }
	})
	noted := func() time.Time {
		t.Helper()
		if err := rt.Compile(t.Context(), module("hello"), ""); err != nil {
			t.Fatal(err)
		}
		entries := entriesOf(t, dir, "hello")
		if len(entries) != 1 {
			t.Fatalf("entries: %v", entries)
		}
		st, err := os.Stat(entries[0])
		if err != nil {
			t.Fatal(err)
		}
		return st.ModTime().UTC()
	}
	noted() // the directory's own time of making is of this machine's clock
	first := noted()
	if !first.Equal(now) {
		t.Fatalf("noted %v, want %v", first, now)
	}
	now = now.Add(23 * time.Hour)
	if at := noted(); !at.Equal(first) {
		t.Errorf("written after 23 hours: %v", at)
	}
	now = now.Add(2 * time.Hour)
	if at := noted(); !at.Equal(now) {
		t.Errorf("noted %v after 25 hours, want %v", at, now)
	}
}

func digestOf(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(module(name))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(b))
}

// entriesOf a module in a cache.
func entriesOf(t *testing.T, dir, name string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, strings.TrimPrefix(digestOf(t, name), "sha256:")+"-*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}
