package state

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

func TestCorruptFileIsSetAside(t *testing.T) {
	make := func(t *testing.T) (string, []byte) {
		path := filepath.Join(t.TempDir(), "state.db")
		s, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var objs []*fleet.Object
		for i := range 40 {
			objs = append(objs, object(KindPod, fmt.Sprint("p", i), fmt.Sprint("u", i), strings.Repeat(fmt.Sprint(i), 700)))
		}
		if err := s.Apply(version(1), objs, nil, time.Now()); err != nil {
			t.Fatal(err)
		}
		for i := range 40 {
			_ = s.PutPodStatus(fmt.Sprint("u", i), PodReport{Status: bytes.Repeat([]byte{1}, 900)})
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return path, raw
	}
	for name, damage := range map[string]func(raw []byte) []byte{
		"text":             func([]byte) []byte { return bytes.Repeat([]byte("not a database "), 1000) },
		"zeros":            func(raw []byte) []byte { return make2(len(raw)) },
		"half of it":       func(raw []byte) []byte { return raw[:len(raw)/2/4096*4096] },
		"two pages":        func(raw []byte) []byte { return raw[:2*4096] },
		"half a page":      func(raw []byte) []byte { return raw[:2048] },
		"both meta pages":  func(raw []byte) []byte { clear(raw[16:64]); clear(raw[4096+16 : 4096+64]); return raw },
		"pages of garbage": func(raw []byte) []byte { fill(raw[4*4096:]); return raw },
	} {
		t.Run(name, func(t *testing.T) {
			path, raw := make(t)
			bad := damage(bytes.Clone(raw))
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(path, Options{})
			if err != nil {
				t.Fatalf("the node doesn't start: %v", err)
			}
			defer s.Close()
			if s.SetAside() == "" {
				if pods, err := s.Desired(KindPod); err == nil && len(pods) == 40 {
					return // what was lost held nothing
				}
				t.Fatal("not noticed")
			}
			kept, err := os.ReadFile(s.SetAside())
			if err != nil || !bytes.Equal(kept, bad) {
				t.Errorf("the corrupt file was not kept as it was: %v", err)
			}
			if v := s.Version(); !v.IsZero() {
				t.Errorf("version %v in an empty file", v)
			}
			if err := s.Apply(version(2), []*fleet.Object{object(KindPod, "a", "u", "x")}, nil, time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
}

func make2(n int) []byte { return make([]byte, n) }

func fill(b []byte) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

// TestOneLostMetaPageIsSurvived: the last write was torn; the one before counts.
func TestOneLostMetaPageIsSurvived(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := open(t, path, Options{})
	_ = s.Apply(version(1), []*fleet.Object{object(KindPod, "a", "u", "x")}, nil, time.Now())
	s.Close()
	raw, _ := os.ReadFile(path)
	for page := range 2 {
		torn := bytes.Clone(raw)
		fill(torn[page*4096+16 : page*4096+80])
		_ = os.WriteFile(path, torn, 0o600)
		s, err := Open(path, Options{})
		if err != nil {
			t.Fatalf("meta page %d: %v", page, err)
		}
		if s.SetAside() != "" {
			t.Errorf("meta page %d: the other one was good", page)
		}
		s.Close()
	}
}

func TestDamagedObjectIsNamedAndFetchedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := open(t, path, Options{})
	content := strings.Repeat("flash wears out ", 100)
	_ = s.Apply(version(1), []*fleet.Object{object(KindPod, "a", "u1", content), object(KindPod, "b", "u2", "fine")}, nil, time.Now())
	s.Close()
	raw, _ := os.ReadFile(path)
	for i := 0; ; {
		n := bytes.Index(raw[i:], []byte("flash wears out flash"))
		if n < 0 {
			break
		}
		raw[i+n+5] ^= 0x20
		i += n + 100
	}
	_ = os.WriteFile(path, raw, 0o600)
	s = open(t, path, Options{})
	if s.SetAside() != "" {
		t.Fatal("the whole file was given up for one object")
	}
	pods, err := s.Desired(KindPod)
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "default/a") || len(pods) != 1 {
		t.Errorf("Desired = %d pods, %v", len(pods), err)
	}
	set, _ := s.Set()
	if _, ok := set["u1"]; !ok {
		t.Error("the damaged object is no longer in the set: its pod would be stopped")
	}
	want := fleet.Set{"u1": fleet.HashObject([]byte(content)), "u2": fleet.HashObject([]byte("fine"))}
	if set.Digest() == want.Digest() {
		t.Error("the hub would believe that all is well")
	}
	_ = s.Apply(version(2), []*fleet.Object{object(KindPod, "a", "u1", content)}, nil, time.Now())
	if pods, err := s.Desired(KindPod); err != nil || len(pods) != 2 {
		t.Errorf("after it came again: %d, %v", len(pods), err)
	}
}

func TestNewerSchemaAndSecondProcessAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := open(t, path, Options{})
	if _, err := Open(path, Options{LockTimeout: 50 * time.Millisecond}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second process: %v", err)
	}
	s.Close()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Update(func(tx *bolt.Tx) error { return putMeta(tx, keySchema, be64(schemaVersion+1)) })
	db.Close()
	if _, err := Open(path, Options{}); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), path) {
		t.Errorf("schema of tomorrow: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the newer file: %v", err)
	}
}

