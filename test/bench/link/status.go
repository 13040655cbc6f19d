package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

// status is what the node's own socket says, on this machine: asking it costs
// the link nothing.
type status struct {
	Link struct {
		Live        bool
		Class       string
		Keepalive   time.Duration
		Connections int64
		Resumed     bool
	} `json:"link"`
	Traffic fleet.Traffic `json:"traffic"`
}

// cost is the bytes of both directions since before, of the MQTT connection and
// all others: on the sockets, and of MQTT above TLS.
func (s status) cost(before status) (socket, plain float64) {
	socket = float64(s.Traffic.Socket.Total() - before.Traffic.Socket.Total())
	for purpose, b := range s.Traffic.Streams {
		socket += float64(b.Total() - before.Traffic.Streams[purpose].Total())
	}
	return socket, float64(s.Traffic.Plain.Total() - before.Traffic.Plain.Total())
}

func (b *bench) status(ctx context.Context) (status, error) {
	path := filepath.Join(b.layout.Node(b.board), "run", "edgelet.sock")
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	var s status
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://edgelet/v1/status", nil)
	if err != nil {
		return s, err
	}
	response, err := client.Do(request)
	if err != nil {
		return s, fmt.Errorf("node %s: %w", b.board, err)
	}
	defer response.Body.Close()
	return s, json.NewDecoder(response.Body).Decode(&s)
}

// quiet waits until nothing but keepalives has been on the link for longer than
// anything of the class waits, and returns the node's status then.
func (b *bench) quiet(ctx context.Context, class string) (status, error) {
	c := fleet.DefaultClasses()[class]
	still := 3*time.Second + 2*(c.Gather+c.Answer)
	last, err := b.status(ctx)
	if err != nil {
		return last, err
	}
	since := time.Now()
	deadline := time.Now().Add(3 * time.Minute)
	for time.Since(since) < still {
		if err := rig.Sleep(ctx, 200*time.Millisecond); err != nil {
			return last, err
		}
		now, err := b.status(ctx)
		if err != nil {
			return now, err
		}
		if messages(now) != messages(last) || !now.Link.Live {
			since = time.Now()
		}
		if last = now; time.Now().After(deadline) {
			return last, fmt.Errorf("the link of node %s doesn't become quiet: %+v", b.board, now.Traffic.Messages)
		}
	}
	return last, nil
}

func messages(s status) (n int64) {
	for _, m := range s.Traffic.Messages {
		n += m.Total()
	}
	return n
}
