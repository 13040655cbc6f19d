package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

func open(t testing.TB, path string, opts Options) *Store {
	t.Helper()
	s, err := Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func object(kind, name, uid, content string) *fleet.Object {
	h := fleet.HashObject([]byte(content))
	return &fleet.Object{Kind: kind, Namespace: "default", Name: name, Uid: uid, Hash: h[:], Raw: []byte(content)}
}

func version(counter uint64) fleet.OrderVersion {
	return fleet.OrderVersion{Incarnation: "cluster1", Epoch: 3, Counter: counter, Hub: "hub"}
}

var running_ = []byte{0x0a, 7, 'R', 'u', 'n', 'n', 'i', 'n', 'g'} // PodStatus{Phase: Running}

func TestDesiredSurvivesAndIsFoundByName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{})
	if v := s.Version(); !v.IsZero() {
		t.Fatalf("version of a new file = %v", v)
	}
	objs := []*fleet.Object{object(KindPod, "a", "u1", "pod a"), object(KindConfigMap, "a", "u2", "map a")}
	if err := s.Apply(version(1), objs, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Changed():
	default:
		t.Error("no signal after Apply")
	}
	if err := s.Apply(version(2), []*fleet.Object{object(KindPod, "b", "u3", "pod b")}, []string{"u1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	want, _ := s.Set()
	s.Close()

	s = open(t, path, Options{})
	set, v := s.Set()
	if v != version(2) || set.Digest() != want.Digest() || len(set) != 2 {
		t.Fatalf("after reopen: version %v, set %v", v, set)
	}
	if s.BootSeq() != 2 {
		t.Errorf("boot = %d, want 2", s.BootSeq())
	}
	pods, err := s.Desired(KindPod)
	if err != nil || len(pods) != 1 || pods[0].UID != "u3" || string(pods[0].Raw) != "pod b" {
		t.Fatalf("pods = %+v, %v", pods, err)
	}
	if o, ok, err := s.Get(KindConfigMap, "default", "a"); !ok || err != nil || string(o.Raw) != "map a" {
		t.Fatalf("Get = %+v, %v, %v", o, ok, err)
	}
	if _, ok, _ := s.Get(KindPod, "default", "a"); ok {
		t.Error("a removed pod is still there")
	}
}

func TestPodOfTheSameNameReplacesTheOld(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"), Options{})
	_ = s.Apply(version(1), []*fleet.Object{object(KindPod, "web-0", "old", "1")}, nil, time.Now())
	_ = s.Apply(version(2), []*fleet.Object{object(KindPod, "web-0", "new", "2")}, nil, time.Now())
	_ = s.Apply(version(3), nil, []string{"old"}, time.Now())
	if o, ok, _ := s.Get(KindPod, "default", "web-0"); !ok || o.UID != "new" {
		t.Fatalf("Get = %+v, %v", o, ok)
	}
}

func TestReportsAreLatestWinsAndReleased(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"), Options{})
	put := func(r PodReport) {
		t.Helper()
		if err := s.PutPodStatus(r.UID, r); err != nil {
			t.Fatal(err)
		}
	}
	put(PodReport{UID: "u", Name: "a", Status: []byte("1")})
	first := s.Reports()[0].Stamp
	put(PodReport{UID: "u", Name: "a", Status: []byte("1")}) // the same again
	if s.Reports()[0].Stamp != first {
		t.Error("saying the same again made a new report")
	}
	put(PodReport{UID: "u", Name: "a", Status: []byte("2")})
	second := s.Reports()[0].Stamp
	if !second.Obsoletes(first) {
		t.Fatalf("stamp %v after %v", second, first)
	}
	s.Acked("u", first) // late ack of the old one
	if s.Reports()[0].Acked {
		t.Error("an ack of an older report released the newer one")
	}
	s.Acked("u", second)
	if !s.Reports()[0].Acked {
		t.Error("ack ignored")
	}
	s.Unack("u")
	if s.Reports()[0].Acked {
		t.Error("Unack ignored")
	}
	put(PodReport{UID: "u", Name: "a", Gone: true})
	s.Acked("u", s.Reports()[0].Stamp)
	if len(s.Reports()) != 0 {
		t.Error("a pod that is gone and acknowledged is still there")
	}
}

func TestStampsRiseOverBoots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := open(t, path, Options{})
	for i := range 5 {
		_ = s.PutPodStatus("u", PodReport{Status: fmt.Append(nil, i)})
	}
	last := s.Reports()[0].Stamp
	s.Close()
	s = open(t, path, Options{})
	if got := s.Reports(); len(got) != 1 || got[0].Stamp != last || got[0].Acked {
		t.Fatalf("after reopen %+v, want %v", got, last)
	}
	_ = s.PutPodStatus("u", PodReport{Status: []byte("x")})
	if next := s.Reports()[0].Stamp; !next.Obsoletes(last) {
		t.Fatalf("%v after %v", next, last)
	}
}

