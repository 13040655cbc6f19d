package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Limits of a client of the embedded broker.
const (
	maxInflight  = 64                      // messages under way to one node
	maxPending   = 64                      // messages waiting to be written to one node
	maxPacket    = fleet.MaxMessage + 1024 // bytes, with topic and header
	minKeepalive = int(fleet.MinKeepalive / time.Second)
	maxKeepalive = int(fleet.MaxKeepalive / time.Second) // 1.5 of it still fits MQTT's 16 bits
	firstPacket  = 15 * time.Second                      // for TLS handshake and CONNECT together
	defaultNodes = 10000
)

var (
	// ErrNotConnected is returned when there is no connection to the broker.
	ErrNotConnected = errors.New("not connected to the MQTT broker")
	// ErrBusy is returned when so much waits to be sent that more would only
	// wait longer. Send the newest state later.
	ErrBusy = errors.New("MQTT connection busy")
	// ErrRefused is returned when the broker refuses a client.
	ErrRefused = errors.New("MQTT client refused")
)

var errInactive = fmt.Errorf("%w: this hub is not the active one", ErrRefused)

// EmbeddedConfig configures [NewEmbedded].
type EmbeddedConfig struct {
	// Listener is bound and without TLS; the broker closes it.
	Listener net.Listener
	// TLS has the server's certificate and the ClientCAs of nodes.
	TLS *tls.Config
	// Admit may refuse a node that shows a valid certificate (revoked, or its
	// key replaced). Called once per connection, must not block for long. Nil
	// admits all.
	Admit func(ctx context.Context, node string, cert *x509.Certificate) error
	// Active says whether the hub of this process is the one that works;
	// otherwise CONNECT is refused and nodes try another address. Nil is always.
	Active func() bool
	// MaxNodes bounds the connections. 10000 if zero.
	MaxNodes int64
	// Counters, if set, counts the bytes on the sockets; so do those that
	// NodeCounters, if set, returns for an admitted node.
	Counters     *fleet.Counters
	NodeCounters func(node string) *fleet.Counters
	Logger       *slog.Logger
}

// Embedded is an MQTT broker in this process that serves nodes only.
type Embedded struct {
	config  EmbeddedConfig
	server  *mqtt.Server
	log     *slog.Logger
	message func(string, fleet.Direction, []byte)
}

// NewEmbedded returns a broker; it accepts no connection before Run.
func NewEmbedded(config EmbeddedConfig) (*Embedded, error) {
	if config.Listener == nil || config.TLS == nil || config.TLS.ClientCAs == nil {
		return nil, errors.New("embedded broker: listener, TLS certificate and client CAs are needed")
	}
	if config.MaxNodes == 0 {
		config.MaxNodes = defaultNodes
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	capabilities := mqtt.NewDefaultServerCapabilities()
	capabilities.MaximumClients = config.MaxNodes
	capabilities.MaximumPacketSize = maxPacket
	capabilities.MaximumInflight = maxInflight
	capabilities.ReceiveMaximum = maxInflight
	capabilities.MaximumClientWritesPending = maxPending
	capabilities.MaximumSessionExpiryInterval = 0 // nothing is kept for who is away
	capabilities.MaximumMessageExpiryInterval = 60
	capabilities.MinimumProtocolVersion = 4
	capabilities.MaximumQos = 1
	capabilities.RetainAvailable = 0
	capabilities.SharedSubAvailable = 0
	capabilities.WildcardSubAvailable = 0
	return &Embedded{config: config, log: config.Logger, server: mqtt.New(&mqtt.Options{
		Capabilities:             capabilities,
		ClientNetReadBufferSize:  1024,
		ClientNetWriteBufferSize: 1024,
		SysTopicResendInterval:   24 * 3600, // each stops the world to read memory statistics
		InlineClient:             true,
		Logger:                   slog.New(quiet{config.Logger.Handler()}),
	})}, nil
}

// Addr is where nodes connect.
func (e *Embedded) Addr() net.Addr { return e.config.Listener.Addr() }

// Run serves until ctx ends. message gets what nodes publish, and their wills;
// it must not block. link is told that the way is open.
func (e *Embedded) Run(ctx context.Context, message func(node string, d fleet.Direction, payload []byte), link func(up bool)) error {
	e.message = message
	if err := e.server.AddHook(&gate{e: e, ctx: ctx}, nil); err != nil {
		return fmt.Errorf("embedded broker: %w", err)
	}
	for i, d := range []fleet.Direction{fleet.DirUp, fleet.DirWill} {
		if err := e.server.Subscribe(fleet.TopicFilter(d), i+1, e.receive); err != nil {
			return fmt.Errorf("embedded broker: %w", err)
		}
	}
	conf := e.config.TLS.Clone()
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	conf.MinVersion = tls.VersionTLS13
	newSessions(sessionsPerNode * int(e.config.MaxNodes)).serve(conf)
	if err := e.server.AddListener(listeners.NewNet("nodes", tls.NewListener(&listener{e.config.Listener, e.config.Counters}, conf))); err != nil {
		return fmt.Errorf("embedded broker on %s: %w", e.Addr(), err)
	}
	if err := e.server.Serve(); err != nil {
		return fmt.Errorf("embedded broker on %s: %w", e.Addr(), err)
	}
	link(true)
	<-ctx.Done()
	if err := e.server.Close(); err != nil {
		return fmt.Errorf("embedded broker on %s: %w", e.Addr(), err)
	}
	return nil
}

// Publish hands an envelope for node to its connection, if it has one. It
// doesn't block.
func (e *Embedded) Publish(node string, payload []byte) error {
	return e.server.Publish(fleet.Topic(node, fleet.DirDown), payload, false, fleet.QoS)
}

// Disconnect ends a node's connection, say because it was revoked.
func (e *Embedded) Disconnect(node string) {
	if cl, ok := e.server.Clients.Get(fleet.NodeUserPrefix + node); ok {
		cl.Stop(ErrRefused)
	}
}

// Heard is when the connection of a node last brought anything, a keepalive
// included; false if it has none.
func (e *Embedded) Heard(node string) (time.Time, bool) {
	cl, ok := e.server.Clients.Get(fleet.NodeUserPrefix + node)
	if !ok {
		return time.Time{}, false
	}
	socket := socketOf(cl)
	if socket == nil {
		return time.Time{}, false
	}
	return time.Unix(0, socket.heard.Load()), true
}

// Connected is the number of nodes that are connected.
func (e *Embedded) Connected() int {
	return e.server.Clients.Len() - 1 // the inline client
}

func (e *Embedded) receive(_ *mqtt.Client, _ packets.Subscription, pk packets.Packet) {
	node, d, err := fleet.ParseTopic(pk.TopicName)
	if err != nil {
		return
	}
	e.message(node, d, pk.Payload)
}

// gate decides who may connect and which topics it may use.
type gate struct {
	mqtt.HookBase
	e   *Embedded
	ctx context.Context
}

func (g *gate) ID() string { return "coracle" }

func (g *gate) Provides(b byte) bool {
	return b == mqtt.OnConnect || b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck
}

// OnConnect refuses before anything is kept of the client.
func (g *gate) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	err := g.check(cl, pk)
	if err != nil {
		g.e.log.Warn("MQTT connection refused", "remote", cl.Net.Remote, "client", pk.Connect.ClientIdentifier, "error", err)
		code := packets.ErrBadUsernameOrPassword // becomes MQTT 3.1.1's 5, not authorized
		if errors.Is(err, errInactive) {
			code = packets.ErrServerUnavailable
		}
		_ = g.e.server.SendConnack(cl, code, false, nil)
		return err
	}
	return nil
}

