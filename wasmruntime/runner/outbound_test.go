package runner

import (
	"reflect"
	"strings"
	"testing"

	"net/netip"

	"github.com/coracle-edge/coracle/wasmruntime/internal/wasi"
)

func TestResolvConfAndHosts(t *testing.T) {
	var o wasi.Outbound
	resolvConf(strings.NewReader(`# by hand
nameserver 192.0.2.53 ; the first
nameserver 2001:db8::53
nameserver nonsense
domain old.test
search a.test b.test.
options edns0 ndots:5
`), &o)
	hosts(strings.NewReader("127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # both\nnonsense x\n192.0.2.1 Big.Test. alias\n"), &o)
	want := wasi.Outbound{
		Servers:  []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("[2001:db8::53]:53")},
		Searches: []string{"a.test", "b.test."}, Ndots: 5,
		Hosts: []wasi.Host{
			{Name: "localhost", Addr: netip.MustParseAddr("127.0.0.1")}, {Name: "localhost", Addr: netip.MustParseAddr("::1")},
			{Name: "ip6-localhost", Addr: netip.MustParseAddr("::1")}, {Name: "big.test", Addr: netip.MustParseAddr("192.0.2.1")},
			{Name: "alias", Addr: netip.MustParseAddr("192.0.2.1")},
		},
	}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("%+v\nwant %+v", o, want)
	}
	// What the pod says goes before the file.
	o = wasi.Outbound{Servers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.10:53")}, Searches: []string{"svc"}, Ndots: 1}
	resolvConf(strings.NewReader("nameserver 192.0.2.53\nsearch a.test\noptions ndots:5\n"), &o)
	if o.Servers[0].Addr().String() != "10.0.0.10" || o.Searches[0] != "svc" || o.Ndots != 1 {
		t.Errorf("%+v", o)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.53\nsearch a b\noptions ndots:3\n127.0.0.1 localhost\n")
	f.Add("127.0.0.1 . localhost.\n")
	f.Fuzz(func(t *testing.T, text string) {
		var o wasi.Outbound
		resolvConf(strings.NewReader(text), &o)
		hosts(strings.NewReader(text), &o)
		for _, s := range o.Servers {
			if !s.IsValid() {
				t.Errorf("server %v", s)
			}
		}
		for _, h := range o.Hosts {
			if h.Name == "" || !h.Addr.IsValid() {
				t.Errorf("host %+v", h)
			}
		}
	})
}
