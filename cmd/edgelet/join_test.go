package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
	"github.com/coracle-edge/coracle/controlplane/pki"
	"github.com/coracle-edge/coracle/edgelet/identity"
	"github.com/coracle-edge/coracle/examples"
)

// joinEndpoint is the real join endpoint of a cluster whose API is in memory.
type joinEndpoint struct {
	t      *testing.T
	client *fake.Clientset
	url    string
	late   atomic.Int64 // how far its clock is ahead
}

func (f *joinEndpoint) now() time.Time { return time.Now().Add(time.Duration(f.late.Load())) }

func startEndpoint(t *testing.T) *joinEndpoint {
	t.Helper()
	f := &joinEndpoint{t: t, client: fake.NewClientset()}
	authority, err := pki.Open(pki.Options{Dir: filepath.Join(t.TempDir(), "pki")})
	if err != nil {
		t.Fatal(err)
	}
	serving, err := authority.Fleet()
	if err != nil {
		t.Fatal(err)
	}
	hub, err := authority.Hub()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.url = "https://" + l.Addr().String()
	server, err := join.New(join.Config{Authority: authority, Serving: serving, Hub: hub, Client: f.client, Now: f.now,
		Records: noderecord.NewDirectory(f.client, nil),
		Cluster: func() enrollment.Cluster {
			return enrollment.Cluster{Incarnation: "first", Fleet: []string{f.url}, MQTT: []string{"mqtts://127.0.0.1:1"}}
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := server.Publish(t.Context(), join.Member{ID: "1", Addresses: join.Addresses{Fleet: []string{f.url}}, Alone: true}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *joinEndpoint) line(node string) enrollment.Line {
	f.t.Helper()
	l, err := join.CreateToken(f.t.Context(), f.client, join.TokenOptions{Node: node, Now: f.now})
	if err != nil {
		f.t.Fatal(err)
	}
	return l
}

// otherBoard joins with the line, as somebody who was faster.
func (f *joinEndpoint) otherBoard(l enrollment.Line) {
	f.t.Helper()
	if _, err := identity.Join(f.t.Context(), identity.JoinOptions{Options: identity.Options{Dir: f.t.TempDir()}, Line: l}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *joinEndpoint) forget(secret string) {
	f.t.Helper()
	if err := f.client.CoreV1().Secrets(noderecord.Namespace).Delete(f.t.Context(), secret, metav1.DeleteOptions{}); err != nil {
		f.t.Fatal(err)
	}
}

// refusedLines are those that a control plane refuses, and what the refusal says.
var refusedLines = []struct {
	name string
	line func(*joinEndpoint) string
	says []string
}{
	{"expired", func(f *joinEndpoint) string {
		l := f.line("board")
		f.late.Store(int64(2 * join.DefaultTokenLife))
		return l.String()
	}, []string{"has expired", "coracle token create board"}},
	{"used", func(f *joinEndpoint) string {
		l := f.line("board")
		f.otherBoard(l)
		f.forget(noderecord.SecretName("board"))
		return l.String()
	}, []string{"was used by another board", "coracle token create"}},
	{"unknown", func(f *joinEndpoint) string {
		l := f.line("board")
		l.Token = l.Token[:9] + strings.Repeat("a", 32)
		return l.String()
	}, []string{"isn't one of the cluster's", "coracle token create"}},
	{"of another cluster's CA", func(f *joinEndpoint) string {
		l := f.line("board")
		l.CAHash = strings.Repeat("ab", 32)
		return l.String()
	}, []string{"sha256:abab"}},
	{"for another name", func(f *joinEndpoint) string { return f.line("elsewhere").String() }, []string{`"elsewhere"`, "coracle token create board"}},
	{"cut off", func(f *joinEndpoint) string { s := f.line("board").String(); return s[:len(s)-9] }, []string{"--join", "cut off or mistyped"}},
}

// Somebody who joins a board that runs nothing yet sees the reason and has the
// prompt back.
func TestRefusedJoinOfANewBoardSaysWhyAndEnds(t *testing.T) {
	for _, c := range refusedLines {
		t.Run(c.name, func(t *testing.T) {
			line := c.line(startEndpoint(t))
			m := newMachine(t)
			m.launch("--join", line)
			ended := make(chan error, 1)
			go func() { ended <- m.cmd.Wait() }()
			select {
			case err := <-ended:
				m.cmd = nil
				if err == nil {
					t.Error("exit code 0")
				}
			case <-time.After(30 * time.Second):
				_ = m.cmd.Process.Kill()
				m.cmd = nil
				t.Fatal("still running after 30 s")
			}
			lines := strings.Split(strings.TrimSpace(m.log.String()), "\n")
			last := lines[len(lines)-1]
			for _, want := range append(c.says, "edgelet: ") {
				if !strings.Contains(last, want) {
					t.Errorf("the last line lacks %q: %s", want, last)
				}
			}
		})
	}
}

// steady fails when the agent ended or a guest isn't the one it was.
func (m *machine) steady(guests map[int]bool) {
	m.t.Helper()
	if _, err := m.status(); err != nil {
		m.t.Fatalf("the agent is gone: %v", err)
	}
	if now := m.runners(); !maps.Equal(now, guests) {
		m.t.Fatalf("guests %v, before %v", now, guests)
	}
}

// refusals waits until the agent has said n times that it didn't join.
func (m *machine) refusals(n int, words ...string) {
	m.t.Helper()
	m.eventually(fmt.Sprint(n, " lines of the refusal"), func() error {
		seen := 0
		for _, line := range strings.Split(m.log.String(), "\n") {
			if !strings.Contains(line, "level=ERROR") || !strings.Contains(line, "has not joined the cluster") {
				continue
			}
			for _, w := range append(words, "node=board", "pods=1") {
				if !strings.Contains(line, w) {
					return fmt.Errorf("the line lacks %q: %s", w, line)
				}
			}
			seen++
		}
		if seen < n {
			return fmt.Errorf("%d so far", seen)
		}
		return nil
	})
}

// A node works without its control plane (D7), and so without one that refuses
// it: pods that this node runs by itself are looked after all the time, and it
// joins when the reason is gone.
func TestRefusedJoinStopsNoPod(t *testing.T) {
	for _, c := range refusedLines {
		if c.name == "cut off" || c.name == "for another name" {
			continue // these don't go away by themselves
		}
		t.Run(c.name, func(t *testing.T) {
			f := startEndpoint(t)
			line := c.line(f)
			m := newMachine(t, "--join-retry", "50ms")
			m.start()
			m.importImage(examples.HelloModule, examples.HelloImage)
			m.put("hello", helloPod)
			m.phase("hello", "Running")
			m.stop(syscall.SIGTERM)
			guests := m.runners()

			m.launch("--join", line)
			m.refusals(3, c.says...)
			m.phase("hello", "Running")
			m.steady(guests)
			s, err := m.status()
			if err != nil || s.JoinRefused == nil || s.JoinRefused.Again == nil || !strings.Contains(s.JoinRefused.Reason, c.says[0]) {
				t.Errorf("status %+v, %v", s, err)
			}
			// Supervision goes on: a guest that dies is started again.
			for pid := range guests {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			m.eventually("another guest", func() error {
				now := m.runners()
				for pid := range now {
					if !guests[pid] {
						return nil
					}
				}
				return fmt.Errorf("guests %v", now)
			})
			guests = m.runners()

			if c.name == "expired" { // the control plane's clock was wrong
				f.late.Store(0)
				m.joined()
				m.steady(guests)
			}
		})
	}
}

func (m *machine) joined() {
	m.t.Helper()
	m.eventually("joining", func() error {
		if _, err := os.Stat(filepath.Join(m.dir, "identity", "identity.json")); err != nil {
			return err
		}
		s, err := m.status()
		switch {
		case err != nil:
			return err
		case s.JoinRefused != nil:
			return errors.New("still refused: " + s.JoinRefused.Reason)
		case len(s.Link) == 0:
			return errors.New("no link")
		}
		return nil
	})
}

// A line of another cluster, on a node that is one already: it stays what it is.
func TestLineOfAnotherClusterStopsNoPod(t *testing.T) {
	ours, other := startEndpoint(t), startEndpoint(t)
	m := newMachine(t)
	m.launch("--join", ours.line("board").String())
	m.joined()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.put("hello", helloPod)
	m.phase("hello", "Running")
	m.stop(syscall.SIGTERM)
	guests := m.runners()

	m.launch("--join", other.line("board").String())
	m.eventually("the complaint", func() error {
		s, err := m.status()
		if err != nil {
			return err
		}
		if s.JoinRefused == nil || len(s.Link) == 0 {
			return fmt.Errorf("%+v", s)
		}
		if want := "belongs to another cluster"; !strings.Contains(s.JoinRefused.Reason, want) || s.JoinRefused.Again != nil || !strings.Contains(m.log.String(), want) {
			m.t.Fatalf("%+v", s.JoinRefused)
		}
		return nil
	})
	m.phase("hello", "Running")
	m.steady(guests)
}