func TestIdleStoreWritesNothing(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"), Options{FlushDelay: time.Millisecond})
	_ = s.Apply(version(1), []*fleet.Object{object(KindPod, "a", "u", "x")}, nil, time.Now())
	_ = s.PutPodStatus("u", PodReport{Status: []byte("1")})
	_ = s.PutNodeReport([]byte("node"))
	_ = s.PutPodRecord("u", []byte("r"))
	_ = s.PutSetting("keepalive", "60")
	_ = s.RaiseTimeFloor(time.Unix(1e9, 0))
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	before := s.Written()
	if before.Commits == 0 || before.Bytes == 0 || before.Syncs == 0 {
		t.Fatalf("nothing counted: %+v", before)
	}
	for range 20 { // a board that works and on which nothing changes
		_ = s.PutPodStatus("u", PodReport{Status: []byte("1")})
		_ = s.PutNodeReport([]byte("node"))
		_ = s.PutPodRecord("u", []byte("r"))
		_ = s.PutSetting("keepalive", "60")
		_ = s.RaiseTimeFloor(time.Unix(1e9+3600, 0))
		for _, r := range s.Reports() {
			s.Acked(r.UID, r.Stamp)
		}
		time.Sleep(2 * time.Millisecond)
	}
	if after := s.Written(); after != before {
		t.Fatalf("an idle store wrote: %+v, before %+v", after, before)
	}
}

func TestJournalKeepsOrderAndSaysWhatIsLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := open(t, path, Options{JournalEntries: 10})
	for i := range 8 {
		_ = s.Journal(Entry{Kind: EntryEvent, Reason: fmt.Sprint(i)})
	}
	j, err := s.JournalPending(0, 0, 1<<20)
	if err != nil || len(j.GetEntries()) != 8 || len(j.GetGaps()) != 0 {
		t.Fatalf("pending = %v, %v", j, err)
	}
	s.JournalAcked(1, 3)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	for i := 8; i < 20; i++ {
		_ = s.Journal(Entry{Kind: EntryEvent, Reason: fmt.Sprint(i)})
	}
	s.Close()
	s = open(t, path, Options{JournalEntries: 10})
	_ = s.Journal(Entry{Kind: EntryNote, Reason: "second boot"})
	j, err = s.JournalPending(0, 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	// 1-3 were acknowledged, 4-11 had to go, 12-20 and the new one are left.
	if len(j.GetGaps()) != 1 || j.Gaps[0].GetFrom() != 4 || j.Gaps[0].GetTo() != 11 {
		t.Errorf("gaps = %v", j.GetGaps())
	}
	if n := len(j.GetEntries()); n != 10 || j.Entries[0].GetSeq() != 12 || j.Entries[9].GetBoot() != 2 {
		t.Errorf("entries = %v", j.GetEntries())
	}
	s.JournalAcked(2, 1)
	j, _ = s.JournalPending(0, 0, 1<<20)
	if len(j.GetEntries())+len(j.GetGaps()) != 0 {
		t.Errorf("pending after all was acknowledged: %v", j)
	}
	if tail, err := s.JournalTail(3); err != nil || len(tail) != 3 || tail[2].GetReason() != "second boot" {
		t.Errorf("tail = %v, %v", tail, err)
	}
}

func TestJournalPendingIsCompleteWhileItIsWritten(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"), Options{FlushDelay: time.Microsecond})
	for i := 1; i <= 200; i++ {
		_ = s.Journal(Entry{Kind: EntryNote})
		j, err := s.JournalPending(0, 0, 1<<20)
		if err != nil || len(j.GetEntries()) != i {
			t.Fatalf("after %d entries: %d, %v", i, len(j.GetEntries()), err)
		}
	}
}

