package images

import (
	"net/http"
	"testing"
	"time"
)

// What a registry says of when to come again, and what an order says of credentials:
// they are shown to the host that they are for.
func FuzzRegistry(f *testing.F) {
	f.Add("120", "eDp5", "https://a.example/v1/", "a.example")
	f.Add("Fri, 31 Dec 9999 23:59:59 GMT", "x", "docker.io", "registry-1.docker.io")
	f.Add("4294967296", "", "[::1", "[::1")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, after, auth, server, host string) {
		for _, code := range []int{http.StatusOK, http.StatusTooManyRequests, http.StatusServiceUnavailable} {
			d, ok := retryAfter(&http.Response{StatusCode: code, Header: http.Header{"Retry-After": {after}}}, now)
			if d < 0 || ok && code == http.StatusOK {
				t.Errorf("%d with %q: %s, %t", code, after, d, ok)
			}
		}
		c := &Credentials{Auth: auth, ServerAddress: server}
		of, err := credentialsFunc(c)
		if err != nil || of == nil {
			return
		}
		user, secret, err := of(host)
		if err == nil && user+secret != "" && !c.isFor(host) {
			t.Errorf("what is for %q was shown to %q", server, host)
		}
	})
}