func TestFullDiskLosesNothingAndRecovers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "state.db")
	s := open(t, path, Options{FlushDelay: 5 * time.Millisecond})
	if err := s.Apply(version(1), []*fleet.Object{object(KindPod, "a", "u", "kept")}, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	fillDisk(t, ballast)
	var err error
	for i := uint64(2); i < 200 && err == nil; i++ {
		err = s.Apply(version(i), []*fleet.Object{object(KindPod, fmt.Sprint(i), fmt.Sprint("v", i), strings.Repeat("x", 6000))}, nil, time.Now())
	}
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), path) {
		t.Fatalf("on a full disk: %v", err)
	}
	t.Logf("%v", err)
	set, v := s.Set()
	// Reports are taken, and wait in memory, however often they can't be written.
	pages := func() int64 {
		stats := s.db.Stats()
		return stats.TxStats.GetPageCount()
	}
	tried := pages()
	big := bytes.Repeat([]byte{7}, 20000)
	if err := s.PutPodStatus("u", PodReport{Status: big}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return errors.Is(s.Health(), ErrFull) && pages() > tried })
	if r := s.Report("u"); r == nil || len(r.GetStatus()) != len(big) {
		t.Error("the report can't be sent")
	}
	if o, ok, err := s.Get(KindPod, "default", "a"); !ok || err != nil || string(o.Raw) != "kept" {
		t.Errorf("what was there: %v, %v", ok, err)
	}
	// Room again: it goes on by itself.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return s.Health() == nil })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	after, v2 := s.Set()
	if v2 != v || after.Digest() != set.Digest() {
		t.Errorf("version %v, %d objects; before %v, %d", v2, len(after), v, len(set))
	}
	if r := s.Report("u"); r == nil || len(r.GetStatus()) != len(big) {
		t.Error("the report that waited is lost")
	}
}

func TestStartsOnAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "state.db")
	s := open(t, path, Options{})
	_ = s.Apply(version(1), []*fleet.Object{object(KindPod, "a", "u", "kept")}, nil, time.Now())
	s.Close()
	fillDisk(t, filepath.Join(dir, "ballast"))
	s = open(t, path, Options{})
	if pods, err := s.Desired(KindPod); err != nil || len(pods) != 1 {
		t.Fatalf("%d pods, %v", len(pods), err)
	}
	if s.BootSeq() != 2 {
		t.Errorf("boot %d", s.BootSeq())
	}
}

func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int{4096, 1} {
		for {
			if _, err := f.Write(make([]byte, n)); err != nil {
				break
			}
		}
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("not within 5 s")
}

// TestKilledAtAnyMoment: a child applies orders and says so after each; it is
// killed at a random moment. All it said is there, and nothing of what it had
// only begun is there by half.
func TestKilledAtAnyMoment(t *testing.T) {
	if dir := os.Getenv("STATE_KILL_DIR"); dir != "" {
		killChild(dir)
		return
	}
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	dir := t.TempDir()
	last := uint64(0)
	for round := range rounds {
		var out bytes.Buffer
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledAtAnyMoment$")
		cmd.Env = append(os.Environ(), "STATE_KILL_DIR="+dir)
		cmd.Stdout = &out
		if err := cmd.Start(); errors.Is(err, syscall.ENOEXEC) {
			t.Skip("this machine can't start its own test again (an emulated processor)")
		} else if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+rand.IntN(60)) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		said := last
		for _, line := range strings.Split(out.String(), "\n") {
			var n uint64
			if _, err := fmt.Sscanf(line, "done %d.", &n); err == nil {
				said = max(said, n)
			}
		}
		s, err := Open(filepath.Join(dir, "state.db"), Options{})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if s.SetAside() != "" {
			t.Fatalf("round %d: corrupt", round)
		}
		set, v := s.Set()
		if v.Counter < said {
			t.Fatalf("round %d: order %d was said to be durable, the file has %d", round, said, v.Counter)
		}
		if want := killSet(v.Counter); set.Digest() != want.Digest() {
			t.Fatalf("round %d: after order %d the set is %v", round, v.Counter, set)
		}
		if rec, ok, _ := s.PodRecord("u"); v.Counter > 0 && (!ok || len(rec) == 0) {
			t.Errorf("round %d: no record", round)
		}
		last = v.Counter
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if last < uint64(rounds) {
		t.Fatalf("only %d orders: nothing was tested", last)
	}
	t.Logf("%d orders in %d lives", last, rounds)
}