func TestTraceOffsetsTravelUntilRunningIsAcknowledged(t *testing.T) {
	now := time.Now()
	s := open(t, filepath.Join(t.TempDir(), "s"), Options{Now: func() time.Time { return now }})
	arrived := now
	now = now.Add(2 * time.Millisecond)
	_ = s.Apply(version(1), []*fleet.Object{object(KindPod, "a", "u", "x")}, nil, arrived)
	now = now.Add(8 * time.Millisecond)
	s.Times("u").Mark(trace.ContainerStarted, now)
	_ = s.PutPodStatus("u", PodReport{Status: running_})
	now = now.Add(5 * time.Millisecond)
	r := s.Report("u")
	if r.GetElapsed() != int64(15*time.Millisecond) || len(r.GetTrace()) != 3 {
		t.Fatalf("report = %v", r)
	}
	if last := r.GetTrace()[2]; last.GetStep() != string(trace.StatusQueued) && last.GetStep() != string(trace.ContainerStarted) {
		t.Fatalf("trace = %v", r.GetTrace())
	}
	s.Acked("u", fleet.StampFrom(r.GetStamp()))
	if s.Times("u") != nil || len(s.Report("u").GetTrace()) != 0 {
		t.Error("the trace is sent again after it was told")
	}
}

func TestSecretsStaySealedOnDisk(t *testing.T) {
	key, err := fleet.SealKEM().GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	const secret = "correct horse battery staple"
	path := filepath.Join(t.TempDir(), "s")
	s := open(t, path, Options{Unseal: func(uid string, h fleet.Hash, sealed []byte) ([]byte, error) {
		return fleet.Unseal(key, "n", uid, h, sealed)
	}})
	h := fleet.HashSecret([]byte("k"), []byte(secret))
	sealed, err := fleet.Seal(key.PublicKey().Bytes(), "n", "u", h, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	o := &fleet.Object{Kind: KindSecret, Namespace: "default", Name: "s", Uid: "u", Hash: h[:], Sealed: sealed}
	if err := s.Apply(version(1), []*fleet.Object{o}, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	got, ok, err := s.Get(KindSecret, "default", "s")
	if err != nil || !ok || string(got.Raw) != secret {
		t.Fatalf("Get = %q, %v, %v", got.Raw, ok, err)
	}
	s.Close()
	raw, _ := os.ReadFile(path)
	if contains(raw, secret) {
		t.Error("the secret lies in the file in clear")
	}
	s = open(t, path, Options{})
	if _, _, err := s.Get(KindSecret, "default", "s"); !errors.Is(err, fleet.ErrSealed) {
		t.Errorf("without a key: %v", err)
	}
}

func TestTimeFloorOnlyRises(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := open(t, path, Options{})
	a := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	_ = s.RaiseTimeFloor(a)
	_ = s.RaiseTimeFloor(a.Add(-time.Hour * 100))
	s.Close()
	if got := open(t, path, Options{}).TimeFloor(); !got.Equal(a) {
		t.Fatalf("floor = %v", got)
	}
}

func contains(b []byte, s string) bool {
	for i := range b {
		if len(b)-i >= len(s) && string(b[i:i+len(s)]) == s {
			return true
		}
	}
	return false
}

func TestNothingIsAbsentBeforeAllCameOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{})
	if s.Complete() {
		t.Fatal("complete before anything came")
	}
	if err := s.ApplyPart(version(1), []*fleet.Object{object(KindPod, "a", "u1", "a")}, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, path, Options{})
	if s.Complete() {
		t.Error("complete with the first of several orders")
	}
	for len(s.Changed()) > 0 {
		<-s.Changed()
	}
	if err := s.Apply(version(2), nil, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	if len(s.Changed()) == 0 || !s.Complete() {
		t.Error("nobody is told that all have come")
	}
	// From then on what isn't here isn't wanted, whatever else is to come.
	if err := s.ApplyPart(version(3), nil, []string{"u1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if s = open(t, path, Options{}); !s.Complete() {
		t.Error("incomplete again")
	}
}
