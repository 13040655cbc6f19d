package devices

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// maxMessage bounds an answer of a plugin, as gRPC does by default.
const maxMessage = 4 << 20

// plugin is the connection to one plugin.
type plugin struct {
	resource, socket string
	conn             *grpc.ClientConn
	api              pluginapi.DevicePluginClient
	options          *pluginapi.DevicePluginOptions
	once             sync.Once
}

func (p *plugin) close() { p.once.Do(func() { _ = p.conn.Close() }) }

// dial connects to the socket of a plugin and asks it what it wants. The socket
// is dialed before gRPC is, because gRPC says of a socket that isn't there only
// that time ran out.
func dial(ctx context.Context, resource, socket string) (*plugin, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	probe, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("failed to dial device plugin: %w", err)
	}
	_ = probe.Close()
	conn, err := grpc.NewClient("passthrough:///"+socket, grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return nil, fmt.Errorf("failed to dial device plugin: %w", err)
	}
	p := &plugin{resource: resource, socket: socket, conn: conn, api: pluginapi.NewDevicePluginClient(conn)}
	if p.options, err = p.api.GetDevicePluginOptions(ctx, &pluginapi.Empty{}); err != nil {
		p.close()
		return nil, fmt.Errorf("failed to get device plugin options: %w", err)
	}
	return p, nil
}

// Connect makes the program behind a socket the plugin of a resource and follows
// what it lists until it goes or ctx, which is the manager's life, ends.
func (m *Manager) connect(ctx context.Context, resource, socket string) error {
	p, err := dial(ctx, resource, socket)
	if err != nil {
		return err
	}
	if err := m.connected(p); err != nil {
		p.close()
		return err
	}
	m.watch(ctx, p)
	return nil
}

// watch follows a plugin in a goroutine that Run waits for.
func (m *Manager) watch(ctx context.Context, p *plugin) {
	m.wg.Go(func() {
		stop := context.AfterFunc(ctx, p.close)
		defer stop()
		stream, err := p.api.ListAndWatch(ctx, &pluginapi.Empty{})
		for err == nil {
			var resp *pluginapi.ListAndWatchResponse
			if resp, err = stream.Recv(); err == nil {
				m.listed(p, resp.Devices)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("it ended its list")
		}
		m.disconnected(p, err)
	})
}
