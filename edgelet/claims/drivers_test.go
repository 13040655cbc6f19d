package claims_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	drahealth "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1beta1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/coracle-edge/coracle/edgelet/metrics"
	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
	"github.com/coracle-edge/coracle/test/dradriver"
)

func quantity(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.DecimalSI) }

// A driver that stays away is gone after a while, also for an agent that never saw it;
// one that comes back in time, or that another instance takes over from, is not.
func TestDriversComeAndGo(t *testing.T) {
	m := newMachine(t)
	m.stop()
	m.config.WipingDelay = 300 * time.Millisecond
	m.start()
	rolling := func(uid string) func(*dradriver.Driver) {
		return func(d *dradriver.Driver) { d.Rolling = types.UID(uid) }
	}
	first := m.driver(driverName, rolling("1"))
	p, q := pod("p", "c"), pod("q", "e")
	m.claim("c", []*v1.Pod{p}, result("r", driverName, "d"))
	m.claim("e", []*v1.Pod{q}, result("r", driverName, "d"))
	m.prepare(p)
	second := m.driver(driverName, rolling("2"))
	m.asked(first, "prepare c")
	m.prepare(q)
	m.asked(second, "prepare e") // the newest is asked
	first.Stop()
	m.unprepare(p)
	m.asked(second, "unprepare c")
	time.Sleep(2 * m.config.WipingDelay)
	if gone := m.Gone(); len(gone) > 0 {
		t.Errorf("%q is here", gone)
	}
	second.Stop()
	m.eventually("nobody registered", func() bool {
		err := m.Prepare(t.Context(), pod("p", "c"), true)
		return err != nil && strings.Contains(err.Error(), "is not registered")
	})
	m.eventually("the driver to be gone", func() bool { return slices.Equal(m.Gone(), []string{driverName}) })
	m.stop()
	m.start()
	if gone := m.Gone(); len(gone) > 0 {
		t.Errorf("%q has no time to come back after the agent's start", gone)
	}
	m.eventually("the driver to be gone, for an agent that has not seen it", func() bool { return slices.Equal(m.Gone(), []string{driverName}) })
	m.driver(driverName)
	m.eventually("the driver to be back", func() bool { return len(m.Gone()) == 0 })
	m.unprepare(q)
}

// A driver that was killed leaves its sockets; nobody removes them.
func TestADriverIsKilled(t *testing.T) {
	m := newMachine(t)
	m.stop()
	m.config.WipingDelay = 100 * time.Millisecond
	m.start()
	d := &old{}
	stop := d.serve(t, m.dir)
	m.eventually("registration", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.registered })
	stop(true)
	m.eventually("the driver to be gone", func() bool { return slices.Equal(m.Gone(), []string{"old.example"}) })
	p := pod("p", "c")
	m.claim("c", []*v1.Pod{p}, result("r", "old.example", "d"))
	if err := m.Prepare(t.Context(), p, true); err == nil || !strings.Contains(err.Error(), "old.example") {
		t.Error(err)
	}
	d.serve(t, m.dir)
	m.eventually("the driver to be back", func() bool { return len(m.Gone()) == 0 && m.Prepare(t.Context(), p, true) == nil })
}

// old is a driver that speaks v1beta1 only, by the generated code.
type old struct {
	drapb.UnimplementedDRAPluginServer
	registration.UnimplementedRegistrationServer
	mu         sync.Mutex
	registered bool
	endpoint   string
}

func (o *old) NodePrepareResources(_ context.Context, r *drapb.NodePrepareResourcesRequest) (*drapb.NodePrepareResourcesResponse, error) {
	out := &drapb.NodePrepareResourcesResponse{Claims: map[string]*drapb.NodePrepareResourceResponse{}}
	for _, c := range r.Claims {
		out.Claims[c.Uid] = &drapb.NodePrepareResourceResponse{Devices: []*drapb.Device{{PoolName: "board", DeviceName: "d", CdiDeviceIds: []string{"old.example/x=" + c.Namespace + "-" + c.Name}}}}
	}
	return out, nil
}

func (o *old) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: pluginwatch.TypeDRA, Name: "old.example", Endpoint: o.endpoint, SupportedVersions: []string{"v1beta1.DRAPlugin"}}, nil
}

func (o *old) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.registered = s.PluginRegistered
	return &registration.RegistrationStatusResponse{}, nil
}

