package fleetlink

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	k8stesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/state"
	"github.com/coracle-edge/coracle/test/fleetlink/hostile"
)

// TestAHostileBrokerChangesNothingButTime: a fleet under a storm of changes, behind
// a broker that does its worst and is honest at last. HOSTILE_SEEDS=N runs N more
// seeds, HOSTILE_SEED=S that one only; HOSTILE_PATIENCE=10m has everybody find out
// without a last cut what was dropped, by the protocol's own long waits.
func TestAHostileBrokerChangesNothingButTime(t *testing.T) {
	t.Parallel()
	type run struct {
		kind brokerKind
		seed uint64
	}
	runs := []run{{embedded, 1}, {embedded, 2}, {nats, 3}, {mosquitto, 4}}
	if n, _ := strconv.Atoi(os.Getenv("HOSTILE_SEEDS")); n > 0 {
		for i := range n {
			runs = append(runs, run{kinds[i%len(kinds)], uint64(1000 + i)})
		}
	}
	if only, err := strconv.ParseUint(os.Getenv("HOSTILE_SEED"), 10, 64); err == nil {
		runs = nil
		for _, kind := range kinds {
			runs = append(runs, run{kind, only})
		}
	}
	var proxies []*hostile.Proxy
	t.Run("storms", func(t *testing.T) {
		var mu sync.Mutex
		for _, r := range runs {
			t.Run(fmt.Sprintf("%s/%d", r.kind, r.seed), func(t *testing.T) {
				t.Parallel()
				s := newStorm(t, r.kind, r.seed)
				mu.Lock()
				proxies = append(proxies, s.proxy)
				mu.Unlock()
				s.run()
			})
		}
	})
	for m := hostile.Drop; m <= hostile.Cut; m++ {
		var did int64
		for _, p := range proxies {
			did += p.Did(m)
		}
		if did == 0 && !t.Failed() {
			t.Errorf("no proxy did a %s: nothing is proven", m)
		}
	}
}

// storm is a test's world: what was asked of the API, and what nodes were told to
// say.
type storm struct {
	t     *testing.T
	c     *cluster
	seed  uint64
	proxy *hostile.Proxy
	rand  *rand.Rand
	nodes []*board

	mu      sync.Mutex
	node    map[string]string // pods by UID: their node
	doomed  map[string]bool   // UIDs whose end was asked for
	says    map[string]string // pods by name: the last that their node said
	image   map[string]string // pods by name: the last that the API said
	data    string            // of the ConfigMap that all pods refer to
	entries []string          // of all journals
	wrong   []string
}

func newStorm(t *testing.T, kind brokerKind, seed uint64) *storm {
	s := &storm{t: t, seed: seed, rand: rand.New(rand.NewPCG(seed, 99)), node: map[string]string{}, doomed: map[string]bool{}, says: map[string]string{}, image: map[string]string{}}
	s.c = newClusterPrepared(t, kind, func(c *cluster) {
		lockPods(c.client)
		c.configure = func(c *fleethub.Config) { c.Events = 1 << 20 }
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.proxy = hostile.New(hostile.Config{Listener: l, Server: s.c.pki.Server(), Client: s.c.pki.Client, Broker: s.c.addr, Seed: seed, Rates: hostile.Storm(),
		Forger: hostile.NewForger(func(node string) ed25519.PublicKey {
			if node == "" {
				return s.c.hubKey.Public().(ed25519.PublicKey)
			}
			s.c.mu.Lock()
			defer s.c.mu.Unlock()
			return s.c.keys[node].Sign
		}, seed)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.proxy.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("seed %d; HOSTILE_SEED=%d runs it again. The proxy: %s", seed, seed, s.proxy.Report())
		}
	})
	if s.c.front = s.proxy.Addr(); kind != embedded {
		s.c.stopHub()
		s.c.addr = s.c.front // the hub's way, too
		s.c.startHub()
	}
	return s
}

// lockPods has an update of an older Pod refused, as the API server does: else a
// status that is written late takes back a change of the spec.
func lockPods(client *fake.Clientset) {
	var mu sync.Mutex
	version, tracker, pods := 0, client.Tracker(), corev1.SchemeGroupVersion.WithResource("pods")
	store := func(p *corev1.Pod) (bool, runtime.Object, error) {
		version++
		p.ResourceVersion = strconv.Itoa(version)
		return true, p, tracker.Update(pods, p, p.Namespace)
	}
	client.PrependReactor("update", "pods", func(a k8stesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		p := a.(k8stesting.UpdateAction).GetObject().(*corev1.Pod).DeepCopy()
		have, err := tracker.Get(pods, p.Namespace, p.Name)
		if err != nil {
			return true, nil, err
		}
		if v := have.(*corev1.Pod).ResourceVersion; v != p.ResourceVersion {
			return true, nil, apierrors.NewConflict(pods.GroupResource(), p.Name, fmt.Errorf("resource version %s, now %s", p.ResourceVersion, v))
		}
		return store(p)
	})
	client.PrependReactor("patch", "pods", func(a k8stesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		_, patched, err := k8stesting.ObjectReaction(tracker)(a)
		if err != nil {
			return true, nil, err
		}
		return store(patched.(*corev1.Pod).DeepCopy())
	})
}

func (s *storm) wrongly(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wrong) < 20 {
		s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
	}
}

