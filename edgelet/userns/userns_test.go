package userns

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func pool(first, length uint32) func() (Range, error) {
	return func() (Range, error) { return Range{first, length}, nil }
}

func TestRangesAreTheirPodsAlone(t *testing.T) {
	dir := t.TempDir()
	r := New(dir, pool(2*PerPod, 3*PerPod))
	want := map[string]uint32{"a": 2 * PerPod, "b": 3 * PerPod, "c": 4 * PerPod}
	for _, uid := range []string{"a", "b", "c", "a"} {
		if got, err := r.Of(uid); err != nil || got != (Range{want[uid], PerPod}) {
			t.Errorf("%s has %v, %v", uid, got, err)
		}
	}
	if _, err := r.Of("d"); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "could not find an empty slot") {
		t.Errorf("a fourth of three: %v", err)
	}
	// A new agent, whose node gives other ids, knows those that are given.
	r = New(dir, pool(PerPod, 3*PerPod))
	if got, err := r.Of("b"); err != nil || got.First != 3*PerPod {
		t.Errorf("after a restart: %v, %v", got, err)
	}
	if got, err := r.Of("d"); err != nil || got.First != PerPod {
		t.Errorf("of the new pool: %v, %v", got, err)
	}
	if _, err := r.Of("e"); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Of("e"); err != nil || got.First != 3*PerPod {
		t.Errorf("the range of a pod that is gone: %v, %v", got, err)
	}
}

func TestRangesAtOnce(t *testing.T) {
	r := New(t.TempDir(), pool(PerPod, 1<<32-PerPod))
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[uint32]string{}
	for i := range 32 {
		wg.Go(func() {
			uid := fmt.Sprint("pod-", i)
			got, err := r.Of(uid)
			mu.Lock()
			defer mu.Unlock()
			if other, twice := seen[got.First]; err != nil || twice {
				t.Errorf("%s has %v, %v, as has %q", uid, got, err, other)
			}
			seen[got.First] = uid
		})
	}
	wg.Wait()
}

func TestABrokenRecordGivesNobodysIDs(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "torn"), 0o750); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "torn", File)
	if err := os.WriteFile(file, []byte(`{"uidMappings":[{"hostId":65`), 0o600); err != nil {
		t.Fatal(err)
	}
	r := New(dir, pool(PerPod, 3*PerPod))
	for _, uid := range []string{"torn", "new"} {
		if _, err := r.Of(uid); !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", uid, err)
		}
	}
	for _, uid := range []string{"", ".", "..", "a/b", "../torn"} {
		if got, err := r.Of(uid); err == nil {
			t.Errorf("%q has %v", uid, got)
		}
	}
}

func TestPoolsThatCanNotBe(t *testing.T) {
	for says, p := range map[string]Range{
		"not a multiple of 65536":      {PerPod + 1, PerPod},
		"must be greater or equal":     {0, PerPod},
		"length 65537 is not":          {PerPod, PerPod + 1},
		"are not 32-bit":               {1<<32 - PerPod, 2 * PerPod},
		"could not find an empty slot": {PerPod, 0},
	} {
		if _, err := New(t.TempDir(), pool(p.First, p.Length)).Of("a"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v, want %q", p, err, says)
		}
	}
}

// TestNode asks a program that stands for getsubids.
func TestNode(t *testing.T) {
	here := func(string) error { return nil }
	program := func(script string) string {
		path := filepath.Join(t.TempDir(), "getsubids")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	all := Range{PerPod, 1<<32 - PerPod}
	for name, c := range map[string]struct {
		lookup  func(string) error
		program string
		want    Range
		says    string
	}{
		"no such user":    {func(n string) error { return user.UnknownUserError(n) }, program("exit 1"), all, ""},
		"no such program": {here, "no-such-getsubids", all, ""},
		"a range":         {here, program("echo '0: kubelet 131072 655360'"), Range{131072, 655360}, ""},
		"two ranges":      {here, program("echo '0: kubelet 65536 65536'; echo '1: kubelet 655360 65536'"), Range{}, "only one line"},
		"others' groups":  {here, program(`[ "$1" = -g ] && echo '0: kubelet 65536 65536' || echo '0: kubelet 131072 65536'`), Range{}, "mismatched subuids and subgids"},
		"it fails":        {here, program("exit 1"), Range{}, "error retrieving additional uids"},
		"no lookup":       {func(string) error { return os.ErrPermission }, program(""), Range{}, "looking up the user kubelet"},
	} {
		got, err := node(c.lookup, c.program)
		if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"uidMappings":[{"hostId":65536,"containerId":0,"length":65536}],"gidMappings":[{"hostId":65536,"containerId":0,"length":65536}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := parse(raw)
		if err == nil && (got.First < PerPod || got.First%PerPod != 0 || got.Length != PerPod) {
			t.Errorf("%q: %v", raw, got)
		}
	})
}

func FuzzSubIDs(f *testing.F) {
	f.Add("0: kubelet 65536 2147483648\n")
	f.Add("0: kubelet -1 1")
	f.Fuzz(func(t *testing.T, out string) {
		if got, err := parseSubIDs(out); err == nil && check(got) == nil && got.Length > 0 {
			if given, err := free(got, nil); err != nil || given.First < PerPod {
				t.Errorf("%q: %v, %v", out, given, err)
			}
		}
	})
}
