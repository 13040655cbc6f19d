package poddial

import (
	"net/netip"
	"testing"
)

func TestHostsNameAnAddressOnANode(t *testing.T) {
	for _, text := range []string{"10.42.0.7", "fd00::1:2", "fd00:1:2:3:4:5:6:7", "::1", "1::2:3"} {
		addr := netip.MustParseAddr(text)
		got, node, ok := parseHost(hostOn(addr, "site-a.pi-1"))
		if got != addr || node != "site-a.pi-1" || !ok {
			t.Errorf("%s became %s on %q, %v", addr, got, node, ok)
		}
	}
	for _, host := range []string{"10-42-0-7.pods.coracle.internal", "10-42-0-7..pods.coracle.internal", "x.pi-1.pods.coracle.internal",
		"10-42-0-7.UPPER.pods.coracle.internal", "10.42.0.7", "pi-1", "", "10-42-0-7.pi-1.pods.coracle.internal.example.org"} {
		if addr, node, ok := parseHost(host); ok {
			t.Errorf("%q became %s on %q", host, addr, node)
		}
	}
}

func FuzzParseHost(f *testing.F) {
	f.Add("10-42-0-7.pi-1.pods.coracle.internal")
	f.Add("fd00--1.pi-1.pods.coracle.internal")
	f.Fuzz(func(t *testing.T, host string) {
		addr, node, ok := parseHost(host)
		if !ok {
			return
		}
		again, same, ok := parseHost(hostOn(addr, node))
		if again != addr || same != node || !ok {
			t.Fatalf("%q is %s on %q, and that is %s on %q", host, addr, node, again, same)
		}
	})
}
