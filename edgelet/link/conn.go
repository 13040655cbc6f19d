package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

const (
	connectTimeout = 20 * time.Second
	writeTimeout   = 20 * time.Second
	maxInbox       = 64 // messages that came and wait; more are dropped and sent again by the hub
)

// errReconnect ends a connection on purpose.
var errReconnect = errors.New("reconnecting with other settings")

// conn is one MQTT connection with a client of its own: paho keeps what it could
// not deliver, and what was true then need not be true now.
type conn struct {
	client    paho.Client
	topic     string
	keepalive time.Duration
	lost      chan error // capacity 1

	mu    sync.Mutex
	inbox [][]byte
	more  chan struct{} // capacity 1
}

// dial opens the TLS connection, CONNECTs with the will of the next session and
// subscribes.
func (l *Link) dial(ctx context.Context) (*conn, error) {
	brokers := l.c.Brokers()
	if len(brokers) == 0 {
		return nil, ErrNoBroker
	}
	address := l.brokers.next(brokers)
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return nil, fmt.Errorf("broker address %q: want mqtts://host:port", address)
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "8883")
	}
	will, err := l.codec.Encode(fleet.DirWill, l.c.NodeName, l.c.Key, &fleet.Will{Session: l.machine.NextConn().Proto()}, nil)
	if err != nil {
		return nil, err
	}
	settings := l.settings()
	c := &conn{topic: fleet.Topic(l.c.NodeName, fleet.DirUp), keepalive: settings.Keepalive, lost: make(chan error, 1), more: make(chan struct{}, 1)}
	o := paho.NewClientOptions()
	o.AddBroker("ssl://" + host)
	o.SetClientID(fleet.NodeUserPrefix + l.c.NodeName)
	o.SetProtocolVersion(4)
	o.SetCleanSession(true)
	o.SetAutoReconnect(false)
	o.SetConnectRetry(false)
	o.SetKeepAlive(c.keepalive)
	o.SetPingTimeout(min(max(c.keepalive/3, 5*time.Second), time.Minute))
	o.SetConnectTimeout(connectTimeout)
	o.SetWriteTimeout(writeTimeout)
	o.SetOrderMatters(true)
	o.SetBinaryWill(fleet.Topic(l.c.NodeName, fleet.DirWill), will, fleet.QoS, false)
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
		return l.open(ctx, host, u.Hostname(), settings.attempt())
	})
	o.SetConnectionLostHandler(func(_ paho.Client, err error) {
		select {
		case c.lost <- err:
		default:
		}
	})
	o.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { c.receive(m.Payload()) })
	c.client = paho.NewClient(o)
	token := c.client.Connect().(*paho.ConnectToken)
	err = wait(ctx, token)
	code := byte(0)
	select {
	case <-token.Done(): // paho writes the code until then
		code = token.ReturnCode()
	default:
	}
	switch {
	case code == 4 || code == 5:
		return nil, fmt.Errorf("broker %s: %w (code %d): was this node revoked, or its identity replaced? Ask with `coracle node list`", host, ErrRefused, code)
	case err != nil:
		return nil, fmt.Errorf("broker %s: %w", host, err)
	case code != 0: // paho takes a code it doesn't know for success
		return nil, fmt.Errorf("broker %s: %w (code %d)", host, ErrUnavailable, code)
	}
	if err := wait(ctx, c.client.Subscribe(fleet.Topic(l.c.NodeName, fleet.DirDown), fleet.QoS, nil)); err != nil {
		c.client.Disconnect(0)
		return nil, fmt.Errorf("broker %s: subscribe: %w", host, err)
	}
	l.note(func(s *Status) {
		s.Connected, s.Broker, s.Keepalive = true, host, c.keepalive
		s.Connections++
	})
	return c, nil
}

func (l *Link) open(ctx context.Context, host, name string, within time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tcp, err := l.c.Dial(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	conf := l.tls
	if conf.ServerName == "" && !conf.InsecureSkipVerify {
		conf = conf.Clone()
		conf.ServerName = name
	}
	secure := tls.Client(fleet.Meter(tcp, func(sent, received int) {
		l.counters.Socket.Add(sent, received)
		l.c.Budget.Count(sent, received)
	}), conf)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = tcp.Close()
		return nil, err
	}
	l.note(func(s *Status) { s.Resumed = secure.ConnectionState().DidResume })
	return fleet.Meter(secure, l.counters.Plain.Add), nil
}

// receive never blocks: paho would stop reading, and then pinging.
func (c *conn) receive(payload []byte) {
	c.mu.Lock()
	if len(c.inbox) < maxInbox {
		c.inbox = append(c.inbox, payload)
	}
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
}

func (c *conn) take() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.inbox
	c.inbox = nil
	return out
}

func wait(ctx context.Context, token paho.Token) error {
	timer := time.NewTimer(connectTimeout + writeTimeout)
	defer timer.Stop()
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errors.New("no answer")
	}
}
