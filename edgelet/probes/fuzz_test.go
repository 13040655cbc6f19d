package probes

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// answering serves to every connection what is stored in it, and closes it.
func answering(f *testing.F) (port int, answer *atomic.Pointer[[]byte]) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	answer = new(atomic.Pointer[[]byte])
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = c.Read(make([]byte, 4096))
			if raw := answer.Load(); raw != nil {
				_, _ = c.Write(*raw)
			}
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port, answer
}

// asked runs a probe, within limit: a connection that says nothing usable is tried
// anew until the probe's timeout, which nobody here has to wait for.
func asked(t *testing.T, c *checker, raw []byte, h v1.ProbeHandler, limit time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	p := &probe{spec: &v1.Probe{ProbeHandler: h, TimeoutSeconds: 1}}
	began := time.Now()
	v, text, _ := c.run(ctx, target{host: "127.0.0.1", probe: p, c: &container{spec: &v1.Container{}}})
	if v == "" || len(text) > maxOutput+4096 {
		t.Errorf("%q: verdict %q of %d bytes", raw, v, len(text))
	}
	if took := time.Since(began); took > limit+20*time.Second {
		t.Errorf("%q: took %s", raw, took)
	}
}

// Whatever a container answers an HTTP probe: a verdict, in time, of bounded size.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 302 Found\r\nLocation: http://[::1/\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00"))
	port, answer := answering(f)
	c := newChecker(nil)
	f.Fuzz(func(t *testing.T, raw []byte) {
		answer.Store(&raw)
		asked(t, &c, raw, v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/", Port: intstr.FromInt(port)}}, time.Second)
	})
}

// Whatever a container answers a gRPC probe.
func FuzzHealthAnswer(f *testing.F) {
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	f.Add([]byte(settings))
	f.Add([]byte(settings + "\x00\x00\x00\x04\x01\x00\x00\x00\x00" + "\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88"))
	f.Add([]byte(settings + "\x00\x00\x08\x07\x00\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x00"))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	port, answer := answering(f)
	c := newChecker(nil)
	f.Fuzz(func(t *testing.T, raw []byte) {
		answer.Store(&raw)
		asked(t, &c, raw, v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: int32(port)}}, 30*time.Millisecond)
	})
}
