package devices

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/coracle-edge/coracle/edgelet/pluginwatch"
	"github.com/coracle-edge/coracle/edgelet/rawcall"
)

// socketName is where plugins register.
const socketName = "kubelet.sock"

// ErrTaken is returned when another program listens on the socket.
var ErrTaken = errors.New("another kubelet or agent listens there")

// Socket is where plugins register.
func (m *Manager) Socket() string { return filepath.Join(m.cfg.Dir, socketName) }

// Run listens until ctx ends. Without root, or beside a kubelet, there are no
// device plugins and the node goes on: that is logged, not returned.
//
// Until the first plugin comes it costs a socket and a goroutine that waits.
func (m *Manager) Run(ctx context.Context) error {
	defer m.wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	m.ctx = ctx
	if len(m.resources) > 0 {
		m.forgetLater()
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.expiry != nil {
			m.expiry.Stop()
		}
	}()
	l, err := m.listen()
	if err != nil {
		m.log.Warn("no device plugins on this node", "err", err)
		<-ctx.Done()
		return nil
	}
	err = rawcall.ServeLater(ctx, l, func() *grpc.Server {
		server := grpc.NewServer(grpc.MaxRecvMsgSize(64<<10), grpc.ConnectionTimeout(dialTimeout), grpc.MaxConcurrentStreams(16))
		pluginapi.RegisterRegistrationServer(server, &registration{m: m, ctx: ctx})
		return server
	})
	if err != nil {
		m.log.Error("device plugins can't register any more", "socket", m.Socket(), "err", err)
		<-ctx.Done()
	}
	return nil
}

// forgetLater has the node looked at again when resources whose plugins did not
// come back are no more. It needs m.mu.
func (m *Manager) forgetLater() {
	if m.expiry == nil {
		m.expiry = time.AfterFunc(stopGrace+time.Second, m.cfg.Changed)
		return
	}
	m.expiry.Reset(stopGrace + time.Second)
}

// listen opens the socket, for root only. What other sockets lie in the folder
// are those of plugins of an earlier start: removing them tells a plugin to
// register again, as it does with a kubelet.
func (m *Manager) listen() (net.Listener, error) {
	if err := os.MkdirAll(m.cfg.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("making the folder of device plugins: %w", err)
	}
	path := m.Socket()
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("%s: %w; give this one another folder with --device-plugin-dir", path, ErrTaken)
	}
	entries, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("reading the folder of device plugins: %w", err)
	}
	for _, e := range entries {
		if e.Type()&os.ModeSocket == 0 {
			continue
		}
		if err := os.Remove(filepath.Join(m.cfg.Dir, e.Name())); err != nil {
			return nil, fmt.Errorf("removing the socket of an earlier start: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening for device plugins: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listening for device plugins: %w", err)
	}
	return l, nil
}

// registration is the service behind the socket.
type registration struct {
	pluginapi.UnimplementedRegistrationServer
	m   *Manager
	ctx context.Context // the manager's life; a call's own ends with the call
}

// Register implements the API.
func (r *registration) Register(ctx context.Context, req *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	if !slices.Contains(pluginapi.SupportedVersions[:], req.Version) {
		return nil, status.Errorf(codes.InvalidArgument, "requested API version %q is not supported by kubelet. Supported version is %q", req.Version, pluginapi.SupportedVersions)
	}
	if err := checkName(req.ResourceName); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	socket, err := r.m.endpoint(req.Endpoint)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := r.m.connect(r.ctx, req.ResourceName, socket); err != nil {
		r.m.log.Warn("a device plugin can't be registered", "resource", req.ResourceName, "socket", socket, "err", err)
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &pluginapi.Empty{}, nil
}

// endpoint is the path of a plugin's socket, which lies in the folder.
func (m *Manager) endpoint(name string) (string, error) {
	if name == "" || name == socketName || !filepath.IsLocal(name) || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("endpoint %q is not the name of a socket in %s", name, m.cfg.Dir)
	}
	path := filepath.Join(m.cfg.Dir, name)
	if len(path) >= len(syscall.RawSockaddrUnix{}.Path) {
		return "", fmt.Errorf("endpoint %q: a socket's path has at most %d bytes", path, len(syscall.RawSockaddrUnix{}.Path)-1)
	}
	return path, nil
}

// PluginType is what a device plugin calls itself in plugins_registry.
const PluginType = "DevicePlugin"

var _ pluginwatch.Handler = (*Manager)(nil)

// Register implements [pluginwatch.Handler]: a plugin of plugins_registry has its
// resource for a name, and its socket where it likes.
func (m *Manager) Register(_ context.Context, p pluginwatch.Plugin) error {
	if !slices.ContainsFunc(p.Versions, func(v string) bool { return slices.Contains(pluginapi.SupportedVersions[:], v) }) {
		return fmt.Errorf("manager version, %s, is not among plugin supported versions %v", pluginapi.Version, p.Versions)
	}
	if err := checkName(p.Name); err != nil {
		return fmt.Errorf("invalid name of device plugin socket: %w", err)
	}
	m.mu.Lock()
	ctx := m.ctx
	m.mu.Unlock()
	if ctx == nil {
		return errors.New("device plugins are not listened for yet")
	}
	return m.connect(ctx, p.Name, p.Endpoint)
}

// Deregister implements [pluginwatch.Handler].
func (m *Manager) Deregister(gone pluginwatch.Plugin) {
	if p, err := m.plugin(gone.Name); err == nil && p.socket == gone.Endpoint {
		m.disconnected(p, errors.New("its socket was removed"))
	}
}
