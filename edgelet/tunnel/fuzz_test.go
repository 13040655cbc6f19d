package tunnel

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/url"
	"testing"
	"time"
)

// Whatever a fleet endpoint answers, the agent gives up or has a stream, and of
// that it lost not a byte.
func FuzzHandshake(f *testing.F) {
	const yes = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: coracle-tunnel\r\n\r\n"
	f.Add([]byte(yes + "early"))
	f.Add([]byte("HTTP/1.1 403 Forbidden\r\nContent-Length: 30\r\n\r\n{\"code\":\"x\",\"message\":\"no\"}"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"))
	f.Add([]byte("HTTP/1.1 999\r\n\r\n"))
	u := &url.URL{Scheme: "https", Host: "h:1", Path: "/v1/tunnel/x"}
	f.Fuzz(func(t *testing.T, answer []byte) {
		near, far := net.Pipe()
		defer near.Close()
		go func() {
			defer far.Close()
			_, _ = far.Read(make([]byte, 4096))
			_, _ = far.Write(answer)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		stream, err := handshake(ctx, near, u)
		if err != nil {
			return
		}
		_, head, ok := bytes.Cut(answer, []byte("\n\r\n"))
		if got, err := io.ReadAll(stream); ok && (err != nil || len(got) > len(answer)) {
			t.Errorf("%q after the head of %q: %v, want at most %q", got, answer, err, head)
		}
	})
}
