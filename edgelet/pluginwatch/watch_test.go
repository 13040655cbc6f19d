package pluginwatch

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// plugin is a plugin's side, with upstream's generated code.
type plugin struct {
	registration.UnimplementedRegistrationServer
	info *registration.PluginInfo
	told chan *registration.RegistrationStatus
}

func (p *plugin) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return p.info, nil
}

func (p *plugin) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	p.told <- s
	return &registration.RegistrationStatusResponse{}, nil
}

func serve(t *testing.T, socket string, p *plugin) (stop func()) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	registration.RegisterRegistrationServer(s, p)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return s.Stop
}

type handler struct {
	came, went chan Plugin
	err        error
}

func (h *handler) Register(_ context.Context, p Plugin) error { h.came <- p; return h.err }
func (h *handler) Deregister(p Plugin)                        { h.went <- p }

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestPluginsComeAndGo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "registry")
	h := &handler{came: make(chan Plugin, 8), went: make(chan Plugin, 8)}
	bad := &handler{came: make(chan Plugin, 8), went: make(chan Plugin, 8), err: errors.New("not this one")}
	w := New(Config{Dir: dir, Handlers: map[string]Handler{TypeCSI: h, TypeDRA: bad}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx) }()
	defer func() {
		cancel()
		if err := receive(t, ended); err != nil {
			t.Error(err)
		}
	}()
	for range 3000 {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{filepath.Join(dir, "a-reg.sock"), filepath.Join(sub, "b.sock")} {
		p := &plugin{info: &registration.PluginInfo{Type: TypeCSI, Name: filepath.Base(socket), Endpoint: "/csi/x.sock", SupportedVersions: []string{"1.0.0", "0.3.0"}},
			told: make(chan *registration.RegistrationStatus, 8)}
		stop := serve(t, socket, p)
		got := receive(t, h.came)
		if got.Name != filepath.Base(socket) || got.Endpoint != "/csi/x.sock" || got.Socket != socket || len(got.Versions) != 2 {
			t.Errorf("%+v", got)
		}
		if s := receive(t, p.told); !s.PluginRegistered || s.Error != "" {
			t.Errorf("told %v", s)
		}
		stop() // removes the socket
		if got := receive(t, h.went); got.Name != filepath.Base(socket) {
			t.Errorf("went: %+v", got)
		}
	}

	// What a handler refuses is told to the plugin, and tried again.
	p := &plugin{info: &registration.PluginInfo{Type: TypeDRA, Name: "d"}, told: make(chan *registration.RegistrationStatus, 8)}
	serve(t, filepath.Join(dir, "d.sock"), p)
	if got := receive(t, bad.came); got.Endpoint != filepath.Join(dir, "d.sock") {
		t.Errorf("%+v", got)
	}
	if s := receive(t, p.told); s.PluginRegistered || s.Error != "not this one" {
		t.Errorf("told %v", s)
	}
	receive(t, bad.came)
}

// Sockets that take connections and answer nothing, as those of programs that hang or
// are stopped, keep no other plugin waiting.
func TestPluginsThatHang(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "registry")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	h := &handler{came: make(chan Plugin, 8), went: make(chan Plugin, 8)}
	w := New(Config{Dir: dir, Handlers: map[string]Handler{TypeDRA: h}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	began := time.Now()
	go func() { ended <- w.Run(ctx) }()
	p := &plugin{info: &registration.PluginInfo{Type: TypeDRA, Name: "d"}, told: make(chan *registration.RegistrationStatus, 8)}
	serve(t, filepath.Join(dir, "d.sock"), p)
	receive(t, h.came)
	if s := receive(t, p.told); !s.PluginRegistered {
		t.Errorf("told %v", s)
	}
	if took := time.Since(began); took >= callTimeout {
		t.Errorf("it waited %s", took)
	}
	cancel()
	if err := receive(t, ended); err != nil {
		t.Error(err)
	}
}

func FuzzPluginInfo(f *testing.F) {
	for _, p := range []*registration.PluginInfo{{Type: TypeCSI, Name: "n", Endpoint: "/e", SupportedVersions: []string{"1"}}, {}} {
		raw, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := decodeInfo(raw)
		if err == nil && (p.Type == "" || p.Name == "") {
			t.Errorf("%+v", p)
		}
	})
}
