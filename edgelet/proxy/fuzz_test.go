package proxy

import (
	"context"
	"errors"
	"net/netip"
	"testing"
)

// What an order says of default/kubernetes, and a grant of where the API is: what
// the rules are given is an address and a port of IPv4.
func FuzzWant(f *testing.F) {
	f.Add([]byte(nil), "https://192.0.2.1:6443")
	f.Add(service(f, "10.43.0.1"), "https://h:99999")
	f.Add(service(f, "::1"), "https://[::1%25lo]:1")
	f.Fuzz(func(t *testing.T, raw []byte, api string) {
		p := &Proxy{c: Config{Service: func() []byte { return raw }, API: func() []string { return []string{api} },
			Lookup: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }}}
		list, err := p.want(t.Context())
		if err != nil {
			return
		}
		for _, w := range list {
			if !w.from.Addr().Is4() || !w.to.Addr().Is4() || w.to.Addr().IsLoopback() {
				t.Errorf("%+v", w)
			}
		}
	})
}
