package streams

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// Whatever a query says: no panic, and what is let through is within the bounds.
func FuzzQueries(f *testing.F) {
	f.Add("input=1&output=1&tty=1&command=sh&command=-c", "websocket")
	f.Add("port=80,443&port=8080", "websocket")
	f.Add("cmd=a+b", "")
	f.Add("address=10.42.0.7:80", "")
	f.Fuzz(func(t *testing.T, query, upgrade string) {
		q, _ := url.ParseQuery(query)
		if o, err := parseOptions(q); err == nil {
			if !o.stdin && !o.stdout && !o.stderr || o.tty && o.stderr || len(o.command) > maxCommand {
				t.Errorf("%q became %+v", query, o)
			}
		}
		if c, err := parseRun(q); err == nil && (len(c) == 0 || c[0] == "" || len(c) > maxCommand) {
			t.Errorf("%q became %q", query, c)
		}
		r := &http.Request{URL: &url.URL{RawQuery: query}, Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {upgrade}}}
		if ports, err := parsePorts(r); err == nil && ports != nil {
			if len(ports) > maxPorts {
				t.Errorf("%d ports", len(ports))
			}
			for _, p := range ports {
				if p < 1 || p > 65535 {
					t.Errorf("%q has port %d", query, p)
				}
			}
		}
		if a, err := parseDial(q); err == nil {
			if !a.IsValid() || a.Port() == 0 || a.Addr().Is4In6() || a.Addr().Zone() != "" || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
				t.Errorf("%q became %s", query, a)
			}
		}
	})
}

// A dialer never gets further than to the pods that there are, and there are none.
func FuzzDial(f *testing.F) {
	f.Add("address=127.0.0.1:22")
	f.Add("address=[::ffff:127.0.0.1]:22")
	f.Add("address=127.0.0.1:22&address=127.0.0.1:23")
	s, err := New(Config{Runtime: struct{ Runtime }{}, Pod: func(string, string, string) (*v1.Pod, error) { return nil, ErrNoPod }})
	if err != nil {
		f.Fatal(err)
	}
	handler := s.Dial(func(netip.Addr) ([]*v1.Pod, error) { return nil, nil })
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest(http.MethodGet, enrollment.DialPath, nil)
		r.URL.RawQuery = query
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", enrollment.TunnelProtocol)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != http.StatusBadRequest && w.Code != http.StatusForbidden {
			t.Errorf("%q: %d %s", query, w.Code, w.Body)
		}
	})
}

// A runtime may answer anything.
func FuzzRuntimeURL(f *testing.F) {
	f.Add("http://127.0.0.1:1/exec/x")
	f.Add("ftp://x")
	f.Add("http://[::1")
	s := &Server{Config{Idle: DefaultIdle}}
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.Parse(target)
		if err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
			return // that would be dialed
		}
		r := httptest.NewRequest(http.MethodPost, "/exec", nil)
		if _, _, err := s.ask(r, target); err == nil {
			t.Errorf("%q was asked", target)
		}
	})
}
