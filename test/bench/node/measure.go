package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-edge/coracle/test/bench/proc"
	"github.com/coracle-edge/coracle/test/bench/reference"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

// The same server, as a module and as a program.
const (
	moduleImage  = "bench.example/http-wasm:1"
	programImage = "bench.example/http-oci:1"
)

// footprint is what a node's processes take at one time, in MiB.
type footprint struct {
	agent     proc.Memory // edgelet; kubelet and kube-proxy
	node      proc.Memory // with containerd and its shims
	pods      proc.Memory // runners; pause and program of each pod
	kernel    float64     // of node, in its cgroups
	podKernel float64
}

// figures of one node with pods of one kind.
type figures struct {
	idle                 footprint
	justWorked, worked   footprint // soon after light work, and when that was given back
	with                 map[int]footprint
	most                 footprint // with the most pods, when what their starts took was given back
	idleCPU, probedCPU   processor
	p50, p99             float64 // ms, create to Running
	bare                 float64 // ms, the median of nothing but the calls of CRI
	idleWritten          float64 // bytes in an hour
	idleSyncs            float64 // in an hour; negative: not counted
	podWritten, podSyncs float64 // by a pod's start and end
}

// step of measuring a node.
type step struct {
	name string
	do   func(context.Context, *work, *figures) error
}

// measure a node by all steps, or by those given.
func (b *bench) measure(ctx context.Context, s *subject, wasm bool, at pace, steps ...step) (*figures, error) {
	f := &figures{with: map[int]footprint{}, idleSyncs: -1, podSyncs: -1}
	w := &work{bench: b, subject: s, wasm: wasm, pace: at}
	if len(steps) == 0 {
		steps = []step{{"idle", b.idle}, {"starts", b.latency}, {"disk", b.disk}, {"light work", b.lightWork}, {"pods", b.many}, {"probes", b.probes}}
	}
	for _, step := range steps {
		fmt.Fprintf(b.progress, "%s %s: %s\n", time.Now().Format(time.TimeOnly), s.name, step.name)
		if err := step.do(ctx, w, f); err != nil {
			return nil, fmt.Errorf("%s: %s: %w\n%s", s.name, step.name, err, s.said())
		}
	}
	return f, nil
}

func (w *work) footprint(ctx context.Context, settle time.Duration) (f footprint, err error) {
	s := w.subject
	if err := rig.Sleep(ctx, settle); err != nil {
		return f, err
	}
	n := 0
	if f.agent, n, err = memoryOf(s.agent); err != nil || n == 0 {
		return f, errors.Join(err, fmt.Errorf("%d processes in %s", n, s.agent))
	}
	if f.node, _, err = memoryOf(s.agent, s.runtime); err != nil {
		return f, err
	}
	if f.pods, _, err = memoryOf(s.pods); err != nil {
		return f, err
	}
	for _, g := range []cgroup{s.agent, s.runtime} {
		k, err := g.kernel()
		if err != nil {
			return f, err
		}
		f.kernel += k
	}
	f.podKernel, err = s.pods.kernel()
	return f, err
}

// busy is the share of a core, in per cent, that a node's agent and runtime use while
// the window passes.
func (w *work) busy(ctx context.Context) (p processor, err error) {
	both := func() (agent, runtime time.Duration, err error) {
		if agent, err = w.subject.agent.cpu(); err == nil {
			runtime, err = w.subject.runtime.cpu()
		}
		return agent, runtime, err
	}
	agent, runtime, err := both()
	if err != nil {
		return p, err
	}
	begin := time.Now()
	if err := rig.Sleep(ctx, w.window); err != nil {
		return p, err
	}
	agentNow, runtimeNow, err := both()
	of := func(d time.Duration) float64 { return 100 * float64(d) / float64(time.Since(begin)) }
	return processor{of(agentNow - agent + runtimeNow - runtime), of(runtimeNow - runtime)}, err
}

// processor is processor time in per cent of a core.
type processor struct {
	all, runtime float64
}

func (b *bench) idle(ctx context.Context, w *work, f *figures) (err error) {
	// What starting took is given back after a minute (cmd/edgelet, settle).
	if err := rig.Sleep(ctx, w.afterStart); err != nil {
		return err
	}
	if f.idle, err = w.footprint(ctx, w.settle); err != nil {
		return err
	}
	written, err := w.written()
	if err != nil {
		return err
	}
	if f.idleCPU, err = w.busy(ctx); err != nil {
		return err
	}
	now, err := w.written()
	f.idleWritten = (now - written) * float64(time.Hour) / float64(w.window)
	return err
}

// latency starts pods one after another, each after the former has gone. Where there
// is a containerd, each takes turns with one by nothing but the calls of CRI.
func (b *bench) latency(ctx context.Context, w *work, f *figures) (err error) {
	var took, bare []time.Duration
	var calls *bareCalls
	if w.subject.containerd != "" {
		const model = "model"
		if err := w.create(ctx, w.pod(model, false)); err != nil {
			return err
		}
		if err := w.running(ctx, 1); err != nil {
			return err
		}
		pods := w.subject.client.CoreV1().Pods("default")
		p, err := pods.Get(ctx, model, metav1.GetOptions{})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.removeAll(ctx)) }()
		if calls, err = likeThoseOf(ctx, p, w.subject.containerd); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, calls.close()) }()
	}
	for i := range w.starts + 1 { // the first one unpacks or compiles
		d, err := w.once(ctx, fmt.Sprintf("start-%d", i))
		if err != nil {
			return err
		}
		if i > 0 {
			took = append(took, d)
		}
		if calls == nil {
			continue
		}
		if d, err = calls.once(ctx, fmt.Sprintf("bare-%d", i)); err != nil {
			return fmt.Errorf("a pod by bare calls of CRI: %w", err)
		}
		bare = append(bare, d)
	}
	f.p50, f.p99 = percentile(took, 0.5), percentile(took, 0.99)
	if len(bare) > 0 {
		f.bare = percentile(bare, 0.5)
	}
	return nil
}

// disk counts what starting and ending a pod writes, and what an idle node syncs.
// strace slows what it looks at, so nothing is timed meanwhile.
func (b *bench) disk(ctx context.Context, w *work, f *figures) (err error) {
	// The ends of the pods before are over then.
	if err := rig.Sleep(ctx, w.settle); err != nil {
		return err
	}
	if f.idleSyncs, err = w.syncs(ctx, func() error { return rig.Sleep(ctx, w.window) }); err != nil {
		return err
	}
	if f.idleSyncs >= 0 {
		f.idleSyncs *= float64(time.Hour) / float64(w.window)
	}
	before, err := w.written()
	if err != nil {
		return err
	}
	const pods = 5
	f.podSyncs, err = w.syncs(ctx, func() error {
		for i := range pods {
			if _, err := w.once(ctx, fmt.Sprintf("disk-%d", i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.podSyncs /= pods
	after, err := w.written()
	f.podWritten = (after - before) / pods
	return err
}

// lightWork is a pod started and ended every five seconds.
func (b *bench) lightWork(ctx context.Context, w *work, f *figures) (err error) {
	if w.work == 0 {
		return nil
	}
	for i, begin := 0, time.Now(); time.Since(begin) < w.work; i++ {
		next := time.After(5 * time.Second)
		if _, err := w.once(ctx, fmt.Sprintf("light-%d", i)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
		}
	}
	if f.justWorked, err = w.footprint(ctx, w.settle); err != nil {
		return err
	}
	f.worked, err = w.footprint(ctx, w.afterStart)
	return err
}

// many is memory by the number of pods.
func (b *bench) many(ctx context.Context, w *work, f *figures) error {
	made := 0
	for _, n := range w.counts {
		for ; made < n; made++ {
			if err := w.create(ctx, w.pod(fmt.Sprintf("many-%d", made), w.together)); err != nil {
				return err
			}
		}
		if err := w.running(ctx, n); err != nil {
			return err
		}
		at, err := w.footprint(ctx, w.settle)
		if err != nil {
			return err
		}
		if err := w.running(ctx, n); err != nil {
			return err
		}
		f.with[n] = at
	}
	if !w.together {
		var err error
		if f.most, err = w.footprint(ctx, w.afterStart); err != nil {
			return err
		}
		if err := w.running(ctx, made); err != nil {
			return err
		}
	}
	if w.together {
		var err error
		if f.probedCPU, err = w.busy(ctx); err != nil {
			return err
		}
		if err := w.running(ctx, made); err != nil {
			return err
		}
	}
	return w.removeAll(ctx)
}

// probes is the processor time of looking whether pods are alive and ready.
func (b *bench) probes(ctx context.Context, w *work, f *figures) (err error) {
	if w.together {
		return nil
	}
	for i := range w.probed {
		if err := w.create(ctx, w.pod(fmt.Sprintf("probed-%d", i), true)); err != nil {
			return err
		}
	}
	if err := w.running(ctx, w.probed); err != nil {
		return err
	}
	if err := rig.Sleep(ctx, w.settle); err != nil {
		return err
	}
	if f.probedCPU, err = w.busy(ctx); err != nil {
		return err
	}
	// All were ready all the time, so all were asked.
	if err := w.running(ctx, w.probed); err != nil {
		return err
	}
	return w.removeAll(ctx)
}

// work is done on a subject with pods of one kind.
type work struct {
	*bench
	pace
	subject *subject
	wasm    bool
}

func (w *work) pod(name string, probed bool) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{
			NodeName: w.subject.bind, TerminationGracePeriodSeconds: new(int64),
			Containers: []corev1.Container{{
				Name: "main", Image: programImage, ImagePullPolicy: corev1.PullNever, Env: []corev1.EnvVar{{Name: "PORT", Value: "8080"}},
				Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
			}},
		},
	}
	c := &p.Spec.Containers[0]
	if w.wasm {
		class := "wasm"
		p.Spec.RuntimeClassName, c.Image, c.Env = &class, moduleImage, nil
	}
	if probed {
		probe := &corev1.Probe{PeriodSeconds: 10, TimeoutSeconds: 5, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}}
		c.ReadinessProbe, c.LivenessProbe = probe, probe
	}
	return p
}

func (w *work) create(ctx context.Context, p *corev1.Pod) error {
	_, err := w.subject.client.CoreV1().Pods("default").Create(ctx, p, metav1.CreateOptions{})
	return err
}

// once is the life of a pod: from its creation to the word of a watch that it
// runs; when it returns, the pod has gone.
func (w *work) once(ctx context.Context, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	pods := w.subject.client.CoreV1().Pods("default")
	watch, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, err
	}
	defer watch.Stop()
	begin := time.Now()
	if err := w.create(ctx, w.pod(name, false)); err != nil {
		return 0, err
	}
	var took time.Duration
	for e := range watch.ResultChan() {
		p, ok := e.Object.(*corev1.Pod)
		switch {
		case !ok:
			return 0, fmt.Errorf("pod %s: the watch says %v", name, e.Object)
		case e.Type == "DELETED" && took > 0:
			return took, nil
		case p.Status.Phase == corev1.PodRunning && took == 0:
			took = time.Since(begin)
			if err := pods.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				return 0, err
			}
		}
	}
	late, stop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer stop()
	p, err := pods.Get(late, name, metav1.GetOptions{})
	if err != nil {
		return 0, fmt.Errorf("pod %s didn't run and go (it ran after %s): %w; asked for it: %w", name, took, context.Cause(ctx), err)
	}
	return 0, fmt.Errorf("pod %s didn't run and go (it ran after %s): %w; it is on node %q, deleted at %v: %s %+v", name, took, context.Cause(ctx), p.Spec.NodeName, p.DeletionTimestamp, p.Status.Phase, p.Status.ContainerStatuses)
}

