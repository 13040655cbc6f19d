package tunnel

import (
	"io"
	"net"
	"testing"
	"time"
)

// Whatever another control plane answers when it is asked to pass a tunnel on.
func FuzzRelayAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: coracle-tunnel\r\n\r\nearly"))
	f.Add([]byte("HTTP/1.1 503 X\r\nContent-Length: 15\r\n\r\n{\"message\":\"m\"}"))
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
		stream, err := askRelay(near, "h:1", "node/../x", "kubelet&x=y")
		if err != nil {
			return
		}
		if rest, _ := io.ReadAll(stream); len(rest) > len(answer) {
			t.Errorf("%d bytes of %d", len(rest), len(answer))
		}
	})
}
