package fleetlink

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/edgelet/standing"
)

// recorded is a cluster whose nodes have records, as in production.
type recorded struct {
	*cluster
	store     noderecord.Store
	directory *noderecord.Directory
}

func newRecorded(t *testing.T, kind brokerKind) *recorded {
	t.Helper()
	r := &recorded{}
	r.cluster = newClusterPrepared(t, kind, func(c *cluster) {
		c.client = versioned()
		r.store = noderecord.Store{Client: c.client}
		c.configure = r.use
		r.directory = noderecord.NewDirectory(c.client, logger(t, "records"))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = r.directory.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	})
	r.begin()
	return r
}

// versioned is a fake API that gives UIDs and refuses a write of an old version, as
// the real one does, for nodes and records.
func versioned() *fake.Clientset {
	client := fake.NewClientset()
	var mu sync.Mutex
	n := 0
	write := func(action clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		n++
		object := action.(clienttesting.CreateAction).GetObject().DeepCopyObject()
		o, err := meta.Accessor(object)
		if err != nil {
			return true, nil, err
		}
		tracker, resource := client.Tracker(), action.GetResource()
		if action.GetVerb() == "create" {
			o.SetResourceVersion(strconv.Itoa(n))
			o.SetUID(types.UID(fmt.Sprintf("made-%d", n)))
			return true, object, tracker.Create(resource, object, action.GetNamespace())
		}
		old, err := tracker.Get(resource, action.GetNamespace(), o.GetName())
		if err != nil {
			return true, nil, err
		}
		have, err := meta.Accessor(old)
		if err != nil {
			return true, nil, err
		}
		if v := o.GetResourceVersion(); v != have.GetResourceVersion() {
			return true, nil, apierrors.NewConflict(resource.GroupResource(), o.GetName(), errors.New("old version"))
		}
		o.SetResourceVersion(strconv.Itoa(n))
		return true, object, tracker.Update(resource, object, action.GetNamespace())
	}
	for _, resource := range []string{"nodes", "secrets"} {
		client.PrependReactor("create", resource, write)
		client.PrependReactor("update", resource, write)
	}
	return client
}

// begin lets the hub hear of records, as of now.
func (r *recorded) begin() {
	hub := r.hub
	if err := r.directory.OnChange(func(node string, _, _ *noderecord.Record) { hub.RecordChanged(node) }); err != nil {
		r.t.Fatal(err)
	}
}

// restartHub is another process in its place; between happens while there is none.
func (r *recorded) restartHub(between func()) {
	r.stopHub()
	between()
	r.startHub()
	r.begin()
}

func (r *recorded) use(c *fleethub.Config) {
	c.ReconnectJitter = time.Second // in it another board with the identity has time to speak
	c.Records = r.store
	c.Members = r.directory.Names
	c.Keys = func(ctx context.Context, node string) (fleethub.NodeKeys, error) {
		record, err := r.directory.Lookup(ctx, node)
		if err != nil {
			return fleethub.NodeKeys{}, err
		}
		return fleethub.NodeKeys{Sign: record.SigningKey, Seal: record.SealingKey, NodeUID: record.NodeUID}, record.Standing()
	}
}

// eachRecorded runs a test over every make of broker.
func eachRecorded(t *testing.T, run func(t *testing.T, c *recorded)) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			run(t, newRecorded(t, kind))
		})
	}
}

// member is a board with a record, that keeps its standing as edgelet does.
type member struct {
	*board
	c       *recorded
	keeper  atomic.Pointer[standing.Keeper]
	stopped atomic.Bool
	text    string
}

