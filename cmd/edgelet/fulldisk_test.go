package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/state"
	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
)

// smallDisks are file systems that are soon full, not much larger than what the
// image store keeps free. Each mounts one on dir and
// returns what messages call it.
var smallDisks = []struct {
	name       string
	stateGrows bool // a write to the state file needs another block
	mount      func(t *testing.T, dir string) (called string)
}{
	{"tmpfs", true, func(t *testing.T, dir string) string {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=72m,mode=755"); err != nil {
			t.Skipf("needs root, to mount a small tmpfs: %v", err)
		}
		return "tmpfs mounted on " + dir
	}},
	{"ext4", false, func(t *testing.T, dir string) string {
		lab.Need(t, "mkfs.ext4", "mount")
		file := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, 80<<20); err != nil {
			t.Fatal(err)
		}
		// No blocks set aside for root: full is full.
		if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", file).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		if out, err := exec.Command("mount", "-o", "loop", file, dir).CombinedOutput(); err != nil {
			t.Skipf("needs root and loop devices: %v %s", err, out)
		}
		return "ext4 mounted on " + dir
	}},
}

const tickerImage = "localhost:5443/test/ticker:1"

// fill takes all space that is left on the disk of m.
func (m *machine) fill() {
	m.t.Helper()
	f, err := os.OpenFile(m.ballast(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int{1 << 20, 4096, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, n))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			m.t.Fatal(err)
		}
	}
}

func (m *machine) ballast() string { return filepath.Join(m.dir, "ballast") }

// order has the node ordered to run a pod, as a hub would have before the network
// went away.
func (m *machine) order(name, image string) {
	m.t.Helper()
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "uid-ordered"},
		Spec: v1.PodSpec{NodeName: "board", RestartPolicy: v1.RestartPolicyAlways, Containers: []v1.Container{{
			Name: "main", Image: image, ImagePullPolicy: v1.PullNever,
			TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: v1.TerminationMessageReadFile}}}}
	raw, err := kubeobj.EncodePod(pod)
	if err != nil {
		m.t.Fatal(err)
	}
	s, err := state.Open(filepath.Join(m.dir, "state.db"), state.Options{})
	if err != nil {
		m.t.Fatal(err)
	}
	hash := fleet.HashObject(raw)
	object := &fleet.Object{Kind: state.KindPod, Namespace: "default", Name: name, Uid: string(pod.UID), Hash: hash[:], Raw: raw}
	if err := s.Apply(fleet.OrderVersion{Incarnation: "first", Epoch: 1, Counter: 1, Hub: "hub"}, []*fleet.Object{object}, nil, time.Now()); err != nil {
		m.t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		m.t.Fatal(err)
	}
}

// phases waits until exactly these pods are there in these phases.
func (m *machine) phases(want map[string]string) {
	m.t.Helper()
	m.eventually(fmt.Sprint(want), func() error {
		s, err := m.status()
		if err != nil {
			return err
		}
		got := map[string]string{}
		for _, p := range s.Pods {
			got[p.Name] = p.Phase
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("pods %v", got)
		}
		return nil
	})
}

func (m *machine) logged(from int, words ...string) {
	m.t.Helper()
	m.eventually(fmt.Sprintf("a line of the log with %q", words), func() error {
		for _, line := range strings.Split(m.log.String()[from:], "\n") {
			has := true
			for _, w := range words {
				has = has && strings.Contains(line, w)
			}
			if has {
				return nil
			}
		}
		return errors.New("no such line")
	})
}

// lastTick is the last number in the ticker's log.
func (m *machine) lastTick() (n int) {
	m.t.Helper()
	files, _ := filepath.Glob(filepath.Join(m.dir, "pods-logs", "default_ordered_*", "main", "*.log"))
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			m.t.Fatal(err)
		}
		if i := strings.LastIndex(string(raw), " tick "); i >= 0 {
			_, _ = fmt.Sscanf(string(raw[i:]), " tick %d", &n)
		}
	}
	return n
}

// killed returns the containers that ended by SIGKILL, as the agent saw it.
func (m *machine) killed() map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(m.log.String()) {
		if _, rest, ok := strings.Cut(line, `msg="container ended" container=`); ok && strings.Contains(line, "code=137") {
			id, _, _ := strings.Cut(rest, " ")
			out[id] = true
		}
	}
	return out
}

