package snapshots

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"
)

// source makes real databases with one key per revision.
type source struct {
	mu       sync.Mutex // in tests with a Run
	t        testing.TB
	revision int64
	pad      int // bytes of the newest value
	spoil    func([]byte) []byte
	fail     error
	written  int
}

func (s *source) Revision(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision, s.fail
}

func (s *source) SnapshotSize(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.pad), nil
}

// at brings it to a revision, at which it may fail.
func (s *source) at(revision int64, fail error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision, s.fail = revision, fail
}

func (s *source) WriteSnapshot(_ context.Context, w io.Writer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written++
	path := filepath.Join(s.t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("key"))
		if err != nil {
			return err
		}
		k := append(binary.BigEndian.AppendUint64(nil, uint64(s.revision)), "_00000000"...)
		return b.Put(k, make([]byte, s.pad))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(raw)
	raw = append(raw, sum[:]...)
	if s.spoil != nil {
		raw = s.spoil(raw)
	}
	_, err = w.Write(raw)
	return err
}

func keeper(t *testing.T, s *source, change func(*Config)) *Keeper {
	t.Helper()
	c := Config{Dir: filepath.Join(t.TempDir(), "snapshots"), Source: s, Keep: 3, MaxBytes: 1 << 30, Interval: 24 * time.Hour}
	if change != nil {
		change(&c)
	}
	k, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func revisions(t *testing.T, k *Keeper) (out []int64) {
	t.Helper()
	list, err := k.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		out = append(out, one.Revision)
	}
	return out
}

func TestTakenSnapshotIsWholeAndItsOwnersAlone(t *testing.T) {
	s := &source{t: t, revision: 7}
	k := keeper(t, s, nil)
	info, err := k.Take(t.Context(), Requested)
	if err != nil {
		t.Fatal(err)
	}
	path, err := k.Path(info.Name)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(path); err != nil || r != 7 || info.Revision != 7 || info.Reason != Requested {
		t.Errorf("%+v, revision %d, %v", info, r, err)
	}
	if f, err := os.Stat(path); err != nil || f.Mode().Perm() != 0o600 || f.Size() != info.Size {
		t.Errorf("%v, %v", f.Mode(), err)
	}
	if d, err := os.Stat(k.Dir()); err != nil || d.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", d.Mode(), err)
	}
	if entries, _ := os.ReadDir(k.Dir()); len(entries) != 1 {
		t.Errorf("left beside it: %v", entries)
	}
}