func (s *storm) run() {
	t := s.t
	s.data = "0"
	if _, err := s.c.client.CoreV1().ConfigMaps("default").Create(ctx, s.configMap(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	watching, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for i := range 4 {
		b := s.c.board(fmt.Sprintf("board-%d", i))
		b.register()
		s.nodes = append(s.nodes, b)
		wg.Go(func() { s.live(watching, b) })
	}
	for i := range 200 {
		s.step(i)
		if i == 100 && s.seed%2 == 0 {
			s.c.stopHub()
			s.c.startHub()
		}
		time.Sleep(time.Duration(s.rand.IntN(60)) * time.Millisecond)
	}
	patience := 60 * time.Second
	long, err := time.ParseDuration(os.Getenv("HOSTILE_PATIENCE"))
	if err == nil {
		patience = long
	}
	t.Logf("proxy: %s", s.proxy.Report())
	s.proxy.Reform(err != nil)
	began := time.Now()
	var lacks string
	for deadline := began.Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if lacks = s.lacks(); lacks == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not in step %s after the broker became honest: %s", patience, lacks)
		}
	}
	t.Logf("in step %s after the broker became honest", time.Since(began).Round(time.Millisecond))
	s.settled()
}

func (s *storm) configMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf", Namespace: "default", UID: "uid-conf"}, Data: map[string]string{"v": s.data}}
}

