package devices

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
	"github.com/coracle-edge/coracle/test/lab/deviceplugin"
)

const camera = "example.org/camera"

// disk survives the manager.
type disk struct {
	mu      sync.Mutex
	records map[string][]byte
	broken  error
	writes  int
}

func (d *disk) DeviceRecords() (map[string][]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.records), d.broken
}

func (d *disk) PutDeviceRecord(key string, raw []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil {
		return d.broken
	}
	d.writes++
	if raw == nil {
		delete(d.records, key)
	} else {
		d.records[key] = bytes.Clone(raw)
	}
	return nil
}

// node is a manager that can be started again.
type node struct {
	t    *testing.T
	dir  string
	disk *disk
	gone sync.Map // UIDs of pods that aren't here
	told chan []string
	*Manager
	stop func()
}

func newNode(t *testing.T) *node {
	dir, err := os.MkdirTemp("", "dp") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &node{t: t, dir: dir, disk: &disk{records: map[string][]byte{}}, told: make(chan []string, 100)}
	n.boot()
	t.Cleanup(func() { n.stop() })
	return n
}

func (n *node) boot() {
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	m, err := New(Config{Dir: n.dir, Store: n.disk, Log: log, PodsChanged: func(uids []string) { n.told <- uids },
		Active: func(uid string) bool { _, gone := n.gone.Load(uid); return !gone }})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Run(ctx) }()
	n.Manager, n.stop = m, func() { cancel(); <-done }
	n.await("the socket", func() bool { _, err := os.Stat(m.Socket()); return err == nil })
}

func (n *node) await(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatal("timed out waiting for " + what)
		}
	}
}

// have waits until the node has so many devices, and so many of them well.
func (n *node) have(name string, all, well int64) {
	n.t.Helper()
	n.await(fmt.Sprintf("%d of %d of %s", well, all, name), func() bool {
		c, a := n.Resources()
		x, y := c[v1.ResourceName(name)], a[v1.ResourceName(name)]
		return x.Value() == all && y.Value() == well
	})
}

func (n *node) plugin(ids ...string) *deviceplugin.Plugin {
	n.t.Helper()
	return n.pluginAt("", ids...)
}

// pluginAt has another socket than its usual one, unless that is empty.
func (n *node) pluginAt(socket string, ids ...string) *deviceplugin.Plugin {
	n.t.Helper()
	p := deviceplugin.New(n.dir, camera, ids...)
	if socket != "" {
		p.Socket = socket
	}
	if err := p.Start(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(p.Stop)
	n.have(camera, int64(len(ids)), int64(len(ids)))
	return p
}

func container(name string, n int64) v1.Container {
	c := v1.Container{Name: name}
	if n > 0 {
		c.Resources.Limits = v1.ResourceList{camera: *resource.NewQuantity(n, resource.DecimalSI), "cpu": resource.MustParse("1")}
	}
	return c
}

func pod(uid string, cs ...v1.Container) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), Name: uid}, Spec: v1.PodSpec{Containers: cs}}
}

// ids are what a container has.
func (n *node) ids(uid, container string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(slices.Sorted(slices.Values(n.held[uid][container][camera].IDs)), " ")
}

