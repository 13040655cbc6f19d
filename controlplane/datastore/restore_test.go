package datastore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-edge/coracle/controlplane/snapshots"
)

func put(t *testing.T, s *Store, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if _, err := s.Client().KV.Put(t.Context(), pairs[i], pairs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
}

// has checks the keys below /registry/.
func has(t *testing.T, s *Store, want ...string) {
	t.Helper()
	resp, err := s.Client().KV.Get(t.Context(), "/registry/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, kv := range resp.Kvs {
		got = append(got, string(kv.Key), string(kv.Value))
	}
	if !slices.Equal(got, want) {
		t.Errorf("etcd has %q, want %q", got, want)
	}
}

func take(t *testing.T, s *Store, dir string) (path string, info snapshots.Info) {
	t.Helper()
	k, err := snapshots.New(snapshots.Config{Dir: dir, Source: s, Keep: 9, MaxBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if info, err = k.Take(t.Context(), snapshots.Requested); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, info.Name), info
}

func TestRestoreGoesBackAndSaysSo(t *testing.T) {
	dir, folder := t.TempDir(), t.TempDir()
	s := open(t, Config{Dir: dir})
	put(t, s, "/registry/a", "1", "/registry/b", "1")
	file, info := take(t, s, folder)
	put(t, s, "/registry/a", "2", "/registry/c", "1")
	if m, err := s.Mark(t.Context()); m != nil || err != nil {
		t.Errorf("mark of an etcd that was never put back: %v, %v", m, err)
	}
	before, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	if _, err := Restore(t.Context(), RestoreConfig{Snapshot: file, Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Fatalf("restore under a running etcd: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Restore(t.Context(), RestoreConfig{Snapshot: file, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir})
	has(t, s, "/registry/a", "1", "/registry/b", "1")
	m, err := s.Mark(t.Context())
	if err != nil || m == nil || *m != r.Mark || m.Snapshot != filepath.Base(file) || m.Revision != info.Revision || len(m.Incarnation) != 32 {
		t.Errorf("mark %+v, %v; want %+v", m, err, r.Mark)
	}
	if after, err := s.Revision(t.Context()); err != nil || after <= before {
		t.Errorf("the revision went from %d back to %d, %v", before, after, err)
	}
	// Watches of the past are told to list again.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if w := <-s.Client().Watcher.Watch(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithRev(before)); w.CompactRevision == 0 {
		t.Errorf("a watch from revision %d goes on: %+v", before, w)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// The data of before is kept, and can be gone back to.
	old := open(t, Config{Dir: r.Aside})
	has(t, old, "/registry/a", "2", "/registry/b", "1", "/registry/c", "1")
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	// One is kept, and each restore is an incarnation of its own.
	again, err := Restore(t.Context(), RestoreConfig{Snapshot: file, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if again.Mark.Incarnation == r.Mark.Incarnation || again.Mark.ID == r.Mark.ID {
		t.Errorf("two restores, one incarnation: %+v", again.Mark)
	}
	if exists(r.Aside) || !exists(again.Aside) {
		t.Errorf("kept aside: %s %v, %s %v", r.Aside, exists(r.Aside), again.Aside, exists(again.Aside))
	}
}

func TestRestoreIntoAnEmptyFolder(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	put(t, s, "/registry/a", "1")
	file, _ := take(t, s, t.TempDir())
	dir := filepath.Join(t.TempDir(), "new", "etcd")
	r, err := Restore(t.Context(), RestoreConfig{Snapshot: file, Dir: dir})
	if err != nil || r.Aside != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	has(t, open(t, Config{Dir: dir}), "/registry/a", "1")
}

func TestBadSnapshotChangesNothing(t *testing.T) {
	dir, folder := t.TempDir(), t.TempDir()
	s := open(t, Config{Dir: dir})
	put(t, s, "/registry/a", "1")
	file, _ := take(t, s, folder)
	put(t, s, "/registry/a", "2")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := slices.Clone(good)
	changed[len(changed)/2] ^= 1
	for what, content := range map[string][]byte{
		"truncated":           good[:len(good)/2],
		"truncated by a page": good[:len(good)-4096],
		"without its hash":    good[:len(good)-32],
		"changed":             changed,
		"empty":               {},
		"another file":        []byte(strings.Repeat("coracle ", 1000)),
	} {
		bad := filepath.Join(folder, "bad.db")
		if err := os.WriteFile(bad, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Restore(t.Context(), RestoreConfig{Snapshot: bad, Dir: dir})
		if !errors.Is(err, snapshots.ErrDamaged) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Restore(t.Context(), RestoreConfig{Snapshot: filepath.Join(folder, "none.db"), Dir: dir}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
	has(t, open(t, Config{Dir: dir}), "/registry/a", "2")
}

func TestRestoreOnAFullDiskChangesNothing(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	put(t, s, "/registry/a", "old")
	file, _ := take(t, s, t.TempDir())

	dir := tmpfs(t, "27m")
	here := open(t, Config{Dir: dir})
	put(t, here, "/registry/a", "new")
	if err := here.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), RestoreConfig{Snapshot: file, Dir: dir}); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), dir) {
		t.Errorf("restore without room: %v", err)
	}
	has(t, open(t, Config{Dir: dir, Reserve: 1 << 20}), "/registry/a", "new")
}

// A power cut between any two steps leaves the old data or the new one, and the
// next start finds it.
func TestRestoreInterruptedAnywhere(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	put(t, s, "/registry/a", "old")
	file, _ := take(t, s, t.TempDir())
	put(t, s, "/registry/a", "new")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mark := newMark("x", 1, time.Now())
	aside := asidePrefix + "x"
	for i, c := range []struct {
		want string
		undo func(dir string) error // what a cut took back
	}{
		{"new", func(dir string) error { return os.WriteFile(filepath.Join(dir, stagingDir, "half"), nil, 0o600) }},
		{"old", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, intentFile), fmt.Appendf(nil, `{"aside":%q}`, aside), 0o600)
		}},
		{"old", func(dir string) error { // the old data has gone aside
			return errors.Join(os.WriteFile(filepath.Join(dir, intentFile), fmt.Appendf(nil, `{"aside":%q}`, aside), 0o600),
				os.Mkdir(filepath.Join(dir, aside), 0o700), os.Rename(filepath.Join(dir, "member"), filepath.Join(dir, aside, "member")))
		}},
		{"old", func(dir string) error { // the new one is in its place
			return errors.Join(os.WriteFile(filepath.Join(dir, intentFile), fmt.Appendf(nil, `{"aside":%q}`, aside), 0o600),
				os.Mkdir(filepath.Join(dir, aside), 0o700), os.Rename(filepath.Join(dir, "member"), filepath.Join(dir, aside, "member")),
				os.Rename(filepath.Join(dir, stagingDir, "member"), filepath.Join(dir, "member")))
		}},
	} {
		dir := t.TempDir()
		here := open(t, Config{Dir: dir})
		put(t, here, "/registry/a", "new")
		if err := here.Close(); err != nil {
			t.Fatal(err)
		}
		if err := stage(t.Context(), RestoreConfig{Snapshot: file, Dir: dir}, mark); err != nil {
			t.Fatal(err)
		}
		if err := c.undo(dir); err != nil {
			t.Fatal(err)
		}
		again := open(t, Config{Dir: dir})
		has(t, again, "/registry/a", c.want)
		if exists(filepath.Join(dir, stagingDir)) || exists(filepath.Join(dir, intentFile)) {
			t.Errorf("cut %d: leftovers", i)
		}
		if c.want == "old" && !exists(filepath.Join(dir, aside, "member")) {
			t.Errorf("cut %d: the data of before is gone", i)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnreadableIntentIsNotGuessedAt(t *testing.T) {
	for _, text := range []string{"", "{}", `{"aside":"../elsewhere"}`, `{"aside":"before-/../../x"}`, "nonsense"} {
		dir := t.TempDir()
		path := filepath.Join(dir, intentFile)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMarkOfAnEtcdPutBackByOtherMeans(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	m, err := s.PutMark(t.Context(), "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Mark(t.Context()); err != nil || *got != m {
		t.Errorf("%+v, %v; want %+v", got, err, m)
	}
	put(t, s, markKey, "{}")
	if _, err := s.Mark(t.Context()); !errors.Is(err, ErrMark) {
		t.Errorf("a mark that can't be read: %v", err)
	}
}

func FuzzMark(f *testing.F) {
	f.Add([]byte(`{"id":"1","incarnation":"00112233445566778899aabbccddeeff","at":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseMark(raw)
		if (m == nil) != (err != nil) || err != nil && !errors.Is(err, ErrMark) {
			t.Fatalf("%v, %v", m, err)
		}
	})
}