func TestDamageIsFound(t *testing.T) {
	s := &source{t: t, revision: 7}
	k := keeper(t, s, nil)
	info, err := k.Take(t.Context(), Requested)
	if err != nil {
		t.Fatal(err)
	}
	path, _ := k.Path(info.Name)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad")
	for _, n := range []int{0, 1, 31, 32, 33, 511, 512, 544, len(good) / 2, len(good) - 512, len(good) - 1} {
		if err := os.WriteFile(bad, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(bad); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), bad) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	for i := 0; i < len(good); i += 997 {
		changed := slices.Clone(good)
		changed[i] ^= 0x40
		if err := os.WriteFile(bad, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(bad); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	// What has its hash and is no database.
	text := []byte(strings.Repeat("x", 8192))
	sum := sha256.Sum256(text)
	if err := os.WriteFile(bad, append(text, sum[:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(bad); !errors.Is(err, ErrDamaged) {
		t.Errorf("no database: %v", err)
	}
}

func TestSpoiledOnItsWayIsNotKept(t *testing.T) {
	s := &source{t: t, revision: 1}
	k := keeper(t, s, nil)
	if _, err := k.Take(t.Context(), Scheduled); err != nil {
		t.Fatal(err)
	}
	s.revision, s.spoil = 2, func(raw []byte) []byte { return raw[:len(raw)-4096] }
	if _, err := k.Take(t.Context(), Scheduled); !errors.Is(err, ErrDamaged) || k.Failure() == "" {
		t.Errorf("%v; failure %q", err, k.Failure())
	}
	entries, _ := os.ReadDir(k.Dir())
	if got := revisions(t, k); !slices.Equal(got, []int64{1}) || len(entries) != 1 {
		t.Errorf("%v, %v", got, entries)
	}
	s.spoil = nil
	if _, err := k.Take(t.Context(), Scheduled); err != nil || k.Failure() != "" {
		t.Errorf("%v; failure %q", err, k.Failure())
	}
}

func TestNothingChangedNothingWritten(t *testing.T) {
	s := &source{t: t, revision: 5}
	k := keeper(t, s, nil)
	if _, err := k.Take(t.Context(), Scheduled); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Take(t.Context(), Scheduled); !errors.Is(err, ErrUnchanged) || k.Failure() != "" {
		t.Errorf("%v; failure %q", err, k.Failure())
	}
	if s.written != 1 {
		t.Errorf("%d snapshots of one state", s.written)
	}
	// Who asks gets one.
	if _, err := k.Take(t.Context(), Requested); err != nil || s.written != 2 {
		t.Errorf("%v, %d written", err, s.written)
	}
}

func TestNumberAndBytesAreBounded(t *testing.T) {
	s := &source{t: t, pad: 10}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	k := keeper(t, s, func(c *Config) { c.Now = func() time.Time { return now } })
	take := func(reason Reason, n int) {
		t.Helper()
		for range n {
			s.revision++
			now = now.Add(time.Hour)
			if _, err := k.Take(t.Context(), reason); err != nil {
				t.Fatal(err)
			}
		}
	}
	take(Requested, 2)
	take(Scheduled, 5)
	if got := revisions(t, k); !slices.Equal(got, []int64{1, 2, 5, 6, 7}) {
		t.Errorf("kept %v: want three of a reason", got)
	}
	// The clock goes back: what is newest is told by the revision.
	now = now.AddDate(-20, 0, 0)
	take(Scheduled, 1)
	if got := revisions(t, k); !slices.Equal(got, []int64{1, 2, 6, 7, 8}) {
		t.Errorf("kept %v", got)
	}
	list, _ := k.List()
	k.c.MaxBytes = 2 * list[0].Size
	take(Scheduled, 1)
	if got := revisions(t, k); !slices.Equal(got, []int64{8, 9}) {
		t.Errorf("kept %v of two's size", got)
	}
	k.c.MaxBytes = 1
	take(Scheduled, 1)
	if got := revisions(t, k); !slices.Equal(got, []int64{10}) {
		t.Errorf("kept %v: the newest stays whatever its size", got)
	}
}

func TestOtherFilesStay(t *testing.T) {
	s := &source{t: t, revision: 1}
	k := keeper(t, s, func(c *Config) { c.Keep = 1 })
	if err := os.MkdirAll(k.Dir(), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"notes.txt", "mine.db", tempPrefix + "123"} {
		if err := os.WriteFile(filepath.Join(k.Dir(), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for s.revision = 1; s.revision < 4; s.revision++ {
		if _, err := k.Take(t.Context(), Scheduled); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	entries, _ := os.ReadDir(k.Dir())
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) != 3 || !slices.Contains(names, "notes.txt") || !slices.Contains(names, "mine.db") {
		t.Errorf("%v: only one snapshot and what isn't ours stays, and no leftovers", names)
	}
}

func TestFullDiskIsSaidAndNothingRemoved(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("needs root, to mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	s := &source{t: t, revision: 1, pad: 1 << 20}
	k := keeper(t, s, func(c *Config) { c.Dir = filepath.Join(dir, "s"); c.Keep = 1; c.Reserve = 1 << 20 })
	if _, err := k.Take(t.Context(), Scheduled); err != nil {
		t.Fatal(err)
	}
	s.revision, s.pad = 2, 2<<20
	if _, err := k.Take(t.Context(), Scheduled); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), k.Dir()) || s.written != 1 {
		t.Errorf("known too large: %v, %d written", err, s.written)
	}
	// It grows while it is written.
	s.spoil = func(raw []byte) []byte { return append(raw, make([]byte, 4<<20)...) }
	s.pad = 1 << 10
	if _, err := k.Take(t.Context(), Scheduled); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "--snapshot-dir") {
		t.Errorf("found out while writing: %v", err)
	}
	entries, _ := os.ReadDir(k.Dir())
	if got := revisions(t, k); !slices.Equal(got, []int64{1}) || len(entries) != 1 {
		t.Errorf("%v, %v", got, entries)
	}
}

func TestSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{t: t, revision: 1}
		k := keeper(t, s, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		at := func(d time.Duration, want ...int64) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := revisions(t, k); !slices.Equal(got, want) {
				t.Errorf("kept %v, want %v", got, want)
			}
		}
		at(time.Minute)          // the start is let settle
		at(9*time.Minute, 1)     // the first
		at(30*time.Hour, 1)      // nothing changed
		s.at(2, nil)             // it is due since long
		at(2*time.Hour, 1, 2)    //
		s.at(3, nil)             //
		at(20*time.Hour, 1, 2)   // not due yet
		at(6*time.Hour, 1, 2, 3) //
		s.at(4, io.EOF)
		at(25*time.Hour, 1, 2, 3)
		s.at(4, nil)
		at(time.Hour+time.Minute, 2, 3, 4)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A process that starts every day anew keeps to the schedule, too; one whose
// clock was set back doesn't wait for years.
func TestScheduleAcrossStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{t: t, revision: 1}
		shift := time.Duration(0)
		k := keeper(t, s, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(shift) } })
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), 6*time.Hour)
			s.revision++
			if err := k.Run(ctx); err != nil {
				t.Fatal(err)
			}
			cancel()
		}
		if s.written != 2 {
			t.Errorf("%d snapshots in 30 hours", s.written)
		}
		shift = -20 * 365 * 24 * time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Hour)
		defer cancel()
		s.revision++
		if err := k.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if s.written != 3 {
			t.Errorf("%d snapshots: none since the clock was set back", s.written)
		}
	})
}

