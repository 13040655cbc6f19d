package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// traffic of a transfer.
type traffic struct {
	moved   atomic.Int64 // changes whenever something came in, and after a wait
	waiting atomic.Int32 // requests that a registry wants to come later
}

// maxRetryAfter is how long a pull waits because a registry asks for it.
const maxRetryAfter = 60 * time.Second

// transport counts what comes in, and waits where a registry says how long.
// containerd's resolver would ask again at once, five times.
type transport struct {
	next    http.RoundTripper
	traffic *traffic
	now     func() time.Time
}

// throttledError is returned when a registry wants to be asked later.
type throttledError struct {
	host   string
	status string
	after  time.Duration
}

func (e *throttledError) Error() string {
	if e.after == 0 {
		return fmt.Sprintf("%s answers %s: it limits how much is pulled from it", e.host, e.status)
	}
	return fmt.Sprintf("%s answers %s: it wants to be asked again in %v", e.host, e.status, e.after)
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, err := t.next.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		t.traffic.moved.Add(1)
		after, asked := retryAfter(resp, t.now())
		if !asked {
			resp.Body = &movingBody{ReadCloser: resp.Body, traffic: t.traffic}
			return resp, nil
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 16<<10)) // so that the connection is used again
		resp.Body.Close()
		again := req.Body == nil || req.GetBody != nil
		if try == attempts || after > maxRetryAfter || !again {
			return nil, &throttledError{host: req.URL.Host, status: resp.Status, after: after}
		}
		if err := t.wait(req.Context(), max(after, time.Duration(try)*500*time.Millisecond)); err != nil {
			return nil, err
		}
		if req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req = req.Clone(req.Context())
			req.Body = body
		}
	}
}

// retryAfter is how long a registry that is too busy wants to be left alone.
// Too many requests without a time is a wish, too.
func retryAfter(resp *http.Response, now time.Time) (time.Duration, bool) {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0, false
	}
	v := strings.TrimSpace(resp.Header.Get("Retry-After"))
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second, true
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, at.Sub(now).Round(time.Second)), true
	}
	return 0, resp.StatusCode == http.StatusTooManyRequests
}

// wait isn't a stall.
func (t *transport) wait(ctx context.Context, d time.Duration) error {
	t.traffic.waiting.Add(1)
	defer func() {
		t.traffic.moved.Add(1)
		t.traffic.waiting.Add(-1)
	}()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type movingBody struct {
	io.ReadCloser
	traffic *traffic
}

func (b *movingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.traffic.moved.Add(int64(n))
	return n, err
}

// wrap puts the transport around a client's, once: hosts.toml with headers makes
// containerd ask twice for the same.
func (t *traffic) wrap(now func() time.Time) func(*http.Client) error {
	return func(c *http.Client) error {
		if _, ok := c.Transport.(*transport); !ok {
			c.Transport = &transport{next: c.Transport, traffic: t, now: now}
		}
		return nil
	}
}

// withRegistryToken has a bearer token sent to the registry and to its mirrors,
// which containerd's authorizer can't.
func withRegistryToken(hosts docker.RegistryHosts, c *Credentials) docker.RegistryHosts {
	if c == nil || c.RegistryToken == "" || c.Username != "" || c.IdentityToken != "" || c.Auth != "" {
		return hosts
	}
	return func(domain string) ([]docker.RegistryHost, error) {
		list, err := hosts(domain)
		for i := range list {
			if c.isFor(list[i].Host) {
				list[i].Authorizer = bearer(c.RegistryToken)
			}
		}
		return list, err
	}
}

type bearer string

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	req.Header.Set("Authorization", "Bearer "+string(b))
	return nil
}

// AddResponses is asked after a 401: there is no other token to try.
func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return fmt.Errorf("%w: the registry refuses the token", docker.ErrInvalidAuthorization)
}

// isFor says whether the credentials may be shown to a host.
func (c *Credentials) isFor(host string) bool {
	if c.ServerAddress == "" {
		return true
	}
	want := c.ServerAddress
	if u, err := url.Parse(want); err == nil && u.Host != "" {
		want = u.Host
	}
	want, _, _ = strings.Cut(want, "/") // host/path without a scheme
	if want == "index.docker.io" || want == "docker.io" {
		want = "registry-1.docker.io"
	}
	return host == want
}

var errBadAuth = errors.New("auth is not the base64 of USER:PASSWORD")