// joined makes a record of a new board and starts it.
func (r *recorded) joined(t *testing.T, name string) *member {
	t.Helper()
	public, key, _ := ed25519.GenerateKey(rand.Reader)
	seal, err := fleet.SealKEM().GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Create(ctx, noderecord.Record{Node: name, SigningKey: public, SealingKey: seal.PublicKey().Bytes(), KEM: 0x20, JoinedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	r.admit(name)
	m := &member{c: r, text: "one", board: &board{c: r.cluster, name: name, dir: t.TempDir(), key: key, seal: seal,
		tls: r.pki.Client(fleet.NodeUserPrefix + name), tunnels: make(chan *fleet.TunnelRequest, 8), cable: &cable{}}}
	m.run(t)
	return m
}

// copyOf is another board with the card of m, taken while m's agent didn't run.
func (m *member) copyOf(t *testing.T) *member {
	t.Helper()
	other := &member{c: m.c, text: "two", board: &board{c: m.board.c, name: m.name, dir: t.TempDir(), key: m.key, seal: m.seal, tls: m.tls,
		tunnels: make(chan *fleet.TunnelRequest, 8), cable: &cable{}}}
	raw, err := os.ReadFile(filepath.Join(m.dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other.dir, "state.db"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return other
}

func (m *member) run(t *testing.T) {
	m.config = func(c *link.Config) {
		keeper := standing.New(c.State, c.Logger, nil)
		m.keeper.Store(keeper)
		c.OnStanding = keeper.Told
		c.Features = []string{fleet.FeatureProbe}
		c.BootID = make([]byte, 8)
		_, _ = rand.Read(c.BootID)
		c.Board = func() string { return "serial " + m.text }
		c.Readmission = func(ctx context.Context) bool {
			// What the fleet endpoint would answer.
			for heard := false; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
				record, err := m.c.directory.Lookup(ctx, m.name)
				if err == nil && record.Refused() == nil {
					return heard
				}
				heard = true
			}
			return false
		}
	}
	m.start()
	m.stopped.Store(false)
	t.Cleanup(func() { m.end() })
}

func (m *member) end() {
	if !m.stopped.Swap(true) {
		m.board.stop()
	}
}

func (m *member) stands(t *testing.T, state string) standing.Standing {
	t.Helper()
	var s standing.Standing
	eventuallyIn(t, 40*time.Second, m.text+" is "+state, func() bool { s = m.keeper.Load().Current(); return s.State == state })
	return s
}

func TestRevocationReachesTheNodeByAnyBroker(t *testing.T) {
	eachRecorded(t, func(t *testing.T, c *recorded) {
		m := c.joined(t, "board-a")
		m.live(t)
		m.register()
		c.createPod("one", "board-a", nil)
		m.hasPods(t, "one")
		eventually(t, "it is ready", func() bool { return c.readiness("board-a") == corev1.ConditionTrue })
		if err := c.store.Revoke(ctx, "board-a", "sold", time.Now()); err != nil {
			t.Fatal(err)
		}
		if s := m.stands(t, "Revoked"); !strings.Contains(s.Message, "sold") {
			t.Errorf("told %+v", s)
		}
		eventually(t, "the session is over", func() bool { return !m.link.Status().Live })
		if err := m.link.Status().Err; !errors.Is(err, link.ErrRefused) {
			t.Errorf("the link's error: %v", err)
		}
		eventually(t, "the node is away", func() bool { return c.readiness("board-a") == corev1.ConditionUnknown })
		eventually(t, "the Node says why", func() bool {
			for _, cond := range c.node("board-a").Status.Conditions {
				if cond.Type == fleethub.ConditionRefused {
					return cond.Status == corev1.ConditionTrue && cond.Reason == "Revoked" && strings.Contains(cond.Message, "sold")
				}
			}
			return false
		})
		// Whoever knocks is told again, and nothing is ordered.
		m.end()
		c.createPod("two", "board-a", nil)
		m.config = nil
		told := make(chan *fleet.Standing, 8)
		m.config = func(cfg *link.Config) {
			cfg.OnStanding = func(s *fleet.Standing) { told <- s }
		}
		m.start()
		m.stopped.Store(false)
		if c.broker != nil {
			select {
			case s := <-told:
				if s.GetState() != fleet.StandingState_REVOKED {
					t.Errorf("told %v", s)
				}
			case <-time.After(20 * time.Second):
				t.Error("a Hello of a revoked node isn't answered")
			}
		}
		m.hasPods(t, "one")
		if m.link.Status().Live {
			t.Error("a session with a revoked node")
		}
		m.end()
		m.run(t)
		if was, err := c.store.Readmit(ctx, "board-a"); err != nil || !errors.Is(was, enrollment.ErrRevoked) {
			t.Fatal(was, err)
		}
		m.hasPods(t, "one", "two")
		m.stands(t, standing.Good)
	})
}

// What a hub that wasn't there when it happened makes of it.
func TestARemovalIsNoticedAlsoAfterwards(t *testing.T) {
	eachRecorded(t, func(t *testing.T, c *recorded) {
		m := c.joined(t, "board-a")
		m.live(t)
		m.register()
		c.createPod("one", "board-a", nil)
		m.hasPods(t, "one")
		eventually(t, "the record names the Node", func() bool {
			r, err := c.store.Get(ctx, "board-a")
			return err == nil && c.node("board-a") != nil && r.NodeUID == string(c.node("board-a").UID)
		})
		c.restartHub(func() {
			if err := c.client.CoreV1().Nodes().Delete(ctx, "board-a", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		})
		m.hasPods(t)
		m.stands(t, "Removed")
		if !m.link.Status().Live {
			t.Error("a removed node waits in a session")
		}
	})
}

func TestTwoBoardsWithOneIdentityAreRefusedAndNamed(t *testing.T) {
	for _, ahead := range []int{0, 3} {
		t.Run(fmt.Sprintf("boots apart %d", ahead), func(t *testing.T) {
			eachRecorded(t, func(t *testing.T, c *recorded) {
				one := c.joined(t, "board-a")
				one.live(t)
				one.register()
				eventually(t, "it is registered", func() bool { return c.node("board-a") != nil })
				one.end()
				two := one.copyOf(t)
				// The copy starts at the same boot number, or lags behind.
				for range ahead {
					one.run(t)
					one.live(t)
					one.end()
				}
				one.run(t)
				one.live(t)
				two.run(t)
				for _, m := range []*member{one, two} {
					s := m.stands(t, "Cloned")
					if !strings.Contains(s.Message, `"serial one"`) || !strings.Contains(s.Message, `"serial two"`) || !strings.Contains(s.Message, "edgelet reset") {
						t.Errorf("%s is told %q", m.text, s.Message)
					}
				}
				eventually(t, "an event names both", func() bool {
					list, _ := c.client.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
					for _, e := range list.Items {
						if e.Reason == "Cloned" && strings.Contains(e.Message, `"serial one"`) && strings.Contains(e.Message, `"serial two"`) {
							return true
						}
					}
					return false
				})
				// The copy is taken away; the other one is readmitted and stays.
				two.end()
				if _, err := c.store.Readmit(ctx, "board-a"); err != nil {
					t.Fatal(err)
				}
				one.live(t)
				one.stands(t, standing.Good)
				one.end()
				one.run(t)
				one.live(t)
				one.stands(t, standing.Good)
			})
		})
	}
}

// A node that joined and of which the API knows nothing else is heard by the next
// hub, although a broker that lives on keeps it in a session that it trusts.
func TestAMemberWithoutANodeIsHeardByTheNextHub(t *testing.T) {
	eachRecorded(t, func(t *testing.T, c *recorded) {
		m := c.joined(t, "board-a")
		m.live(t)
		c.restartHub(func() {})
		eventually(t, "the hub heard of it", func() bool {
			l, ok := c.hub.Liveness("board-a")
			return ok && l.Presence == fleethub.Present
		})
	})
}

// One board that starts again, however it ended, however often, is one board: also
// when its connection breaks, when the hub starts again, and when its card is put
// back to an earlier state.
func TestOneBoardIsNeverTwo(t *testing.T) {
	eachRecorded(t, func(t *testing.T, c *recorded) {
		m := c.joined(t, "board-a")
		m.live(t)
		m.end()
		early := m.copyOf(t)
		for i := range 6 {
			m.run(t)
			m.live(t)
			before := m.link.Status().Session
			m.cable.pull()
			eventually(t, "it is there again", func() bool { s := m.link.Status(); return s.Live && s.Session != before })
			if i == 3 {
				c.restartHub(func() {})
				m.live(t)
			}
			m.end()
		}
		early.run(t) // the card of before the six starts
		early.live(t)
		early.end()
		early.run(t)
		early.live(t)
		time.Sleep(300 * time.Millisecond)
		if r, err := c.store.Get(ctx, "board-a"); err != nil || r.Cloned() {
			t.Errorf("taken for two: %s, %v", r.ClonedBetween, err)
		}
	})
}

// A recording proves nothing: whoever can record and repeat what a board said
// before it was started again makes no second board of it.
func TestARecordedHelloIsNoSecondBoard(t *testing.T) {
	c := newRecorded(t, embedded)
	m := c.joined(t, "board-a")
	m.live(t)
	m.end()
	m.run(t)
	m.live(t)
	var mu sync.Mutex
	c.tap.mu.Lock()
	old := append([][]byte(nil), c.tap.up...)
	c.tap.mu.Unlock()
	for range 3 {
		for _, payload := range old {
			mu.Lock()
			c.tap.into("board-a", fleet.DirUp, payload)
			mu.Unlock()
		}
		time.Sleep(fleethubProbeEvery)
	}
	if r, err := c.store.Get(ctx, "board-a"); err != nil || r.Cloned() {
		t.Errorf("taken for two: %s, %v", r.ClonedBetween, err)
	}
	if !m.link.Status().Live {
		t.Error("the session suffered")
	}
	m.stands(t, standing.Good)
}

// fleethubProbeEvery is a little more than the hub's own bound.
const fleethubProbeEvery = 2100 * time.Millisecond
