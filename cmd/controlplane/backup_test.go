package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/controlplane/restoration"
	"github.com/coracle-edge/coracle/controlplane/snapshots"
)

// program runs the control plane for what it does and then ends.
func program(t *testing.T, args ...string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), "CORACLE_TEST_CONTROLPLANE=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (p *process) get(t *testing.T, path string, into any) {
	t.Helper()
	raw, err := p.client.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(t.Context())
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (p *process) create(t *testing.T, name string) {
	t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := p.client.CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (p *process) has(t *testing.T, name string) bool {
	t.Helper()
	_, err := p.client.CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

func (p *process) standing(t *testing.T) (s fleethub.Standing) {
	t.Helper()
	wait(t, "hub", func() error {
		raw, err := p.client.CoreV1().RESTClient().Get().AbsPath(restoration.StatusPath).DoRaw(t.Context())
		if err == nil {
			err = json.Unmarshal(raw, &s)
		}
		return err
	})
	return s
}

func TestSnapshotUpgradeRestore(t *testing.T) {
	dir := t.TempDir()
	p := begin(t, dir)
	first := p.standing(t).Incarnation
	p.create(t, "before")
	var taken snapshots.Info
	raw, err := p.client.CoreV1().RESTClient().Post().AbsPath(snapshots.Path).DoRaw(t.Context())
	if err == nil {
		err = json.Unmarshal(raw, &taken)
	}
	if err != nil {
		t.Fatal(err)
	}
	var list snapshots.Answer
	if p.get(t, snapshots.Path, &list); len(list.Snapshots) != 1 || list.Snapshots[0] != taken || taken.Reason != snapshots.Requested || list.Dir != filepath.Join(dir, "snapshots") || list.Interval != "24h0m0s" {
		t.Errorf("%+v, taken %+v", list, taken)
	}
	file, err := p.client.CoreV1().RESTClient().Get().AbsPath(snapshots.Path, taken.Name).DoRaw(t.Context())
	onDisk, err2 := os.ReadFile(filepath.Join(list.Dir, taken.Name))
	if err != nil || err2 != nil || string(file) != string(onDisk) {
		t.Errorf("download of %d bytes, %v; %d on the disk, %v", len(file), err, len(onDisk), err2)
	}
	for _, name := range []string{"none.db", "..%2f..%2fpki%2fca.key", "20260102T150405.000Z-r1-scheduled.db"} {
		if _, err := p.client.CoreV1().RESTClient().Get().AbsPath(snapshots.Path, name).DoRaw(t.Context()); err == nil {
			t.Errorf("%s is served", name)
		}
	}
	p.create(t, "after")
	out, err := program(t, "--data-dir", dir, "--restore", taken.Name)
	if err == nil || !strings.Contains(out, "in use by another process") {
		t.Errorf("restore under a running control plane: %v %s", err, out)
	}
	p.end(t, syscall.SIGTERM)

	// Another version wrote last.
	if err := os.WriteFile(filepath.Join(dir, "version"), []byte("v0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p = begin(t, dir)
	if p.get(t, snapshots.Path, &list); len(list.Snapshots) != 2 || list.Snapshots[1].Reason != snapshots.Upgrade || list.Snapshots[1].Revision <= taken.Revision {
		t.Errorf("%+v", list)
	}
	p.end(t, syscall.SIGTERM)
	p = begin(t, dir) // the same version: none
	if p.get(t, snapshots.Path, &list); len(list.Snapshots) != 2 {
		t.Errorf("%+v", list)
	}
	if !p.has(t, "after") || p.standing(t).Restore != nil {
		t.Error("restarts changed something")
	}
	p.end(t, syscall.SIGTERM)

	if out, err := program(t, "--data-dir", dir, "--restore", "nothing.db"); err == nil || !strings.Contains(out, "nothing.db") || !strings.Contains(out, "coracle snapshot list") {
		t.Errorf("%v %s", err, out)
	}
	if out, err := program(t, "--data-dir", dir, "--restore", taken.Name); err != nil || !strings.Contains(out, "coracle restore adopt") {
		t.Fatalf("%v %s", err, out)
	}
	p = begin(t, dir)
	if !p.has(t, "before") || p.has(t, "after") {
		t.Error("it isn't the snapshot's state")
	}
	s := p.standing(t)
	if s.Restore == nil || s.Restore.Snapshot != taken.Name || s.Restore.Revision != taken.Revision || s.Incarnation == first || s.Confirmed {
		t.Errorf("%+v, incarnation before %s", s, first)
	}
	p.create(t, "new")
	noPartFailed(t, p)
	p.end(t, syscall.SIGTERM)

	// Put back by other means, and said so.
	if out, err := program(t, "--data-dir", dir, "--mark-restored"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	p = begin(t, dir)
	if again := p.standing(t); again.Restore == nil || again.Restore.ID == s.Restore.ID || again.Incarnation == s.Incarnation || !p.has(t, "new") {
		t.Errorf("%+v, before %+v", again, s)
	}
	if out, err := program(t, "--data-dir", filepath.Join(dir, "empty"), "--mark-restored"); err == nil || !strings.Contains(out, "no etcd") {
		t.Errorf("%v %s", err, out)
	}
}

// An upgrade on a full disk isn't refused: it is said, and tried again.
func TestUpgradeWithoutRoomForASnapshot(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("needs root, to mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(disk, syscall.MNT_DETACH) })
	dir := t.TempDir()
	p := begin(t, dir)
	p.end(t, syscall.SIGTERM)
	record := filepath.Join(dir, "version")
	if err := os.WriteFile(record, []byte("v0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p = begin(t, dir, "--snapshot-dir", disk)
	if !strings.Contains(p.log.String(), "no snapshot was taken before this upgrade") || !strings.Contains(p.log.String(), "no space for a snapshot in "+disk) {
		t.Errorf("its log:\n%s", p.log)
	}
	p.end(t, syscall.SIGTERM)
	if raw, _ := os.ReadFile(record); string(raw) != "v0.0.1\n" {
		t.Errorf("record %q", raw)
	}
	p = begin(t, dir)
	var list snapshots.Answer
	if p.get(t, snapshots.Path, &list); len(list.Snapshots) != 1 || list.Snapshots[0].Reason != snapshots.Upgrade {
		t.Errorf("%+v", list)
	}
}
