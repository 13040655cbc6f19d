package wasm

import (
	"bytes"
	"strings"
	"testing"
)

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:   10000      77    0    0    0     0          0         0    10000      77    0    0    0     0       0          0
  eth0:    1001       2    3    4    0     0          0         0     5005       6    7    8    0     0       0          0
`

func TestParseNetDev(t *testing.T) {
	got, err := parseNetDev(strings.NewReader(netDev))
	want := netCounters{"eth0", 1001, 2, 3, 4, 5005, 6, 7, 8}
	if err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func FuzzParseNetDev(f *testing.F) {
	f.Add([]byte(netDev))
	f.Add([]byte("a:1 2 3 4 5 6 7 8 9 10 11 12\n:\nx: -1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, _ := parseNetDev(bytes.NewReader(b))
		for _, c := range got {
			if c.name == "" || c.name == "lo" {
				t.Errorf("interface %q", c.name)
			}
		}
	})
}