// killSet is what order n leaves.
func killSet(n uint64) fleet.Set {
	if n == 0 {
		return fleet.Set{}
	}
	return fleet.Set{"even-or-odd": fleet.HashObject([]byte(killContent(n))), fmt.Sprint("only-", n): fleet.HashObject([]byte("x"))}
}

func killContent(n uint64) string { return strings.Repeat(fmt.Sprint(n, " "), 500) }

func killChild(dir string) {
	s, err := Open(filepath.Join(dir, "state.db"), Options{FlushDelay: time.Millisecond})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	_, v := s.Set()
	for n := v.Counter + 1; ; n++ {
		if err := s.PutPodRecord("u", []byte(fmt.Sprint(n))); err != nil {
			os.Exit(1)
		}
		_ = s.PutPodStatus("u", PodReport{Status: []byte(fmt.Sprint(n))})
		_ = s.Journal(Entry{Kind: EntryNote, Message: fmt.Sprint(n)})
		err := s.Apply(version(n), []*fleet.Object{object(KindPod, "p", "even-or-odd", killContent(n)), object(KindPod, "o", fmt.Sprint("only-", n), "x")},
			[]string{fmt.Sprint("only-", n-1)}, time.Now())
		if err != nil {
			os.Exit(1)
		}
		fmt.Printf("done %d.\n", n)
	}
}

func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed")
	s, err := Open(path, Options{})
	if err != nil {
		f.Fatal(err)
	}
	_ = s.Apply(version(1), []*fleet.Object{object(KindPod, "a", "u", "x")}, nil, time.Now())
	_ = s.PutPodStatus("u", PodReport{Status: []byte("1")})
	_ = s.Journal(Entry{Kind: EntryNote})
	s.Close()
	raw, _ := os.ReadFile(path)
	f.Add(0, []byte{1})
	f.Add(4096*3+10, []byte{255, 255, 255})
	f.Add(20, []byte{0, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, at int, patch []byte) {
		file := filepath.Join(t.TempDir(), "s")
		bad := bytes.Clone(raw)
		if at >= 0 && at < len(bad) {
			copy(bad[at:], patch)
		}
		_ = os.WriteFile(file, bad, 0o600)
		s, err := Open(file, Options{})
		if err != nil {
			if errors.Is(err, ErrNewer) {
				return
			}
			t.Fatalf("the node doesn't start: %v", err)
		}
		_, _ = s.Desired(KindPod)
		_, _ = s.JournalPending(0, 0, 1<<20)
		if err := s.Apply(version(2), []*fleet.Object{object(KindPod, "b", "u2", "y")}, nil, time.Now()); err != nil {
			t.Logf("apply: %v", err)
		}
		_ = s.Close()
	})
}

func FuzzVerify(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed")
	s, err := Open(path, Options{})
	if err != nil {
		f.Fatal(err)
	}
	var objs []*fleet.Object
	for i := range 30 {
		objs = append(objs, object(KindPod, fmt.Sprint("p", i), fmt.Sprint("u", i), strings.Repeat("x", 500)))
	}
	_ = s.Apply(version(1), objs, nil, time.Now())
	s.Close()
	raw, _ := os.ReadFile(path)
	if _, err := verify(bytes.NewReader(raw), int64(len(raw))); err != nil {
		f.Fatalf("a good file: %v", err)
	}
	f.Add(100, []byte{1, 2, 3})
	f.Add(5*4096, []byte{9})
	f.Fuzz(func(t *testing.T, at int, patch []byte) {
		bad := bytes.Clone(raw)
		if at >= 0 && at < len(bad) {
			copy(bad[at:], patch)
		}
		_, _ = verify(bytes.NewReader(bad), int64(len(bad)))
		_, _ = verify(bytes.NewReader(patch), int64(len(patch)))
	})
}
