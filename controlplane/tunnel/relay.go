package tunnel

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// relayDial is for connection and handshake with the other control plane, which is
// near; the node's part has its own time.
const relayDial = 5 * time.Second

// ErrRelay is returned when the active control plane couldn't be asked.
var ErrRelay = errors.New("the active control plane can't be asked for a stream to the node")

// ServeRelay gives another control plane a stream to node, for the purpose that the
// query names: its bytes are passed on as they are. The caller authenticated it.
func (t *Tunnels) ServeRelay(w http.ResponseWriter, r *http.Request, node string) {
	if r.Header.Get("Upgrade") != enrollment.TunnelProtocol {
		refuse(w, http.StatusUpgradeRequired, "BadRequest", "this path is for an Upgrade to "+enrollment.TunnelProtocol)
		return
	}
	purpose := r.URL.Query().Get("purpose")
	switch purpose {
	case "":
		purpose = enrollment.PurposeKubelet // who asked before there was another
	case enrollment.PurposeKubelet, enrollment.PurposeDial:
	default:
		refuse(w, http.StatusBadRequest, "BadRequest", fmt.Sprintf("no purpose of a stream is called %.64q", purpose))
		return
	}
	to, err := t.Dial(r.Context(), node, purpose)
	if err != nil {
		refuse(w, http.StatusBadGateway, "Node", err.Error())
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		to.Close()
		t.cfg.Logger.Error("relay", "node", node, "err", err)
		refuse(w, http.StatusInternalServerError, "Internal", "this connection can't be a stream")
		return
	}
	from, err := upgrade(conn, buffered)
	if err != nil {
		conn.Close()
		to.Close()
		t.cfg.Logger.Info("relay", "node", node, "err", err)
		return
	}
	t.cfg.Logger.Debug("relay open", "node", node, "for", r.RemoteAddr)
	splice(r.Context(), from, to)
}

// splice passes bytes on in both directions until one of them, or ctx, has ended.
func splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() {
		_ = a.Close()
		_ = b.Close()
	})
	defer stop()
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		// Inside is TLS, which says its end itself: half an end is none. That ends the
		// other direction, too.
		_ = to.Close()
	}
	both.Go(func() { pass(a, b) })
	both.Go(func() { pass(b, a) })
	both.Wait()
}

// DialRelay opens a stream to node for a purpose through the control plane whose fleet endpoint is
// at one of urls. config shows the API server's certificate and verifies the other
// side; its server name is set here.
func DialRelay(ctx context.Context, urls []string, config *tls.Config, node, purpose string) (net.Conn, error) {
	var errs []error
	for _, text := range urls {
		conn, err := dialRelay(ctx, text, config, node, purpose)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if errors.Is(err, errAnswered) || ctx.Err() != nil {
			break // the others lead to the same one
		}
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("it says no address"))
	}
	return nil, fmt.Errorf("%w: node %q: %w", ErrRelay, node, errors.Join(errs...))
}

// errAnswered marks an error that the other control plane said.
var errAnswered = errors.New("its answer")

func dialRelay(ctx context.Context, text string, config *tls.Config, node, purpose string) (net.Conn, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("address %q isn't https://HOST:PORT", text)
	}
	near, cancel := context.WithTimeout(ctx, relayDial)
	defer cancel()
	conf := config.Clone()
	conf.ServerName, conf.MinVersion, conf.NextProtos = enrollment.FleetServerName, tls.VersionTLS13, []string{"http/1.1"}
	conn, err := (&tls.Dialer{Config: conf}).DialContext(near, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	stream, err := askRelay(conn, u.Host, node, purpose)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", u.Host, err)
	}
	return stream, nil
}

func askRelay(conn net.Conn, host, node, purpose string) (net.Conn, error) {
	if _, err := fmt.Fprintf(conn, "GET %s%s?purpose=%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		enrollment.RelayPath, url.PathEscape(node), url.QueryEscape(purpose), host, enrollment.TunnelProtocol); err != nil {
		return nil, err
	}
	response, reader, err := enrollment.ReadAnswer(conn, http.MethodGet)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer response.Body.Close()
		var p enrollment.Problem
		body, err := enrollment.ReadAtMost(response.Body, enrollment.MaxBody)
		if err != nil || json.Unmarshal(body, &p) != nil || p.Message == "" {
			return nil, fmt.Errorf("%w: %s", errAnswered, response.Status)
		}
		return nil, fmt.Errorf("%w: %s", errAnswered, p.Message)
	}
	if !strings.EqualFold(response.Header.Get("Upgrade"), enrollment.TunnelProtocol) {
		return nil, fmt.Errorf("%w: it upgrades to %q", errAnswered, response.Header.Get("Upgrade"))
	}
	keepAlive(conn)
	return &prefixed{Conn: conn, early: reader}, nil
}