// serve returns a function that ends it, as SIGKILL does if killed.
func (o *old) serve(t *testing.T, dir string) (stop func(killed bool)) {
	t.Helper()
	o.endpoint = filepath.Join(dir, "old.sock")
	var servers []*grpc.Server
	var listeners []*net.UnixListener
	for _, path := range []string{o.endpoint, filepath.Join(dir, "plugins_registry", "old.sock")} {
		_ = os.Remove(path)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		drapb.RegisterDRAPluginServer(s, o)
		registration.RegisterRegistrationServer(s, o)
		go s.Serve(l)
		servers, listeners = append(servers, s), append(listeners, l)
		t.Cleanup(s.Stop)
	}
	return func(killed bool) {
		for i, s := range servers {
			listeners[i].SetUnlinkOnClose(!killed)
			s.Stop()
		}
	}
}

func TestAnOldDriver(t *testing.T) {
	m := newMachine(t)
	new(old).serve(t, m.dir)
	p := pod("p", "c")
	m.claim("c", []*v1.Pod{p}, result("r", "old.example", "d"))
	m.eventually("a prepared claim", func() bool { return m.Prepare(t.Context(), p, true) == nil })
	m.cdi(p, 0, "old.example/x=ns-c")
	if err := m.Unprepare(t.Context(), "pod-p"); err == nil || !strings.Contains(err.Error(), "Unimplemented") {
		t.Error(err)
	}
}

func TestDriversThatSpeakSomethingElse(t *testing.T) {
	m := newMachine(t)
	for _, c := range []struct {
		versions []string
		want     string
	}{
		{nil, "invalid supported gRPC versions of DRA driver plugin x at endpoint /e: empty list of supported gRPC services (aka supported versions)"},
		{[]string{"1.0.0"}, `none of services supported by the plugin (["1.0.0"]) are supported by the kubelet (["v1.DRAPlugin" "v1beta1.DRAPlugin"])`},
	} {
		err := m.Register(t.Context(), pluginwatch.Plugin{Name: "x", Endpoint: "/e", Versions: c.versions})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

// What a driver says of a device is in the status of the containers that have it, and
// isn't believed any more when the driver went.
func TestHealth(t *testing.T) {
	m := newMachine(t)
	d := m.driver(driverName)
	p := pod("p", "c")
	p.Spec.Containers[0].Resources.Claims = []v1.ResourceClaim{{Name: "c", Request: "r"}}
	m.claim("c", []*v1.Pod{p}, result("r", driverName, "d"), result("s", driverName, "e"))
	m.prepare(p)
	is := func(health v1.ResourceHealthStatus, message string) func() bool {
		return func() bool {
			got := m.Health(p, &p.Spec.Containers[0])
			if len(got) != 1 || got[0].Name != "claim:c/r" || len(got[0].Resources) != 1 || got[0].Resources[0].ResourceID != v1.ResourceID(driverName+"/device=uid-c-d") {
				t.Fatalf("%+v", got)
			}
			said := ""
			if r := got[0].Resources[0]; r.Message != nil {
				said = *r.Message
			}
			return got[0].Resources[0].Health == health && said == message
		}
	}
	m.eventually("unknown", is(v1.ResourceHealthStatusUnknown, ""))
	d.Say(dradriver.Health("board", "d", drahealth.HealthStatus_UNHEALTHY, "too hot"), dradriver.Health("board", "e", drahealth.HealthStatus_HEALTHY, ""))
	m.eventually("unhealthy", is(v1.ResourceHealthStatusUnhealthy, "too hot"))
	select {
	case pods := <-m.healths:
		if !slices.Equal(pods, []string{"pod-p"}) {
			t.Errorf("told of %q", pods)
		}
	case <-time.After(30 * time.Second):
		t.Error("nobody was told")
	}
	d.Say(dradriver.Health("board", "d", drahealth.HealthStatus_HEALTHY, ""))
	m.eventually("healthy", is(v1.ResourceHealthStatusHealthy, ""))
	var page metrics.Page
	m.Fill(&page)
	for _, want := range []string{`dra_resource_claims_in_use{driver_name="<any>"} 1`, `dra_resource_claims_in_use{driver_name="test.example.com"} 1`,
		`dra_operations_duration_seconds_count{operation_name="PrepareResources",is_error="false"} 1`,
		`dra_grpc_operations_duration_seconds_count{driver_name="test.example.com",method_name="/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources",grpc_status_code="OK"} 1`} {
		if !strings.Contains(string(page.Bytes()), want) {
			t.Errorf("no %s in\n%s", want, page.Bytes())
		}
	}
	d.Stop()
	m.eventually("unknown again", is(v1.ResourceHealthStatusUnknown, ""))
}
