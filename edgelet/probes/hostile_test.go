package probes

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// hostile is a server that does to a connection what serve does.
type hostile struct {
	port      int
	now, most atomic.Int64 // connections open
	all       atomic.Int64
}

func newHostile(t *testing.T, serve func(c net.Conn)) *hostile {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{port: l.Addr().(*net.TCPAddr).Port}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			h.all.Add(1)
			if n := h.now.Add(1); n > h.most.Load() {
				h.most.Store(n)
			}
			wg.Go(func() {
				defer func() {
					h.now.Add(-1)
					c.Close()
					mu.Lock()
					delete(open, c)
					mu.Unlock()
				}()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return h
}

// forever answers with text until the other side had enough.
func forever(head, text string) func(net.Conn) {
	return func(c net.Conn) {
		_, err := c.Read(make([]byte, 4096))
		if err == nil {
			_, err = io.WriteString(c, head)
		}
		for err == nil {
			_, err = io.WriteString(c, text)
		}
	}
}

// Two thousand probes that are due at once, of servers that do what hurts: accept and
// say nothing, headers and bodies without an end, redirects in a circle. What the
// agent has open at a time is bounded by its slots, its memory by what one answer may
// hold, pods that were well before are probed on time, and nothing is left afterwards.
func TestProbesOfHostileServers(t *testing.T) {
	const bombs, slots, good = 2000, 16, 10
	silent := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	circle := func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprintf(c, "HTTP/1.1 302 Found\r\nLocation: http://%s/%d\r\nContent-Length: 0\r\n\r\n", r.Host, time.Now().UnixNano())
		}
	}
	servers := []*hostile{
		newHostile(t, silent),
		newHostile(t, forever("HTTP/1.1 200 OK\r\n", "X-Endless: "+strings.Repeat("x", 1000)+"\r\n")),
		newHostile(t, forever("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("body", 1000))),
		newHostile(t, forever("HTTP/1.1 200 OK\r\nX-One: ", strings.Repeat("line", 1000))),
		newHostile(t, circle),
	}
	well := newHostile(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	var words atomic.Int64 // the longest event
	m := New(Config{Parallel: slots, Changed: func(string) {}, Event: func(e Event) { words.Store(max(words.Load(), int64(len(e.Message)))) }})
	pod := func(uid string, port int, action func(int) v1.ProbeHandler) Pod {
		return Pod{UID: uid, IP: "127.0.0.1", Containers: []Container{{Name: "main", ID: uid, Spec: &v1.Container{Name: "main",
			ReadinessProbe: &v1.Probe{ProbeHandler: action(port), TimeoutSeconds: 2, PeriodSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3}}}}}
	}
	get := func(port int) v1.ProbeHandler {
		return v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/", Port: intstr.FromInt(port)}}
	}
	health := func(port int) v1.ProbeHandler { return v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: int32(port)}} }
	eventually := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("never", what)
			}
		}
	}
	atRest := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	for i := range good {
		m.Watch(pod(fmt.Sprint("good", i), well.port, get))
	}
	eventually("probed", func() bool { return well.all.Load() >= good })

	var before, during runtime.MemStats
	runtime.ReadMemStats(&before)
	probed, began := well.all.Load(), time.Now()
	for i := range bombs {
		action := get
		if i%7 == 0 {
			action = health
		}
		m.Watch(pod(fmt.Sprint("bomb", i), servers[i%len(servers)].port, action))
	}
	peak := uint64(0)
	for time.Since(began) < 6*time.Second {
		time.Sleep(200 * time.Millisecond)
		runtime.ReadMemStats(&during)
		peak = max(peak, during.HeapInuse)
	}
	// Once a second each; a machine under load loses some, being held up loses nearly all.
	if n, want := well.all.Load()-probed, int64(good*int(time.Since(began)/time.Second)); n < want*3/10 {
		t.Errorf("pods that are well were probed %d times, %d were due", n, want)
	}
	for i, s := range servers {
		// What was closed here may not have been noticed there.
		if s.most.Load() > 3*slots || s.all.Load() == 0 {
			t.Errorf("server %d has had %d connections, %d at a time with %d slots", i, s.all.Load(), s.most.Load(), slots)
		}
	}
	if grown := int64(peak) - int64(before.HeapInuse); grown > 24<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	if words.Load() > maxOutput+1024 {
		t.Errorf("an event of %d bytes", words.Load())
	}
	for i := range bombs {
		m.Forget(fmt.Sprint("bomb", i))
	}
	for i := range good {
		m.Forget(fmt.Sprint("good", i))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually("closed", func() bool {
		for _, s := range servers {
			if s.now.Load() > 0 {
				return false
			}
		}
		return runtime.NumGoroutine() <= atRest+2
	})
}