func TestBeforeAnUpgrade(t *testing.T) {
	s := &source{t: t, revision: 1}
	k := keeper(t, s, nil)
	record := filepath.Join(t.TempDir(), "version")
	step := func(version string, want bool) {
		t.Helper()
		taken, err := k.BeforeUpgrade(t.Context(), record, version)
		if err != nil || taken != want {
			t.Errorf("%s: taken %v, %v; want %v", version, taken, err, want)
		}
		if raw, _ := os.ReadFile(record); strings.TrimSpace(string(raw)) != version {
			t.Errorf("record %q, want %q", raw, version)
		}
	}
	step("v1", false) // a new cluster
	s.revision = 10
	step("v1", false)
	step("v2", true)
	step("v2", false)
	step("v3", false) // nothing was written by v2
	s.revision = 11
	s.fail = io.EOF
	if _, err := k.BeforeUpgrade(t.Context(), record, "v4"); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	s.fail, s.spoil = nil, func(b []byte) []byte { return nil }
	if _, err := k.BeforeUpgrade(t.Context(), record, "v4"); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "from v3 to v4") {
		t.Errorf("%v", err)
	}
	s.spoil = nil
	step("v4", true) // it is tried again
	list, _ := k.List()
	if len(list) != 2 || list[1].Reason != Upgrade {
		t.Errorf("%+v", list)
	}
	// Data without a record is of a version before there was one.
	os.Remove(record)
	s.revision = 12
	step("v4", true)
}

func FuzzParseName(f *testing.F) {
	f.Add(name(time.Unix(1e9, 0), 12, Scheduled))
	f.Add("20260102T150405.000Z-r1-upgrade.db")
	f.Add("../20260102T150405.000Z-r1-upgrade.db")
	f.Add("20260102T150405.000Z-r-1-upgrade.db")
	f.Fuzz(func(t *testing.T, text string) {
		info, err := ParseName(text)
		if err != nil {
			if !errors.Is(err, ErrName) {
				t.Fatal(err)
			}
			return
		}
		if filepath.Base(text) != text || name(info.Taken, info.Revision, info.Reason) != text {
			t.Fatalf("%q is %+v", text, info)
		}
	})
}

// What bbolt makes of a file with the right hash is bounded, too.
func FuzzVerify(f *testing.F) {
	s := &source{t: f, revision: 3}
	var good strings.Builder
	if err := s.WriteSnapshot(context.Background(), &good); err != nil {
		f.Fatal(err)
	}
	raw := []byte(good.String())[:good.Len()-sha256.Size]
	f.Add(raw[:4096], uint16(0), byte(1))
	f.Add(raw, uint16(8), byte(255))
	f.Add(raw, uint16(4096+16), byte(255))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, head []byte, at uint16, with byte) {
		db := slices.Clone(raw)
		copy(db, head)
		db[int(at)%len(db)] ^= with
		sum := sha256.Sum256(db)
		path := filepath.Join(dir, "db")
		if err := os.WriteFile(path, append(db, sum[:]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(path); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	})
}