// step does one thing to the API or on a node.
func (s *storm) step(i int) {
	t, pods := s.t, s.c.client.CoreV1().Pods("default")
	b := s.nodes[s.rand.IntN(len(s.nodes))]
	s.mu.Lock()
	var living []string
	for uid := range s.node {
		if !s.doomed[uid] {
			living = append(living, strings.TrimPrefix(uid, "uid-"))
		}
	}
	s.mu.Unlock()
	what := s.rand.IntN(10)
	if len(living) < 4 {
		what = 0
	}
	slices.Sort(living) // a map's order isn't the seed's
	switch {
	case what < 3:
		name := fmt.Sprintf("pod-%04d", i)
		s.mu.Lock()
		s.node["uid-"+name] = b.name
		s.image[name] = "image:0"
		s.mu.Unlock()
		s.c.createPod(name, b.name, func(p *corev1.Pod) {
			p.Spec.Containers[0].Image = "image:0"
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}}
		})
	case what < 5:
		name := living[s.rand.IntN(len(living))]
		image := fmt.Sprintf("image:%d", i)
		s.mu.Lock()
		s.image[name] = image
		s.mu.Unlock()
		patch := fmt.Sprintf(`[{"op":"replace","path":"/spec/containers/0/image","value":%q}]`, image)
		if _, err := pods.Patch(ctx, name, "application/json-patch+json", []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	case what == 5:
		name := living[0]
		s.mu.Lock()
		s.doomed["uid-"+name] = true
		s.mu.Unlock()
		if i%2 == 0 { // by force
			if err := pods.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			return
		}
		patch := fmt.Sprintf(`{"metadata":{"deletionTimestamp":%q,"deletionGracePeriodSeconds":1}}`, metav1.Now().UTC().Format(time.RFC3339))
		if _, err := pods.Patch(ctx, name, "application/merge-patch+json", []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	case what == 6:
		s.mu.Lock()
		s.data = fmt.Sprint(i)
		s.mu.Unlock()
		if _, err := s.c.client.CoreV1().ConfigMaps("default").Update(ctx, s.configMap(), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	case what == 7:
		message := fmt.Sprintf("%s entry %d", b.name, i)
		s.mu.Lock()
		s.entries = append(s.entries, message)
		s.mu.Unlock()
		if err := b.store.Journal(state.Entry{Kind: state.EntryEvent, ObjectKind: "Pod", Namespace: "default", Name: "any", UID: "u", Type: "Normal", Reason: "Storm", Message: message}); err != nil {
			t.Fatal(err)
		}
	default:
		name := living[s.rand.IntN(len(living))]
		s.mu.Lock()
		on := s.node["uid-"+name]
		s.mu.Unlock()
		for _, b := range s.nodes {
			if b.name == on && b.store.Has("uid-"+name) {
				s.say(b, name, fmt.Sprintf("word %d", i), false)
			}
		}
	}
}

// say reports a pod's status; message tells one report from another.
func (s *storm) say(b *board, name, message string, gone bool) {
	status := corev1.PodStatus{Phase: corev1.PodRunning, Message: message}
	raw, err := status.Marshal()
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.says[name] = message
	s.mu.Unlock()
	if err := b.store.PutPodStatus("uid-"+name, state.PodReport{Namespace: "default", Name: name, UID: "uid-" + name, Status: raw, Gone: gone}); err != nil {
		s.wrongly("%s: %v", b.name, err)
	}
}

// live watches what a node is told to run, and is its kubelet: what has gone is
// reported as gone.
func (s *storm) live(ctx context.Context, b *board) {
	ran, gone := map[string]bool{}, map[string]bool{}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		set, _ := b.store.Set()
		for uid := range set {
			if uid == "uid-conf" {
				continue
			}
			s.mu.Lock()
			node := s.node[uid]
			s.mu.Unlock()
			if node != b.name {
				s.wrongly("%s was made to run %s, which is %q's", b.name, uid, node)
			}
			ran[uid] = true
		}
		for uid := range ran {
			s.mu.Lock()
			doomed := s.doomed[uid]
			s.mu.Unlock()
			if _, still := set[uid]; !still {
				if !doomed {
					s.wrongly("%s was made to stop %s, which is to run", b.name, uid)
				}
				delete(ran, uid)
			} else if !doomed || gone[uid] {
				continue
			} else if pod := s.has(b, strings.TrimPrefix(uid, "uid-")); pod == nil || pod.DeletionTimestamp == nil {
				continue // it doesn't know yet
			}
			gone[uid] = true
			s.say(b, strings.TrimPrefix(uid, "uid-"), "gone", true)
		}
		select {
		case <-b.store.Changed():
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// has is a pod as the node has it.
func (s *storm) has(b *board, name string) *corev1.Pod {
	o, ok, err := b.store.Get(state.KindPod, "default", name)
	if err != nil || !ok {
		return nil
	}
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(o.Raw, nil, nil)
	if err != nil {
		s.wrongly("%s has a pod %s that can't be read: %v", b.name, name, err)
		return nil
	}
	return obj.(*corev1.Pod)
}

// lacks says what isn't in step yet; nothing if all is.
func (s *storm) lacks() string {
	list, err := s.c.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wrong) > 0 {
		return "" // it won't get better
	}
	want := map[string]int{}
	for _, p := range list.Items {
		if image := p.Spec.Containers[0].Image; image != s.image[p.Name] {
			return fmt.Sprintf("the API has %s with %s, it was given %s", p.Name, image, s.image[p.Name])
		}
	}
	for uid, node := range s.node {
		if !s.doomed[uid] {
			want[node]++
		}
	}
	for _, p := range list.Items {
		if s.doomed[string(p.UID)] {
			return fmt.Sprintf("%s is still in the API", p.Name)
		}
		if said := s.says[p.Name]; p.Status.Message != said {
			return fmt.Sprintf("the API says %q of %s, its node said %q", p.Status.Message, p.Name, said)
		}
	}
	for _, b := range s.nodes {
		if pods := b.pods(); len(pods) != want[b.name] {
			return fmt.Sprintf("%s has %d pods, want %d", b.name, len(pods), want[b.name])
		}
		for uid, node := range s.node {
			if node != b.name || s.doomed[uid] {
				continue
			}
			name := strings.TrimPrefix(uid, "uid-")
			o, ok, err := b.store.Get(state.KindPod, "default", name)
			if err != nil || !ok || !bytes.Contains(o.Raw, []byte(s.image[name])) {
				return fmt.Sprintf("%s has %s otherwise than with %s", b.name, name, s.image[name])
			}
		}
		if want[b.name] > 0 {
			o, ok, _ := b.store.Get(state.KindConfigMap, "default", "conf")
			var conf corev1.ConfigMap
			if !ok || decode(o.Raw, &conf) != nil || conf.Data["v"] != s.data {
				return fmt.Sprintf("%s has ConfigMap %v, want %s", b.name, conf.Data, s.data)
			}
		}
		if b.store.HasJournal() {
			return b.name + " has a journal that nobody answered for"
		}
		for _, r := range b.store.Reports() {
			if !r.Acked {
				return b.name + " has a report that nobody answered for: " + r.UID
			}
		}
		if r := s.c.readiness(b.name); r != corev1.ConditionTrue {
			return fmt.Sprintf("%s is %q", b.name, r)
		}
	}
	return ""
}

func decode(raw []byte, into runtime.Object) error {
	_, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, into)
	return err
}

// settled checks what must be true of the whole story.
func (s *storm) settled() {
	t := s.t
	events, err := s.c.client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.wrong {
		t.Error(w)
	}
	times := map[string]int{}
	for _, e := range events.Items {
		times[e.Message]++
		if strings.Contains(e.Message+e.Name, hostile.Forged) {
			t.Errorf("a forged event is in the API: %s", e.Name)
		}
	}
	for _, m := range s.entries {
		if times[m] != 1 {
			t.Errorf("journal entry %q is in the API %d times", m, times[m])
		}
	}
	if len(times) != len(s.entries) {
		t.Errorf("%d different events in the API, %d in journals", len(times), len(s.entries))
	}
	list, err := s.c.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, p := range list.Items {
		there[string(p.UID)] = true
		if s.node[string(p.UID)] == "" {
			t.Errorf("pod %s in the API is nobody's wish", p.Name)
		}
	}
	for uid := range s.node {
		if !s.doomed[uid] && !there[uid] {
			t.Errorf("%s was deleted in the API", uid)
		}
	}
}
