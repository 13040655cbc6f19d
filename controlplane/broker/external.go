package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

const (
	externalKeepalive = 15 * time.Second
	dialTimeout       = 10 * time.Second
	externalQueue     = 4096 // messages
	maxBackoff        = 5 * time.Second
)

// ExternalConfig configures [NewExternal].
type ExternalConfig struct {
	// URLs of one broker or cluster: mqtts://host:port (also tls:// and ssl://).
	URLs []string
	// TLS has the hub's certificate, common name fleet.HubUser, and the
	// broker's roots. The server's name is taken from the URL unless it is set.
	TLS *tls.Config
	// Roots returns the broker's roots as of now, in the place of those in TLS; may be nil.
	Roots func() *x509.CertPool
	// Dial replaces the TCP dialer, for tests.
	Dial     func(ctx context.Context, network, address string) (net.Conn, error)
	Counters *fleet.Counters
	Logger   *slog.Logger
	// Rand is in [0,1), for the jitter of reconnects.
	Rand func() float64
}

// External is a client of a broker that somebody else runs.
type External struct {
	config ExternalConfig
	urls   []*url.URL
	queue  chan outgoing
	log    *slog.Logger
}

type outgoing struct {
	node    string
	payload []byte
}

// NewExternal checks the URLs; it connects in Run.
func NewExternal(config ExternalConfig) (*External, error) {
	if config.TLS == nil {
		return nil, errors.New("external broker: TLS certificate and roots are needed")
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Dial == nil {
		config.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	if config.Rand == nil {
		config.Rand = rand.Float64
	}
	e := &External{config: config, queue: make(chan outgoing, externalQueue), log: config.Logger}
	for _, text := range config.URLs {
		u, err := ParseURL(text)
		if err != nil {
			return nil, err
		}
		e.urls = append(e.urls, u)
	}
	if len(e.urls) == 0 {
		return nil, errors.New("external broker: no URL, want mqtts://host:port")
	}
	return e, nil
}

// ParseURL reads mqtts://host[:port], port 8883 by default.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("MQTT URL %q: %w", text, err)
	}
	switch u.Scheme {
	case "mqtts", "tls", "ssl":
	default:
		return nil, fmt.Errorf("MQTT URL %q: scheme %q, want mqtts://host:port (only TLS is spoken)", text, u.Scheme)
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("MQTT URL %q: no host, want mqtts://host:port", text)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "8883")
	}
	u.Scheme = "mqtts"
	return u, nil
}

// Publish queues an envelope for node. It doesn't block.
func (e *External) Publish(node string, payload []byte) error {
	select {
	case e.queue <- outgoing{node, payload}:
		return nil
	default:
		return fmt.Errorf("message for node %s: %w", node, ErrBusy)
	}
}

// Disconnect does nothing: another broker's connections are not ours to end. The
// hub refuses what a revoked node sends.
func (e *External) Disconnect(string) {}

// Run connects, and connects again, until ctx ends. message gets what nodes
// publish, and their wills; it must not block. link is told when the way opens
// and breaks.
func (e *External) Run(ctx context.Context, message func(node string, d fleet.Direction, payload []byte), link func(up bool)) error {
	backoff := 100 * time.Millisecond
	for attempt := 0; ctx.Err() == nil; attempt++ {
		u := e.urls[attempt%len(e.urls)]
		began := time.Now()
		up, err := e.session(ctx, u, message, link)
		if up {
			link(false)
		}
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > time.Minute {
			backoff = 100 * time.Millisecond
		}
		e.log.Warn("MQTT broker", "url", u.Redacted(), "error", err, "retryIn", backoff)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration((0.5 + e.config.Rand()) * float64(backoff))):
		}
		backoff = min(backoff*2, maxBackoff)
	}
	return nil
}

// session is one connection, with a client of its own: paho keeps what it didn't
// deliver, and here nothing old may be sent.
func (e *External) session(ctx context.Context, u *url.URL, message func(string, fleet.Direction, []byte), link func(bool)) (up bool, err error) {
	lost := make(chan error, 1)
	opts := paho.NewClientOptions()
	opts.AddBroker("ssl://" + u.Host)
	opts.SetClientID(fleet.HubUser)
	opts.SetProtocolVersion(4)
	opts.SetCleanSession(true)
	opts.SetAutoReconnect(false)
	opts.SetConnectRetry(false)
	opts.SetKeepAlive(externalKeepalive)
	opts.SetPingTimeout(externalKeepalive / 3)
	opts.SetConnectTimeout(dialTimeout)
	opts.SetWriteTimeout(externalKeepalive)
	opts.SetOrderMatters(true)
	opts.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		conn, err := e.config.Dial(ctx, "tcp", u.Host)
		if err != nil {
			return nil, err
		}
		conf := e.config.TLS.Clone()
		if conf.ServerName == "" {
			conf.ServerName = u.Hostname()
		}
		if e.config.Roots != nil {
			conf.RootCAs = e.config.Roots()
		}
		secure := tls.Client(count(conn, e.config.Counters), conf)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, err
		}
		return secure, nil
	})
	opts.SetConnectionLostHandler(func(_ paho.Client, err error) {
		select {
		case lost <- err:
		default:
		}
	})
	opts.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
		if node, d, err := fleet.ParseTopic(m.Topic()); err == nil && d != fleet.DirDown {
			message(node, d, m.Payload())
		}
	})
	client := paho.NewClient(opts)
	token := client.Connect().(*paho.ConnectToken)
	if err := wait(ctx, token); err != nil {
		return false, err
	}
	if code := token.ReturnCode(); code != 0 { // paho takes a code it doesn't know for success
		return false, fmt.Errorf("%w: code %d", ErrRefused, code)
	}
	defer client.Disconnect(100)
	if err := wait(ctx, client.SubscribeMultiple(map[string]byte{
		fleet.TopicFilter(fleet.DirUp): fleet.QoS, fleet.TopicFilter(fleet.DirWill): fleet.QoS,
	}, nil)); err != nil {
		return false, fmt.Errorf("subscribe: %w", err)
	}
	e.drain()
	link(true)
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case err := <-lost:
			return true, err
		case m := <-e.queue:
			// The token completes with the broker's answer, which says nothing
			// about the node: nobody waits for it.
			client.Publish(fleet.Topic(m.node, fleet.DirDown), fleet.QoS, false, m.payload)
		}
	}
}

// drain drops what was queued for an earlier connection.
func (e *External) drain() {
	for {
		select {
		case <-e.queue:
		default:
			return
		}
	}
}

func wait(ctx context.Context, token paho.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * dialTimeout):
		return fmt.Errorf("no answer in %s: %w", 2*dialTimeout, ErrNotConnected)
	}
}
