package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

const (
	objectsPath  = "/v1/objects/"
	fetchTries   = 8 // that bring nothing new
	fetchTimeout = 30 * time.Second
)

type fetchResult struct {
	got    map[string]*fleet.Object
	failed map[string]string
}

// fetch gets large objects in the background.
func (s *session) fetch(objects []*fleet.Object) {
	l, ctx, result := s.l, s.ctx, s.fetched
	bases := []string{}
	if u := l.c.State.Setting(settingObjects); u != "" {
		bases = append(bases, u)
	}
	if l.c.FleetURLs != nil {
		bases = append(bases, l.c.FleetURLs()...)
	}
	go func() {
		r := fetchResult{map[string]*fleet.Object{}, map[string]string{}}
		flow := l.counters.Stream(fleet.StreamObjects)
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := l.c.Dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return fleet.Meter(conn, func(sent, received int) {
				flow.Add(sent, received)
				l.c.Budget.Count(sent, received)
			}), nil
		}
		client := &http.Client{Transport: &http.Transport{DialContext: dial, TLSClientConfig: l.c.ObjectsTLS.Clone(), ForceAttemptHTTP2: false, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}}
		defer client.CloseIdleConnections()
		for _, o := range objects {
			raw, err := l.fetchOne(ctx, client, bases, o)
			if err != nil {
				r.failed[o.GetUid()] = err.Error()
				continue
			}
			full := proto.CloneOf(o)
			full.Size = 0
			if o.GetKind() == "Secret" {
				full.Sealed = raw
			} else {
				full.Raw = raw
			}
			r.got[o.GetUid()] = full
		}
		select {
		case result <- r:
		case <-ctx.Done():
		}
	}()
}

// fetchOne downloads an object and resumes after a cut, as long as each attempt
// brings something.
func (l *Link) fetchOne(ctx context.Context, client *http.Client, bases []string, o *fleet.Object) ([]byte, error) {
	if len(bases) == 0 || l.c.ObjectsTLS == nil {
		return nil, errors.New("no address to fetch from")
	}
	hash := fleet.Hash(o.GetHash())
	size := int(o.GetSize())
	raw := make([]byte, 0, size)
	var last error
	for idle, try := 0, 0; idle < fetchTries; try++ {
		before := len(raw)
		var err error
		raw, err = l.fetchSome(ctx, client, strings.TrimSuffix(bases[try%len(bases)], "/")+objectsPath+hash.String()+"?uid="+o.GetUid(), raw, size)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if len(raw) == size {
			if o.GetKind() != "Secret" && fleet.HashObject(raw) != hash {
				return nil, fmt.Errorf("%w: %d bytes with another hash than %s", fleet.ErrMalformed, size, hash)
			}
			return raw, nil
		}
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		last = err
		if errors.Is(err, errGone) {
			break
		}
		if len(raw) > before {
			idle = 0
			continue
		}
		idle++
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration((0.5 + l.c.Rand()) * float64(backoff(200*time.Millisecond, 10*time.Second, idle)))):
		}
	}
	return nil, fmt.Errorf("%d of %d bytes: %w", len(raw), size, last)
}

var errGone = errors.New("the hub no longer has it")

// fetchSome appends to raw what one request brings.
func (l *Link) fetchSome(ctx context.Context, client *http.Client, url string, raw []byte, size int) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(fetchTimeout, func() { cancel(errors.New("stalled")) })
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return raw, err
	}
	want := http.StatusOK
	if len(raw) > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(raw)))
		want = http.StatusPartialContent
	}
	resp, err := client.Do(req)
	if err != nil {
		return raw, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusForbidden:
		return raw, fmt.Errorf("%w: HTTP %d", errGone, resp.StatusCode)
	case resp.StatusCode != want:
		return raw, fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	buf := make([]byte, 16<<10)
	for len(raw) < size {
		n, err := resp.Body.Read(buf[:min(len(buf), size-len(raw))])
		raw = append(raw, buf[:n]...)
		if n > 0 {
			stall.Reset(fetchTimeout)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return raw, err
		}
	}
	return raw, nil
}
