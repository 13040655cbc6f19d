package streams

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Whatever a runtime's server of streams answers, the client hears an error, or what
// follows the answer's head.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nearly"))
	f.Add([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 99999999999\r\n\r\nno such token"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"))
	f.Add([]byte("HTTP/1.0\r\n\r\n"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	defer l.Close()
	s := &Server{Config{Idle: DefaultIdle}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		served := make(chan struct{})
		go func() {
			defer close(served)
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = c.Read(make([]byte, 4096))
			_, _ = c.Write(raw)
		}()
		r := httptest.NewRequest(http.MethodPost, "/exec", nil)
		conn, answer, err := s.ask(r, "http://"+l.Addr().String()+"/exec/token")
		<-served
		if err != nil {
			return
		}
		defer conn.Close()
		if answer.StatusCode != http.StatusSwitchingProtocols {
			w := httptest.NewRecorder()
			_ = relayAnswer(w, answer)
			if w.Code < 400 || w.Body.Len() > maxAnswer+1024 {
				t.Errorf("%q became %d with %d bytes", raw, w.Code, w.Body.Len())
			}
			return
		}
		if rest, err := io.ReadAll(conn); err == nil && len(rest) > len(raw) {
			t.Errorf("%d bytes of %d", len(rest), len(raw))
		}
	})
}