func (g *gate) check(cl *mqtt.Client, pk packets.Packet) error {
	if g.e.config.Active != nil && !g.e.config.Active() {
		return errInactive
	}
	cert, user := peer(cl)
	node, ok := fleet.NodeOfUser(user)
	switch {
	case !ok:
		return fmt.Errorf("%w: certificate of %q is not a node's", ErrRefused, user)
	case pk.Connect.ClientIdentifier != user:
		return fmt.Errorf("%w: client id %q must be %q", ErrRefused, pk.Connect.ClientIdentifier, user)
	case !pk.Connect.Clean:
		return fmt.Errorf("%w: clean session is needed, nothing is queued here", ErrRefused)
	case int(pk.Connect.Keepalive) < minKeepalive || int(pk.Connect.Keepalive) > maxKeepalive:
		return fmt.Errorf("%w: keepalive of %d s, want %d to %d", ErrRefused, pk.Connect.Keepalive, minKeepalive, maxKeepalive)
	case pk.Connect.WillFlag && (pk.Connect.WillTopic != fleet.Topic(node, fleet.DirWill) || pk.Connect.WillRetain):
		return fmt.Errorf("%w: will on topic %q", ErrRefused, pk.Connect.WillTopic)
	}
	if g.e.config.Admit != nil {
		if err := g.e.config.Admit(g.ctx, node, cert); err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	if socket := socketOf(cl); socket != nil && g.e.config.NodeCounters != nil {
		socket.belongs(g.e.config.NodeCounters(node))
	}
	return nil
}

func (g *gate) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

func (g *gate) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	_, user := peer(cl)
	return fleet.Allowed(user, topic, write)
}

// peer is the client's verified certificate and its common name.
func peer(cl *mqtt.Client) (*x509.Certificate, string) {
	conn, ok := cl.Net.Conn.(*tls.Conn)
	if !ok {
		return nil, ""
	}
	certs := conn.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return nil, ""
	}
	return certs[0], certs[0].Subject.CommonName
}

// socketOf is the client's connection below TLS; nil of the inline client.
func socketOf(cl *mqtt.Client) *counted {
	conn, ok := cl.Net.Conn.(*tls.Conn)
	if !ok {
		return nil
	}
	socket, _ := conn.NetConn().(*counted)
	return socket
}

// listener gives each connection a time to say CONNECT and counts its bytes.
type listener struct {
	net.Listener
	counters *fleet.Counters
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err == nil {
			if tcp, ok := conn.(*net.TCPConn); ok {
				// MQTT has its own; TCP's every 15 s would cost three times as much.
				_ = tcp.SetKeepAlive(false)
			}
			_ = conn.SetDeadline(time.Now().Add(firstPacket)) // MQTT sets its own after CONNECT
			return count(conn, l.counters), nil
		}
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond) // out of file descriptors: mochi would stop listening for ever
	}
}

// quiet turns mochi's chatter down: what it calls a warning is a node that lost
// its link.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, level slog.Level) bool {
	if level < slog.LevelError {
		level = slog.LevelDebug
	}
	return q.Handler.Enabled(ctx, level)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelError {
		r.Level = slog.LevelDebug
	}
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }
