package pods

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// memStore is a Store in memory. It survives the manager, as a disk does.
type memStore struct {
	mu       sync.Mutex
	pods     map[string]Object
	objects  map[string][]byte
	records  map[string][]byte
	reports  map[string]Report
	log      []Report
	events   []Event
	changed  chan struct{}
	complete bool
	broken   error
	writes   int
}

func newStore() *memStore {
	return &memStore{pods: map[string]Object{}, objects: map[string][]byte{}, records: map[string][]byte{},
		reports: map[string]Report{}, changed: make(chan struct{}, 1), complete: true}
}

func (s *memStore) Desired() ([]Object, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Object
	for _, o := range s.pods {
		out = append(out, o)
	}
	return out, s.complete, nil
}

func (s *memStore) Object(kind, ns, name string) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, ok := s.objects[kind+"/"+ns+"/"+name]
	return raw, ok, nil
}

func (s *memStore) Changed() <-chan struct{} { return s.changed }

func (s *memStore) Report(r Report) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reports[r.UID] = r
	s.log = append(s.log, r)
	return s.broken
}

func (s *memStore) Event(e Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	return nil
}

func (s *memStore) Record(uid string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[uid], nil
}

func (s *memStore) PutRecord(uid string, raw []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if s.broken == nil {
		s.records[uid] = raw
	}
	return s.broken
}

func (s *memStore) DeleteRecord(uid string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, uid)
	return nil
}

func (s *memStore) kick() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *memStore) put(pod *v1.Pod) {
	s.putQuietly(pod)
	s.kick()
}

// forgetLog drops what only tests remember.
func (s *memStore) forgetLog() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log, s.events = nil, nil
}

// putQuietly orders a pod and tells nobody yet.
func (s *memStore) putQuietly(pod *v1.Pod) {
	raw, err := kubeobj.EncodePod(pod)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	s.pods[string(pod.UID)] = Object{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Raw: raw,
		Hash: fmt.Sprintf("%x", raw), Trace: trace.NewNodeTimes(time.Now())}
	s.mu.Unlock()
}

func (s *memStore) drop(uid string) {
	s.mu.Lock()
	delete(s.pods, uid)
	s.mu.Unlock()
	s.kick()
}

func (s *memStore) status(uid string) *v1.PodStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.reports[uid]
	if !ok {
		return &v1.PodStatus{}
	}
	return r.Status
}

// told returns all reports, in order.
func (s *memStore) told() []Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

func (s *memStore) gone(uid string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reports[uid].Gone
}

// reasons are the reasons of a pod's events, in order.
func (s *memStore) reasons(uid string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, e := range s.events {
		if e.UID == uid {
			out = append(out, e.Reason)
		}
	}
	return strings.Join(out, " ")
}

func (s *memStore) said(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if strings.Contains(e.Message, text) {
			return true
		}
	}
	return false
}

type fakeNode struct{}

func (fakeNode) Name() string { return "board" }
func (fakeNode) Labels() map[string]string {
	return map[string]string{"kubernetes.io/hostname": "board", "zone": "a"}
}
func (fakeNode) Allocatable() v1.ResourceList {
	return v1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("512Mi"), "pods": resource.MustParse("5")}
}
func (fakeNode) MemoryCapacity() int64 { return 512 << 20 }
func (fakeNode) HostIPs() []string     { return []string{"192.0.2.7"} }
func (fakeNode) DeclaredFeatures() []string {
	return []string{"Sidecars", "Wasm"}
}

// noMounts keeps tests from needing root.
type noMounts struct{}

func (noMounts) Tmpfs(string, int64) error                    { return fs.ErrPermission }
func (noMounts) Mount(string, string, string, []string) error { return fs.ErrPermission }
func (noMounts) BindFD(int, string) error                     { return fs.ErrPermission }
func (noMounts) IsMountPoint(string) (bool, error)            { return false, nil }
func (noMounts) UnmountBelow(string) error                    { return nil }

// board is a node: what survives the agent, and the agent.
type board struct {
	t     *testing.T
	dir   string
	rt    *fakecri.Runtime
	store *memStore
	m     *Manager
	more  func(*Config) // changes what the agent is configured with
	node  Node
	stop  func()

	bootID string // of the machine, and when it was
	booted time.Time
}

func newBoard(t *testing.T) *board {
	b := &board{t: t, dir: t.TempDir(), rt: fakecri.New(), store: newStore(), node: fakeNode{}, bootID: "first", booted: time.Now()}
	b.rt.AddImage("wasm:1", "wasm")
	b.rt.AddImage("oci:1", "oci")
	return b
}

// boot starts the agent.
func (b *board) boot() {
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	config := Config{Runtime: b.rt, Store: b.store, Images: images.New(images.Config{Service: b.rt}),
		Volumes: testVolumes(b),
		Uptime:  func() (string, time.Duration, error) { return b.bootID, time.Since(b.booted), nil },
		Node:    b.node, LogsDir: b.dir + "/logs", ResolvConf: b.dir + "/none", Log: log}
	if b.more != nil {
		b.more(&config)
	}
	m, err := New(config)
	if err != nil {
		b.t.Fatal(err)
	}
	m.SetStatic(nil)
	b.m = m
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error("Run:", err)
		}
	}
	synctest.Wait()
}

// settle lets everything happen that happens within d.
func (b *board) settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// on runs a test in a bubble with a booted board.
func on(t *testing.T, f func(*board)) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.boot()
		f(b)
		b.stop()
	})
}

type podOption func(*v1.Pod)

func testPod(name string, options ...podOption) *v1.Pod {
	secs := int64(30)
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), Generation: 1},
		Spec: v1.PodSpec{NodeName: "board", RestartPolicy: v1.RestartPolicyAlways, TerminationGracePeriodSeconds: &secs,
			DNSPolicy: v1.DNSClusterFirst, Containers: []v1.Container{ctr("main")}}}
	for _, o := range options {
		o(p)
	}
	return p
}

func ctr(name string) v1.Container {
	return v1.Container{Name: name, Image: "wasm:1", ImagePullPolicy: v1.PullIfNotPresent,
		TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: v1.TerminationMessageReadFile}
}

func restart(p v1.RestartPolicy) podOption {
	return func(pod *v1.Pod) { pod.Spec.RestartPolicy = p }
}

func withContainers(cs ...v1.Container) podOption {
	return func(pod *v1.Pod) { pod.Spec.Containers = cs }
}

func withInit(cs ...v1.Container) podOption {
	return func(pod *v1.Pod) { pod.Spec.InitContainers = cs }
}

func sidecar(name string) v1.Container {
	c := ctr(name)
	always := v1.ContainerRestartPolicyAlways
	c.RestartPolicy = &always
	return c
}

func deleted(pod *v1.Pod, graceSecs int64) *v1.Pod {
	p := pod.DeepCopy()
	now := metav1.Now()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &graceSecs
	return p
}

func condition(s *v1.PodStatus, t v1.PodConditionType) v1.PodCondition {
	for _, c := range s.Conditions {
		if c.Type == t {
			return c
		}
	}
	return v1.PodCondition{}
}

type planT = fakecri.Plan

// plan is a service's with a change.
func plan(change func(*planT)) planT {
	p := fakecri.Forever()
	change(&p)
	return p
}

func testVolumes(b *board) *volumes.Manager {
	return volumes.New(volumes.Config{Dir: b.dir + "/pods", Objects: b.store, Mounts: noMounts{}})
}
