package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/test/bench/proc"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

// calls is how many calls to the API are under way at once.
const calls = 16

// fleet has the nodes join, lose their broker and come back.
func (b *bench) fleet(ctx context.Context, dir string) (err error) {
	if b.herd, err = startHerd(filepath.Join(dir, "nodes")); err != nil {
		return err
	}
	defer func() {
		if endErr := b.herd.end(); err == nil {
			err = endErr
		}
	}()
	for i := range b.nodes {
		b.names = append(b.names, fmt.Sprintf("board-%04d", i))
	}
	if err := b.join(ctx); err != nil {
		return err
	}
	away, err := watchNodes(ctx, b.plane.client)
	if err != nil {
		return err
	}
	defer away.stop()
	if err := b.populate(ctx, away); err != nil {
		return err
	}
	away.reset()
	return b.outageAndReturn(ctx, away)
}

func (b *bench) join(ctx context.Context) error {
	if err := rig.Until(ctx, time.Minute, "the default service account is there", func() bool {
		_, err := b.plane.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err == nil
	}); err != nil {
		return err
	}
	door, err := spread(b.plane.fleet)
	if err != nil {
		return err
	}
	defer door.stop()
	lines := make([]string, len(b.names))
	start := time.Now()
	if err := each(ctx, len(lines), func(ctx context.Context, i int) error {
		line, err := join.CreateToken(ctx, b.plane.client, join.TokenOptions{Node: b.names[i], Wait: time.Minute, URLs: []string{door.url()}})
		lines[i] = line.String()
		return err
	}); err != nil {
		return err
	}
	tokens := time.Since(start)
	start = time.Now()
	if _, err := b.herd.ask(ctx, request{Op: "join", Lines: lines}); err != nil {
		return err
	}
	took := time.Since(start)
	b.say("%d tokens in %s, %d nodes joined in %s", b.nodes, tokens.Round(time.Millisecond), b.nodes, took.Round(time.Millisecond))
	b.report.Add(fmt.Sprintf("%d nodes: joins, keys on the boards' disks included", b.nodes), float64(b.nodes)/took.Seconds(), "/s", "-")
	return nil
}

// populate starts the links and gives each node its pods.
func (b *bench) populate(ctx context.Context, nodes *awayWatch) error {
	start := time.Now()
	if _, err := b.herd.ask(ctx, request{Op: "start"}); err != nil {
		return err
	}
	// Pods of a node that the API doesn't know are orphans, and collected.
	if err := b.allReady(ctx, nodes); err != nil {
		return err
	}
	b.say("all nodes are ready after %s", time.Since(start).Round(time.Millisecond))
	b.report.Add(fmt.Sprintf("%d nodes: from their start, all at once, until all are Ready", b.nodes), time.Since(start).Seconds(), "s", "-")
	start = time.Now()
	b.want = map[string][]string{}
	for _, name := range b.names {
		b.want[name] = nil
	}
	var mu sync.Mutex
	if err := each(ctx, b.nodes*b.pods, func(ctx context.Context, i int) error {
		node := b.names[i%b.nodes]
		uid, err := b.create(ctx, fmt.Sprintf("%s-%d", node, i/b.nodes), node)
		mu.Lock()
		defer mu.Unlock()
		b.want[node] = append(b.want[node], uid)
		return err
	}); err != nil {
		return err
	}
	created := time.Since(start)
	a, err := b.await(ctx, start)
	if err != nil {
		return err
	}
	b.say("%d pods created in %s, all nodes in step after %s: %+v", b.nodes*b.pods, created.Round(time.Millisecond), a.Took[len(a.Took)-1].Round(time.Millisecond), a.Stats)
	if err := b.allReady(ctx, nodes); err != nil {
		return err
	}
	_, err = b.still(ctx)
	return err
}

// create makes a pod that is bound to node from the start: the scheduler isn't
// measured here.
func (b *bench) create(ctx context.Context, name, node string) (uid string, err error) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "bench"}}, Spec: corev1.PodSpec{NodeName: node,
		Containers: []corev1.Container{{Name: "main", Image: "registry.local/bench:1", Env: []corev1.EnvVar{{Name: "LEVEL", Value: "info"}}}}}}
	pod, err = b.plane.client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return string(pod.UID), nil
}

func (b *bench) await(ctx context.Context, since time.Time) (answer, error) {
	a, err := b.herd.ask(ctx, request{Op: "await", Want: b.want, Since: since, Within: b.within})
	if err == nil && len(a.Late) > 0 {
		err = fmt.Errorf("%d of %d nodes are not in step after %s: %s\nthe control plane's log ends:\n%s", len(a.Late), b.nodes, b.within, few(a.Late), b.plane.control.Tail())
	}
	return a, err
}

func (b *bench) allReady(ctx context.Context, nodes *awayWatch) error {
	return rig.Until(ctx, b.within, "the API says that all nodes are ready", func() bool { return nodes.ready() == b.nodes })
}

// still waits until nothing was written to etcd for three seconds, and returns
// its revision.
func (b *bench) still(ctx context.Context) (float64, error) {
	last, since := -1.0, time.Now()
	for end := time.Now().Add(b.within); time.Since(since) < 3*time.Second; {
		now, err := b.plane.revision(ctx)
		if err != nil {
			return 0, err
		}
		if now != last {
			last, since = now, time.Now()
		}
		if time.Now().After(end) {
			return 0, fmt.Errorf("etcd is written to without end: its revision is %.0f", now)
		}
		if err := rig.Sleep(ctx, 250*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return last, nil
}

// sample of the control plane's process.
type sample struct {
	at       time.Time
	cpu      time.Duration
	revision float64
	written  float64
	rss      float64
}

func (b *bench) sample(ctx context.Context) (s sample, err error) {
	pid := b.plane.control.PID()
	m, err := proc.MemoryOf(pid)
	if err != nil {
		return s, err
	}
	s.at, s.rss = time.Now(), m.RSS
	if s.cpu, err = proc.CPU(pid); err != nil {
		return s, err
	}
	if s.written, err = proc.Written(pid); err != nil {
		return s, err
	}
	s.revision, err = b.plane.revision(ctx)
	return s, err
}

func (b *bench) outageAndReturn(ctx context.Context, away *awayWatch) error {
	name := fmt.Sprintf("%d nodes, %s lost for %s: ", b.nodes, b.lose, b.outage)
	in, err := b.sample(ctx)
	if err != nil {
		return err
	}
	before, err := b.herd.ask(ctx, request{Op: "stats"})
	if err != nil {
		return err
	}
	b.report.Add(fmt.Sprintf("%d nodes in step: RSS of the control plane", b.nodes), in.rss, "MiB", "-")
	kept, err := b.runningPods(ctx)
	if err != nil {
		return err
	}
	b.say("losing %s: %.0f MiB, revision %.0f", b.lose, in.rss, in.revision)
	lost := time.Now()
	if err := b.lost(ctx); err != nil {
		return err
	}
	if err := rig.Sleep(ctx, b.outage/2); err != nil {
		return err
	}
	changes := b.changes
	if b.lose == loseControlPlane {
		changes = 0 // who would be asked
	}
	changes = min(changes, b.nodes/2)
	if err := b.change(ctx, changes, kept); err != nil {
		return err
	}
	if err := rig.Sleep(ctx, b.outage-time.Since(lost)); err != nil {
		return err
	}
	var out sample
	if b.lose != loseControlPlane {
		if out, err = b.sample(ctx); err != nil {
			return err
		}
		b.say("bringing it back: %.0f MiB, revision %.0f, %d nodes were called away", out.rss, out.revision, away.count())
		if err := proc.ResetPeak(b.plane.control.PID()); err != nil {
			return err
		}
	}
	since, err := b.back(ctx)
	if err != nil {
		return err
	}
	a, err := b.await(ctx, since)
	if err != nil {
		return err
	}
	stepped, err := b.sample(ctx)
	if err != nil {
		return err
	}
	if _, err := b.still(ctx); err != nil {
		return err
	}
	end, err := b.sample(ctx)
	if err != nil {
		return err
	}
	peak, err := proc.Peak(b.plane.control.PID())
	if err != nil {
		return err
	}
	if err := b.allReady(ctx, away); err != nil {
		return err
	}
	b.say("in step: %+v", a.Stats)

	took, r := a.Took, &b.report
	marked := r.AddMarked
	if b.nodes > 1000 { // the marks are a thousand's
		marked = func(name string, value float64, unit, anchor string, _ float64) { r.Add(name, value, unit, anchor) }
	}
	marked(name+"until all were in step", took[len(took)-1].Seconds(), "s", "-", 15)
	r.Add(name+"until half were in step", took[len(took)/2].Seconds(), "s", "-")
	marked(name+"peak RSS of the control plane, coming back", peak, "MiB", "-", 400)
	if b.lose == loseControlPlane {
		out.revision, out.at = in.revision, since // the process is another
	}
	r.Add(name+"processor time of the control plane until then", (stepped.cpu - out.cpu).Seconds(), "s", "-")
	r.Add(name+"writes to etcd (revisions), coming back", end.revision-out.revision, "", "-")
	r.Add(name+"written to disk by the control plane, coming back", (end.written-out.written)/1e6, "MB", "-")
	if b.lose != loseControlPlane {
		r.Add(name+"writes to etcd meanwhile", out.revision-in.revision, "", fmt.Sprintf("%d pods created, %d deleted", changes, min(changes, changes*b.pods)))
	}
	r.Add(name+"connections", float64(a.Stats.Connections-before.Stats.Connections), "", fmt.Sprintf("%d with a TLS session resumed", a.Stats.Resumed))
	if b.lose == loseNetwork {
		// The hub sees them all break at once, and not why.
		r.Add(name+"nodes called away", float64(away.count()), "", "-")
	} else {
		r.AddMarked(name+"nodes called away", float64(away.count()), "", "upstream: all, after 40 s", 0)
	}
	restarted, err := b.restarted(ctx, kept)
	if err != nil {
		return err
	}
	r.AddMarked(name+"pods restarted or stopped", float64(restarted)+float64(a.Stats.Restarted+a.Stats.Stopped), "", "-", 0)
	return nil
}

// lost takes away what -broker names.
func (b *bench) lost(ctx context.Context) error {
	switch b.lose {
	case loseMosquitto:
		b.plane.mosquitto.Kill()
	case loseControlPlane:
		b.plane.control.Kill()
	case loseNetwork:
		_, err := b.herd.ask(ctx, request{Op: "cut"})
		return err
	}
	return nil
}

// back brings it back, and returns since when it can be reached.
func (b *bench) back(ctx context.Context) (time.Time, error) {
	var err error
	since := time.Now()
	switch b.lose {
	case loseMosquitto:
		err = b.plane.startMosquitto(ctx)
	case loseControlPlane:
		err = b.plane.startControl(ctx) // its start counts
	case loseNetwork:
		_, err = b.herd.ask(ctx, request{Op: "mend"})
	}
	return since, err
}

// change creates pods on some nodes and deletes one on others.
func (b *bench) change(ctx context.Context, n int, kept map[string]*corev1.Pod) error {
	nodes := slices.Clone(b.names)
	rand.Shuffle(len(nodes), func(i, k int) { nodes[i], nodes[k] = nodes[k], nodes[i] })
	var mu sync.Mutex
	if err := each(ctx, n, func(ctx context.Context, i int) error {
		uid, err := b.create(ctx, "new-"+nodes[i], nodes[i])
		mu.Lock()
		defer mu.Unlock()
		b.want[nodes[i]] = append(b.want[nodes[i]], uid)
		return err
	}); err != nil {
		return err
	}
	if b.pods == 0 {
		return nil
	}
	for _, node := range nodes[n : 2*n] {
		uid := b.want[node][0]
		pod := kept[uid]
		if err := b.plane.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
		b.want[node] = b.want[node][1:]
		delete(kept, uid)
	}
	return nil
}

// runningPods by UID.
func (b *bench) runningPods(ctx context.Context) (map[string]*corev1.Pod, error) {
	list, err := b.plane.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	out := map[string]*corev1.Pod{}
	for i := range list.Items {
		p := &list.Items[i]
		if p.Status.Phase == corev1.PodRunning {
			out[string(p.UID)] = p
		}
	}
	if len(out) != b.nodes*b.pods {
		return nil, fmt.Errorf("%d pods run by the API's word, not %d", len(out), b.nodes*b.pods)
	}
	return out, nil
}

// restarted counts those of kept that the API doesn't have any more, or that
// don't run since they did, and fails if it has others than it should.
func (b *bench) restarted(ctx context.Context, kept map[string]*corev1.Pod) (n int, err error) {
	list, err := b.plane.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return 0, err
	}
	left := maps.Clone(kept)
	for i := range list.Items {
		p := &list.Items[i]
		old, ok := kept[string(p.UID)]
		if ok && p.Status.Phase == corev1.PodRunning && p.Status.StartTime.Equal(old.Status.StartTime) &&
			p.Status.ContainerStatuses[0].RestartCount == 0 && p.DeletionTimestamp == nil {
			delete(left, string(p.UID))
		}
	}
	total := 0
	for _, uids := range b.want {
		total += len(uids)
	}
	if len(list.Items) != total {
		return 0, fmt.Errorf("the API has %d pods, not %d", len(list.Items), total)
	}
	return len(left), nil
}

// each calls do for 0 to n-1, some at once.
func each(ctx context.Context, n int, do func(context.Context, int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(calls)
	for i := range n {
		g.Go(func() error { return do(ctx, i) })
	}
	return g.Wait()
}
