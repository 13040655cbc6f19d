package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	wire "github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/apiserver"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/controlplane/leadership"
	"github.com/coracle-edge/coracle/internal/durable"
)

// hubLease is held by the control plane that works, where several share an etcd.
const hubLease = "coracle-hub"

// successorWithin is above the time in which a control plane that waits sees that the
// lease was given up.
const successorWithin = 5 * time.Second

// duty is whether this control plane works: always with an embedded etcd, and by a
// lease where others may share an external one.
type duty struct {
	lead   *leadership.Leadership // nil: always; set before anything runs
	doubt  *doubt                 // likewise
	knocks *knocks                // likewise
}

// compete has the duty depend on the lease.
func (d *duty) compete(server *apiserver.Server, l *listeners, o options, logger *slog.Logger) error {
	client, err := typedClient(server.ClientConfig(hubUser))
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	d.lead, err = leadership.New(leadership.Config{
		Client: client, Namespace: systemNamespace, Name: hubLease, Identity: host + "_" + randomID(),
		Self:     leadership.Addresses{API: l.urls("https", l.api), Fleet: l.urls("https", l.fleet)},
		Duration: o.leaseDuration, Logger: logger,
	})
	if err != nil {
		return err
	}
	leases := client.CoordinationV1().Leases(systemNamespace)
	d.knocks = newKnocks(leases, host, logger)
	d.doubt = &doubt{now: time.Now, knocks: watchKnocks(leases), logger: logger}
	return nil
}

// hold says that no node is to be called away now: it may be this control plane that
// is cut off.
func (d *duty) hold() bool { return d.doubt != nil && d.doubt.Hold() }

// watch ends with errCutOff when the hub's nodes are reached by another control plane
// and not by this one.
func (d *duty) watch(ctx context.Context, hub *fleethub.Hub) error {
	if d.doubt == nil {
		<-ctx.Done()
		return nil
	}
	d.doubt.reach = hub.Reach
	return d.doubt.run(ctx)
}

// wait turns nodes away until ctx ends, and tells the active control plane that they
// come.
func (d *duty) wait(ctx context.Context, mqtt net.Listener) {
	var telling sync.WaitGroup
	telling.Go(func() { d.knocks.run(ctx) })
	defer telling.Wait()
	turnAway(ctx, mqtt, d.knocks.knock)
}

func (d *duty) active() bool { return d.lead == nil || d.lead.Held() }

// gate has a client write only on duty.
func (d *duty) gate(c *rest.Config) *rest.Config {
	if d.lead == nil {
		return c
	}
	return d.lead.Gate(c)
}

// run calls work on duty, until ctx ends.
func (d *duty) run(ctx context.Context, work func(ctx context.Context)) error {
	if d.lead == nil {
		work(ctx)
		return nil
	}
	err := d.lead.Run(ctx, work)
	if d.doubt != nil && d.doubt.cut.Load() {
		// Begun anew this process would compete again, and must not win.
		d.awaitSuccessor()
	}
	return err
}

func (d *duty) awaitSuccessor() {
	ctx, cancel := context.WithTimeout(context.Background(), successorWithin)
	defer cancel()
	for ctx.Err() == nil {
		if leader, err := d.lead.Leader(ctx); err == nil && !leader.Self {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// only serves handler on duty, and says who is to be asked otherwise.
func (d *duty) only(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !d.active() {
			http.Error(w, d.elsewhere(r.Context()).Error(), http.StatusServiceUnavailable)
			return
		}
		handler.ServeHTTP(w, r)
	})
}

// elsewhere says who works, if this control plane doesn't.
func (d *duty) elsewhere(ctx context.Context) error {
	leader, err := d.lead.Leader(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", leadership.ErrNotActive, err)
	case leader.Self:
		return leadership.ErrNotActive
	}
	return fmt.Errorf("%w: ask %s", leadership.ErrNotActive, strings.Join(leader.API, " or "))
}

// dutiful is a transport that carries nothing off duty.
type dutiful struct {
	fleethub.Transport
	active func() bool
}

// hearing is what a broker of ours can do besides: see fleethub.Config.Transport.
type hearing interface {
	Heard(node string) (time.Time, bool)
}

// carried is the transport, silent off duty.
func carried(t fleethub.Transport, active func() bool) fleethub.Transport {
	d := dutiful{t, active}
	if e, ok := t.(hearing); ok {
		return struct {
			dutiful
			hearing
		}{d, e}
	}
	return d
}

func (t dutiful) Run(ctx context.Context, message func(node string, d wire.Direction, payload []byte), link func(up bool)) error {
	return t.Transport.Run(ctx, func(node string, d wire.Direction, payload []byte) {
		if t.active() {
			message(node, d, payload)
		}
	}, link)
}

func (t dutiful) Publish(node string, payload []byte) error {
	if !t.active() {
		return leadership.ErrNotActive
	}
	return t.Transport.Publish(node, payload)
}

// turnAway closes connections as they come, until ctx ends: a node that finds this
// broker off duty tries the next at once, and has not even paid for a handshake.
func turnAway(ctx context.Context, l net.Listener, knocked func()) {
	if l == nil {
		<-ctx.Done() // the broker is external
		return
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		<-ctx.Done()
		return
	}
	woken := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = tcp.SetDeadline(time.Unix(1, 0))
	})
	for ctx.Err() == nil {
		conn, err := tcp.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if ctx.Err() == nil {
				time.Sleep(50 * time.Millisecond) // out of file descriptors
			}
			continue
		}
		_ = conn.Close()
		knocked()
	}
	<-woken
	_ = tcp.SetDeadline(time.Time{}) // the broker's from now on
}

// memberID names this control plane among those of the cluster: made with the data
// folder.
func memberID(dataDir string) (string, error) {
	path := filepath.Join(dataDir, "member")
	raw, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(raw)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := randomID()
	return id, durable.WriteFile(path, []byte(id+"\n"), 0o600)
}

func randomID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
