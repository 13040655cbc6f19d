package poddial

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// Whatever a node answers that is asked to connect to one of its pods.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: coracle-tunnel\r\n\r\nearly"))
	f.Add([]byte("HTTP/1.1 403 X\r\nContent-Length: 99999999\r\n\r\nno such pod"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		near, far := net.Pipe()
		defer near.Close()
		_ = near.SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			defer far.Close()
			_, _ = far.Read(make([]byte, 4096))
			_, _ = far.Write(answer)
		}()
		stream, err := ask(near, "n", netip.MustParseAddrPort("10.0.0.1:80"))
		if err != nil {
			if len(err.Error()) > maxRefusal+1024 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if rest, _ := io.ReadAll(stream); len(rest) > len(answer) {
			t.Errorf("%d bytes of %d", len(rest), len(answer))
		}
	})
}