func TestDevicesAreGivenAndKept(t *testing.T) {
	n := newNode(t)
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) { // it is there a moment before it is closed to others
		info, err := os.Stat(n.Socket())
		if err == nil && info.Mode().Perm() == 0o600 {
			break
		}
		if err != nil || time.Since(began) > 10*time.Second {
			t.Fatalf("the socket is for root alone: %v, %v", info, err)
		}
	}
	p := n.plugin("a", "b", "c")
	if err := n.Allocate(t.Context(), pod("p1", container("x", 2), container("y", 0))); err != nil {
		t.Fatal(err)
	}
	if got := n.ids("p1", "x"); got != "a b" {
		t.Errorf("it has %q", got)
	}
	g, err := n.Container(t.Context(), "p1", "x")
	if err != nil || len(g.Devices) != 1 || g.Devices[0].HostPath != "/dev/null" || g.Devices[0].ContainerPath != "/dev/a" || g.Devices[0].Permissions != "rw" ||
		len(g.Env) != 1 || g.Env[0].Key != "DEVICES" || string(g.Env[0].Value) != "[a b]" || g.Resources[0] != camera {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err := n.Container(t.Context(), "p1", "y"); g != nil || err != nil {
		t.Errorf("y asked for nothing: %+v, %v", g, err)
	}
	err = n.Allocate(t.Context(), pod("p2", container("x", 2)))
	if want := "requested number of devices unavailable for example.org/camera. Requested: 2, Available: 1"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	// The agent starts again and the plugin is away: who has devices keeps them.
	p.Stop()
	n.stop()
	writes := n.disk.writes
	n.boot()
	if g, err := n.Container(t.Context(), "p1", "x"); err != nil || len(g.Devices) != 1 || g.Devices[0].ContainerPath != "/dev/a" {
		t.Errorf("after a restart: %+v, %v", g, err)
	}
	n.have(camera, 0, 0)
	if err := n.Allocate(t.Context(), pod("p3", container("x", 1))); !errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), camera) {
		t.Errorf("without its plugin: %v", err)
	}
	if err := n.Allocate(t.Context(), pod("p1", container("x", 2))); err != nil {
		t.Errorf("it has them already: %v", err)
	}
	if n.disk.writes != writes {
		t.Errorf("%d writes although nothing changed", n.disk.writes-writes)
	}
	n.plugin("a", "b", "c")
	if err := n.Allocate(t.Context(), pod("p3", container("x", 1))); err != nil || n.ids("p3", "x") != "c" {
		t.Errorf("%v, %q", err, n.ids("p3", "x"))
	}
	if err := n.Free("p1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Allocate(t.Context(), pod("p4", container("x", 2))); err != nil || n.ids("p4", "x") != "a b" {
		t.Errorf("%v, %q", err, n.ids("p4", "x"))
	}
	// A pod that went while nobody looked.
	n.gone.Store("p4", true)
	if err := n.Allocate(t.Context(), pod("p5", container("x", 1))); err != nil || n.ids("p4", "x") != "" {
		t.Errorf("%v, %q", err, n.ids("p4", "x"))
	}
	if _, left := n.disk.records["p4"]; left {
		t.Error("what p4 had is still on the disk")
	}
}

// What one container can't have, the pod hasn't.
func TestAPodGetsAllOrNothing(t *testing.T) {
	n := newNode(t)
	p := n.plugin("a", "b", "c")
	if err := n.Allocate(t.Context(), pod("p1", container("x", 2), container("y", 2))); err == nil {
		t.Fatal("four of three")
	}
	if err := n.Allocate(t.Context(), pod("p2", container("x", 3))); err != nil {
		t.Errorf("p1 still holds something: %v", err)
	}
	_ = n.Free("p2")
	n.disk.broken = errors.New("no space left on device")
	if err := n.Allocate(t.Context(), pod("p3", container("x", 1))); !errors.Is(err, n.disk.broken) {
		t.Errorf("not durable: %v", err)
	}
	n.disk.broken = nil
	p.Answer = func([]string) *pluginapi.ContainerAllocateResponse { return nil }
	if err := n.Allocate(t.Context(), pod("p4", container("x", 3))); err != nil {
		t.Errorf("p3 still holds something: %v", err)
	}
}

// What an init container had, containers after it may have; what a sidecar has,
// nobody else.
func TestInitContainersDevicesAreUsedAgain(t *testing.T) {
	n := newNode(t)
	n.plugin("a", "b", "c")
	always := v1.ContainerRestartPolicyAlways
	side := container("side", 1)
	side.RestartPolicy = &always
	p := pod("p", container("x", 2))
	p.Spec.InitContainers = []v1.Container{container("init", 2), side, container("init2", 2)}
	if err := n.Allocate(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	// The sidecar takes one of the two that the first had.
	if n.ids("p", "init") != "a b" || n.ids("p", "side") != "a" || n.ids("p", "init2") != "b c" || n.ids("p", "x") != "b c" {
		t.Errorf("init %q, side %q, init2 %q, x %q", n.ids("p", "init"), n.ids("p", "side"), n.ids("p", "init2"), n.ids("p", "x"))
	}
}

func TestThePluginPrefers(t *testing.T) {
	n := newNode(t)
	p := deviceplugin.New(n.dir, camera, "a", "b", "c", "d")
	p.Options = pluginapi.DevicePluginOptions{GetPreferredAllocationAvailable: true, PreStartRequired: true}
	p.Prefer = func(available, _ []string, count int) []string { return []string{"nonsense", "d", "c"} }
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	n.have(camera, 4, 4)
	if err := n.Allocate(t.Context(), pod("p", container("x", 3))); err != nil {
		t.Fatal(err)
	}
	if got := n.ids("p", "x"); got != "a c d" {
		t.Errorf("it has %q", got)
	}
	if _, err := n.Container(t.Context(), "p", "x"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(p.Calls(), ", "); got != "Options[], Preferred[a b c d], Allocate[d c a], PreStart[d c a]" {
		t.Errorf("calls %s", got)
	}
	// Without the plugin a container that it wants to prepare waits, by name.
	p.Stop()
	n.have(camera, 4, 0)
	if _, err := n.Container(t.Context(), "p", "x"); !errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), camera) {
		t.Errorf("%v", err)
	}
}