// A full disk under a node: what runs goes on, what is stored stays, the log says
// which disk and which folder, and with room again everything goes on by itself.
func TestFullDiskUnderANode(t *testing.T) {
	lab.NeedNamespaces(t)
	ticker := lab.Wasm(t, filepath.Join(lab.Root(t), "test", "e2e", "testdata", "ticker.c"))
	for _, disk := range smallDisks {
		t.Run(disk.name, func(t *testing.T) {
			t.Parallel()
			// The node says that it runs short, and evicts nothing: that would make room.
			m := newMachine(t, "--eviction-hard", "", "--eviction-soft", "nodefs.available<10%", "--eviction-soft-grace-period", "nodefs.available=1h")
			called := disk.mount(t, m.dir)
			t.Cleanup(func() {
				if m.cmd != nil {
					m.stop(syscall.SIGKILL)
				}
				m.killGuests()
				if err := syscall.Unmount(m.dir, syscall.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			if err := os.Mkdir(filepath.Join(m.dir, "static"), 0o755); err != nil {
				t.Fatal(err)
			}
			m.order("ordered", tickerImage)
			m.start()
			m.importImage(examples.HelloModule, examples.HelloImage)
			m.importImage(ticker, tickerImage)
			m.put("hello", helloPod)
			m.phases(map[string]string{"ordered": "Running", "hello-board": "Running"})
			guests := m.runners()
			if len(guests) != 2 {
				t.Fatalf("guests %v", guests)
			}
			m.eventually("a tick", func() error {
				if m.lastTick() == 0 {
					return errors.New("none")
				}
				return nil
			})
			// A dot hides it until there is no room to write it.
			m.put(".later", strings.Replace(helloPod, "name: hello}", "name: later}", 1))

			m.fill()
			full, tick := time.Now(), m.lastTick()
			if err := os.Rename(filepath.Join(m.dir, "static", ".later.yaml"), filepath.Join(m.dir, "static", "later.yaml")); err != nil {
				t.Fatal(err)
			}
			m.logged(0, "level=WARN", "later-board", m.dir+"/", "no space left on device")
			m.logged(0, "level=WARN", "the node runs short", "signal=nodefs.available")
			if disk.stateGrows {
				m.logged(0, "level=ERROR", "state isn't durable", filepath.Join(m.dir, "state.db"), "disk full", called)
			}
			m.steady(guests)

			// Killed and started again on the full disk: it takes over what runs.
			m.stop(syscall.SIGKILL)
			m.start()
			m.phase("hello", "Running")
			m.steady(guests)

			// Room: what waited starts, and what ran never noticed.
			if err := os.Remove(m.ballast()); err != nil {
				t.Fatal(err)
			}
			all := map[string]string{"ordered": "Running", "hello-board": "Running", "later-board": "Running"}
			m.phases(all)
			missed := int(time.Since(full).Seconds() * 2) // it ticks five times a second, or less on a busy machine
			m.eventually("ticks of the whole time", func() error {
				if now := m.lastTick(); now < tick+missed {
					return fmt.Errorf("tick %d, %d when the disk was full %s ago", now, tick, time.Since(full))
				}
				return nil
			})
			now := m.runners()
			for pid := range guests {
				if !now[pid] {
					t.Errorf("guest %d was not left alone: %v", pid, now)
				}
			}

			// Guests that die on a full disk come back when there is room.
			m.fill()
			m.killGuests()
			m.eventually("the end of the guests", func() error {
				if n := len(m.killed()); n != 3 {
					return fmt.Errorf("%d of 3", n)
				}
				return nil
			})
			if _, err := m.status(); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(m.ballast()); err != nil {
				t.Fatal(err)
			}
			m.eventually("three guests", func() error {
				if n := len(m.runners()); n != 3 {
					return fmt.Errorf("%d guests", n)
				}
				return nil
			})
			m.phases(all)
			ended := m.killed()
			m.eventually("how they ended on the disk", func() error {
				for id := range ended {
					raw, err := os.ReadFile(filepath.Join(m.dir, "crishim", "wasm", "containers", id, "record.json"))
					if err == nil && !strings.Contains(string(raw), `"exit":{`) {
						return fmt.Errorf("container %s: %s", id, raw)
					}
				}
				return nil
			})

			// Nothing was lost: after a power cut all three are there.
			from := len(m.log.String())
			m.stop(syscall.SIGKILL)
			m.killGuests()
			m.start()
			m.phases(all)
			m.eventually("three guests", func() error {
				if n := len(m.runners()); n != 3 {
					return fmt.Errorf("%d guests", n)
				}
				return nil
			})
			if aside, _ := filepath.Glob(filepath.Join(m.dir, "state.db.corrupt-*")); len(aside) > 0 {
				t.Errorf("the state file was given up: %v", aside)
			}
			for id := range ended {
				for line := range strings.Lines(m.log.String()[from:]) {
					if strings.Contains(line, id) && strings.Contains(line, "container ended") {
						t.Errorf("how container %s ended was forgotten: %s", id, line)
					}
				}
			}
		})
	}
}
