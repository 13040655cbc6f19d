package link

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/state"
)

var (
	// ErrRefused is returned when the broker doesn't admit this node, or the hub
	// refuses its identity.
	ErrRefused = errors.New("the cluster refuses this node")
	// ErrUnavailable is returned when a broker takes nobody now.
	ErrUnavailable = errors.New("the broker refuses connections")
	// ErrNoBroker is returned when no broker address is known.
	ErrNoBroker = errors.New("no broker address")
)

// Config of a Link.
type Config struct {
	NodeName string
	// Brokers returns mqtts://host:port addresses in the order in which to try
	// them; it is asked before each attempt.
	Brokers func() []string
	// TLS shows the node's certificate and verifies the broker, whatever its
	// address (ServerName or VerifyConnection set).
	TLS *tls.Config
	// Key signs what the node says.
	Key ed25519.PrivateKey
	// Trust knows the hub.
	Trust *Trust
	State *state.Store
	// OnTunnel opens a tunnel on request. It must not block; what it returns is
	// told to the hub.
	OnTunnel func(*fleet.TunnelRequest) error
	// ObjectsTLS is for fetching large objects; FleetURLs where, if the hub
	// doesn't say.
	ObjectsTLS *tls.Config
	FleetURLs  func() []string
	// Counters count what is sent and received; its own if nil.
	Counters *fleet.Counters
	// Addresses are those that the node knows; Learn makes those that the hub says
	// durable. Both may be nil: then the hub is told that none are taken.
	Addresses func() *fleet.Addresses
	Learn     func(*fleet.Addresses) error
	// Budget may hold back what isn't urgent; nil is none.
	Budget Budget

	// OnStanding is told how the cluster regards this node: with every Welcome and
	// whenever it changes; nil is in good standing. May be nil.
	OnStanding func(*fleet.Standing)
	// TrustID names the roots that the node trusts; OnTrust is told those that the
	// control plane has, if they are others. Both may be nil.
	TrustID func() []byte
	OnTrust func(id []byte, jitter time.Duration)
	// Readmission is called when the node was refused. It returns when to try again,
	// and whether it heard that the node was let in: then that is at once. Nil: after
	// the same waits as after any failure.
	Readmission func(ctx context.Context) bool

	// What the node says of itself.
	Features     []string
	AgentVersion string
	// LinkClass is what the hub goes by until the Node's label says otherwise.
	LinkClass string
	// BootID is random, made at each start of the agent.
	BootID []byte
	// Board tells people which board this is; asked for at each Hello. May be nil.
	Board func() string

	// Coalesce is how long reports wait for others. What the hub says if zero.
	Coalesce time.Duration
	// ShutdownWait bounds the goodbye. 500 ms if zero.
	ShutdownWait time.Duration
	Logger       *slog.Logger
	// Dial replaces the TCP dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Now  func() time.Time
	// Rand is in [0,1).
	Rand func() float64
}

// Link is the node's connection to the hub.
type Link struct {
	c        Config
	log      *slog.Logger
	codec    *fleet.Codec
	machine  *Machine // Run's goroutine only
	brokers  brokers  // likewise
	started  time.Time
	counters *fleet.Counters
	tls      *tls.Config
	budget   <-chan struct{} // what may be sent is another

	mu     sync.Mutex
	status Status
}

// Status of the link, for conditions and for people.
type Status struct {
	Connected bool      // a broker has accepted us
	Live      bool      // the hub has welcomed us
	Since     time.Time // of the last change of Live
	Broker    string
	Class     string // of the link
	Keepalive time.Duration
	// Connections that the broker accepted since the agent started.
	Connections int64
	Resumed     bool // the TLS session was
	LastError   string
	Err         error // the same, for errors.Is
	Session     fleet.SessionID
}

// New returns a Link; nothing happens before Run.
func New(c Config) (*Link, error) {
	switch {
	case !fleet.ValidNodeName(c.NodeName):
		return nil, fmt.Errorf("link: node name %q is not a DNS subdomain", c.NodeName)
	case c.Brokers == nil || c.TLS == nil || c.Key == nil || c.Trust == nil || c.State == nil:
		return nil, errors.New("link: Brokers, TLS, Key, Trust and State are needed")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.ShutdownWait == 0 {
		c.ShutdownWait = 500 * time.Millisecond
	}
	if c.Counters == nil {
		c.Counters = &fleet.Counters{}
	}
	if c.Budget == nil {
		c.Budget = unlimited{}
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: connectTimeout, KeepAlive: -1}).DialContext // MQTT has its own
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Float64
	}
	conf := c.TLS.Clone()
	conf.MinVersion = tls.VersionTLS13
	if conf.ClientSessionCache == nil {
		conf.ClientSessionCache = tls.NewLRUClientSessionCache(4) // a reconnect costs 1 KB less
	}
	if conf.CurvePreferences == nil {
		// The hybrid of X25519 and ML-KEM, Go's default, costs 2.2 KB more at each
		// connection, as much as all the rest. Secrets are sealed within.
		conf.CurvePreferences = []tls.CurveID{tls.X25519}
	}
	if c.OnStanding == nil {
		c.OnStanding = func(*fleet.Standing) {}
	}
	if c.TrustID == nil {
		c.TrustID = func() []byte { return nil }
	}
	if c.OnTrust == nil {
		c.OnTrust = func([]byte, time.Duration) {}
	}
	if c.Board == nil {
		c.Board = func() string { return "" }
	}
	c.Budget.Set(readSettings(c.State, c.LinkClass).budget)
	set, version := c.State.Set()
	machine := NewMachine(c.State.ID(), c.State.BootSeq(), version, set)
	machine.Booted(c.BootID)
	return &Link{
		c: c, log: c.Logger, codec: fleet.NewCodec(), counters: c.Counters, tls: conf, started: c.Now(), budget: c.Budget.Watch(), machine: machine,
	}, nil
}

// Counters of bytes and messages.
func (l *Link) Counters() *fleet.Counters { return l.counters }

// Status returns what the link is doing.
func (l *Link) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

func (l *Link) note(change func(*Status)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	live := l.status.Live
	change(&l.status)
	if l.status.Live != live {
		l.status.Since = l.c.Now()
	}
}

func (l *Link) now() time.Duration { return l.c.Now().Sub(l.started) }

// Run connects, and connects again, until ctx ends. The first attempt is
// immediate; later ones wait a random time, so that a fleet doesn't come back in
// one moment.
func (l *Link) Run(ctx context.Context) error {
	failures := 0
	for ctx.Err() == nil {
		live, err := l.connection(ctx)
		if ctx.Err() != nil {
			break
		}
		var wait time.Duration
		switch {
		case errors.Is(err, errReconnect):
			failures = 0
		case live:
			failures, wait = 0, l.settings().comeBack(l.c.Rand())
		default:
			failures++
			wait = l.settings().again(failures, l.c.Rand())
		}
		if l.brokers.ended(l.c.Brokers(), live, err) {
			failures, wait = max(failures-1, 0), time.Duration(l.c.Rand()*float64(nextBroker))
		}
		if err != nil {
			l.note(func(s *Status) { s.LastError, s.Err = err.Error(), err })
			// One line when it breaks, then ever fewer: an outage may last a year.
			if failures <= 1 || failures&(failures-1) == 0 {
				l.log.Warn("fleet link", "error", err, "failures", failures, "retryIn", wait)
			}
		}
		if errors.Is(err, ErrRefused) && l.c.Readmission != nil && l.c.Readmission(ctx) {
			failures, wait = 0, 0
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

func (l *Link) settings() settings { return readSettings(l.c.State, l.c.LinkClass) }