func TestIllDevices(t *testing.T) {
	n := newNode(t)
	p := n.plugin("a", "b")
	if err := n.Allocate(t.Context(), pod("p", container("x", 1))); err != nil {
		t.Fatal(err)
	}
	for len(n.told) > 0 {
		<-n.told
	}
	p.Set(pluginapi.Unhealthy, "a")
	n.have(camera, 2, 1)
	if uids := <-n.told; len(uids) != 1 || uids[0] != "p" {
		t.Errorf("told of %q", uids)
	}
	h := n.Health("p", "x")
	if len(h) != 1 || h[0].Name != camera || len(h[0].Resources) != 1 || h[0].Resources[0].ResourceID != "a" || h[0].Resources[0].Health != v1.ResourceHealthStatusUnhealthy {
		t.Errorf("%+v", h)
	}
	p.Set(pluginapi.Unhealthy, "b")
	n.have(camera, 2, 0)
	if err := n.Allocate(t.Context(), pod("q", container("x", 1))); err == nil || !strings.HasPrefix(err.Error(), "no healthy devices present; cannot allocate unhealthy devices "+camera) {
		t.Errorf("%v", err)
	}
	p.Set(pluginapi.Healthy, "a")
	n.have(camera, 2, 1)
	if h := n.Health("p", "x"); h[0].Resources[0].Health != v1.ResourceHealthStatusHealthy {
		t.Errorf("%+v", h)
	}
}

// A plugin that hangs holds up the pod that asks, and nobody else.
func TestAPluginThatHangs(t *testing.T) {
	n := newNode(t)
	if n.allocLimit != time.Minute {
		t.Errorf("a plugin may take %s, docs/failures.md says a minute", n.allocLimit)
	}
	n.allocLimit = 100 * time.Millisecond
	p := n.plugin("a", "b")
	p.Hang()
	asked := make(chan error, 1)
	go func() { asked <- n.Allocate(t.Context(), pod("p", container("x", 2))) }()
	n.await("the call", func() bool { return slices.Contains(p.Calls(), "Allocate[a b]") })
	other := deviceplugin.New(n.dir, "example.org/other", "o")
	other.Socket = "other.sock"
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Stop)
	n.have("example.org/other", 1, 1)
	if err := <-asked; status.Code(errors.Unwrap(err)) != codes.DeadlineExceeded || !strings.Contains(err.Error(), camera) {
		t.Errorf("%v", err)
	}
	// It is replaced, and nothing is lost.
	p.Stop()
	n.have(camera, 2, 0)
	n.pluginAt("again.sock", "a", "b")
	if err := n.Allocate(t.Context(), pod("p", container("x", 2))); err != nil {
		t.Error(err)
	}
}

// What a plugin that went had is counted for five minutes, and then there is none of
// it, which the node hears of.
func TestAPluginThatStaysAway(t *testing.T) {
	n := newNode(t)
	n.plugin("a", "b").Stop()
	n.have(camera, 2, 0)
	ago := func(d time.Duration) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.resources[camera].stopped = time.Now().Add(-d)
	}
	ago(5*time.Minute - 10*time.Second)
	n.have(camera, 2, 0)
	ago(5*time.Minute + time.Second)
	n.have(camera, 0, 0)
	n.pluginAt("again.sock", "a", "b")
}

// Another version of a plugin registers before the old one goes.
func TestAPluginIsReplacedWhileItRuns(t *testing.T) {
	n := newNode(t)
	old := n.plugin("a")
	next := deviceplugin.New(n.dir, camera, "a", "b")
	next.Socket = "next.sock"
	if err := next.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.Stop)
	n.have(camera, 2, 2)
	old.Stop()
	time.Sleep(50 * time.Millisecond)
	n.have(camera, 2, 2)
}

func TestRegistrationsThatAreRefused(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct{ resource, socket, want string }{
		{"cpu", "plugin.sock", "the ResourceName \"cpu\" is invalid"},
		{"kubernetes.io/x", "plugin.sock", "is invalid"},
		{"requests.example.org/x", "plugin.sock", "is invalid"},
		{camera, "../plugin.sock", "is not the name of a socket"},
		{camera, "/run/plugin.sock", "is not the name of a socket"},
		{camera, "kubelet.sock", "is not the name of a socket"},
		{camera, "", "is not the name of a socket"},
		{camera, strings.Repeat("x", 200), "a socket's path has at most"},
		{camera, "none.sock", "failed to dial device plugin"},
	} {
		p := deviceplugin.New(n.dir, c.resource)
		p.Socket = c.socket
		if err := p.Register(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s at %q: %v, want %s", c.resource, c.socket, err, c.want)
		}
	}
	if c, _ := n.Resources(); len(c) != 0 {
		t.Errorf("resources %v", c)
	}
	if err := n.Register(t.Context(), pluginwatch.Plugin{Name: camera, Versions: []string{"v1alpha1"}}); err == nil || !strings.Contains(err.Error(), "v1beta1") {
		t.Errorf("another version: %v", err)
	}
}

// A plugin that is found in plugins_registry has its socket where it likes.
func TestAPluginOfTheRegistry(t *testing.T) {
	n := newNode(t)
	elsewhere := deviceplugin.New(t.TempDir(), camera, "a")
	if err := elsewhere.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(elsewhere.Stop)
	found := pluginwatch.Plugin{Type: PluginType, Name: camera, Endpoint: filepath.Join(elsewhere.Dir, elsewhere.Socket), Versions: []string{"v1beta1"}}
	if err := n.Register(t.Context(), found); err != nil {
		t.Fatal(err)
	}
	n.have(camera, 1, 1)
	n.Deregister(pluginwatch.Plugin{Name: camera, Endpoint: "/another"})
	n.have(camera, 1, 1)
	n.Deregister(found)
	n.have(camera, 1, 0)
}

// Two agents, or an agent and a kubelet, on one machine.
func TestASocketThatIsAnothersIsLeftToIt(t *testing.T) {
	n := newNode(t)
	n.plugin("a")
	m, err := New(Config{Dir: n.dir, Store: &disk{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.listen(); !errors.Is(err, ErrTaken) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "plugin.sock")); err != nil {
		t.Error("the other's plugin lost its socket:", err)
	}
}

func TestARecordThatCannotBeRead(t *testing.T) {
	d := &disk{records: map[string][]byte{"p": []byte(`{"version":9}`), "q": podHeld{"x": {camera: {IDs: []string{"a"}}}}.encode(), resourcesKey: []byte("{")}}
	m, err := New(Config{Dir: t.TempDir(), Store: d})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.held) != 1 || m.Health("q", "x") == nil {
		t.Errorf("held %v", m.held)
	}
	if _, err := New(Config{Store: &disk{broken: errors.New("x")}}); err == nil {
		t.Error("a store that can't be read")
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(podHeld{"c": {camera: {IDs: []string{"a"}, Response: []byte("\x0a\x03"), PreStart: true}}}.encode())
	f.Add(encodeResources([]string{camera}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if held, err := decodeRecord(raw); err == nil {
			again, err := decodeRecord(held.encode())
			if err != nil || len(again) != len(held) {
				t.Fatalf("%v became %v: %v", held, again, err)
			}
		}
		if names, err := decodeResources(raw); err == nil {
			for _, n := range names {
				if checkName(n) != nil {
					t.Fatalf("resource %q", n)
				}
			}
		}
	})
}