// running waits until n pods run and are ready, none of them restarted.
func (w *work) running(ctx context.Context, n int) error {
	return reference.Until(ctx, 10*time.Minute, fmt.Sprintf("%d pods run", n), func() error { return w.ready(ctx, n) })
}

// ready is nil if n pods are, none of them restarted.
func (w *work) ready(ctx context.Context, n int) error {
	list, err := w.subject.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	ready := 0
	for _, p := range list.Items {
		for _, c := range p.Status.ContainerStatuses {
			if c.RestartCount > 0 {
				return fmt.Errorf("pod %s was restarted: %v", p.Name, c.LastTerminationState)
			}
			if c.Ready && p.DeletionTimestamp == nil {
				ready++
			}
		}
	}
	if ready != n {
		return fmt.Errorf("%d are ready", ready)
	}
	return nil
}

func (w *work) removeAll(ctx context.Context) error {
	pods := w.subject.client.CoreV1().Pods("default")
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return err
	}
	return reference.Until(ctx, 10*time.Minute, "the pods are gone", func() error {
		list, err := pods.List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are there", len(list.Items))
		}
		return err
	})
}

// pids of the agent and of the runtime.
func (w *work) pids() ([]int, error) {
	a, err := w.subject.agent.pids()
	if err != nil {
		return nil, err
	}
	r, err := w.subject.runtime.pids()
	return slices.Concat(a, r), err
}

// written is what agent and runtime have sent to storage; of processes that have
// ended, shims and runc, nothing is known any more.
func (w *work) written() (sum float64, err error) {
	pids, err := w.pids()
	for _, pid := range pids {
		if n, err := proc.Written(pid); err == nil {
			sum += n
		}
	}
	return sum, err
}

var syncCall = regexp.MustCompile(`(?m)^(?:\[pid +\d+\] |\d+ +)?(?:fsync|fdatasync|sync_file_range|syncfs|msync|sync)\(`)

// syncs counts the calls that wait for the disk, of agent and runtime, while do
// runs; -1 without strace.
func (w *work) syncs(ctx context.Context, do func() error) (float64, error) {
	if _, err := exec.LookPath("strace"); err != nil {
		return -1, do()
	}
	pids, err := w.pids()
	if err != nil {
		return 0, err
	}
	args := []string{"-f", "-qq", "-e", "trace=fsync,fdatasync,sync_file_range,syncfs,msync,sync", "-e", "signal=none"}
	for _, pid := range pids {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	var said strings.Builder
	cmd := exec.CommandContext(ctx, "strace", args...)
	cmd.Stderr = &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	// It is attached when all threads are traced.
	err = rig.Until(ctx, 20*time.Second, "strace is attached", func() bool {
		for _, pid := range pids {
			n, err := number(fmt.Sprintf("/proc/%d/status", pid), "TracerPid:", 1)
			if err == nil && n == 0 { // one that has ended is as good
				return false
			}
		}
		return true
	})
	if err == nil {
		err = do()
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait() // by the signal
	if err != nil {
		err = fmt.Errorf("%w; strace said %q", err, said.String()[:min(500, said.Len())])
	}
	return float64(len(syncCall.FindAllString(said.String(), -1))), err
}

// percentile in milliseconds.
func percentile(took []time.Duration, p float64) float64 {
	if len(took) == 0 {
		return 0
	}
	took = slices.Sorted(slices.Values(took))
	return float64(took[min(len(took)-1, int(p*float64(len(took))))].Microseconds()) / 1000
}
