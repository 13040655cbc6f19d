package inprocess

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
)

func transportTo(h http.HandlerFunc) http.RoundTripper {
	s := NewServer()
	s.Serve(h)
	return s.Transport(&user.DefaultInfo{Name: "hub", Groups: []string{"g"}})
}

func request(t *testing.T, ctx context.Context, method, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, "https://host/path?a=b", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestTransportCarriesRequestAndIdentity(t *testing.T) {
	rt := transportTo(func(w http.ResponseWriter, req *http.Request) {
		resp, ok, err := Authenticator{}.AuthenticateRequest(req)
		if !ok || err != nil || resp.User.GetName() != "hub" {
			t.Errorf("identity = %+v, %v, %v", resp, ok, err)
		}
		body, _ := io.ReadAll(req.Body)
		if string(body) != "in" || req.RequestURI != "/path?a=b" || req.ProtoMajor != 2 {
			t.Errorf("handler got %q %s HTTP/%d", body, req.RequestURI, req.ProtoMajor)
		}
		w.Header().Set("X-A", "1")
		w.WriteHeader(http.StatusTeapot)
		w.Header().Set("X-Late", "not sent any more")
		io.WriteString(w, "out")
	})
	resp, err := rt.RoundTrip(request(t, t.Context(), "POST", "in"))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "out" || resp.StatusCode != http.StatusTeapot || resp.Header.Get("X-A") != "1" || resp.Header.Get("X-Late") != "" {
		t.Fatalf("response = %d %v %q, %v", resp.StatusCode, resp.Header, body, err)
	}
	resp.Body.Close()
}

// A handler may return before anybody looks whether it has begun: its response counts, not that its context has ended.
func TestHandlerThatIsFasterThanItsCaller(t *testing.T) {
	rt := transportTo(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	// More callers than processors, so that some are put aside just before they look.
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for range 2000 {
				resp, err := rt.RoundTrip(request(t, t.Context(), "GET", ""))
				if err != nil || resp == nil || resp.StatusCode != http.StatusNoContent {
					t.Errorf("response %v, %v", resp, err)
					return
				}
				resp.Body.Close()
			}
		})
	}
	all.Wait()
}

func TestIdentityCannotComeOverANetwork(t *testing.T) {
	req := request(t, t.Context(), "GET", "")
	req.Header.Set("Impersonate-User", "x")
	if _, ok, _ := (Authenticator{}).AuthenticateRequest(req); ok {
		t.Fatal("a request without the context value was authenticated")
	}
}

func TestTransportStreamsAndCloseEndsTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := false
		rt := transportTo(func(w http.ResponseWriter, req *http.Request) {
			w.(http.Flusher).Flush()
			for i := 0; req.Context().Err() == nil; i++ {
				io.WriteString(w, "x")
				select {
				case <-req.Context().Done():
				case <-time.After(time.Second):
				}
			}
			ended = true
		})
		resp, err := rt.RoundTrip(request(t, t.Context(), "GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := io.ReadFull(resp.Body, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("three events took %v, want 2s: they must come as they are written", d)
		}
		resp.Body.Close()
		if !ended {
			t.Error("Close returned before the handler did")
		}
		if _, err := resp.Body.Read(make([]byte, 1)); err == nil {
			t.Error("read from a closed body")
		}
	})
}

func TestTransportCancelledByItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		rt := transportTo(func(w http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
		if _, err := rt.RoundTrip(request(t, ctx, "GET", "")); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("err = %v", err)
		}
		synctest.Wait()
	})
}

func TestTransportSlowReaderHoldsTheHandlerBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var written atomic.Int64
		rt := transportTo(func(w http.ResponseWriter, req *http.Request) {
			for range 100 {
				n, err := w.Write(make([]byte, 64<<10))
				if err != nil {
					return
				}
				written.Add(int64(n))
			}
		})
		resp, err := rt.RoundTrip(request(t, t.Context(), "GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := written.Load(); n > responseWindow+64<<10 {
			t.Errorf("handler wrote %d bytes that nobody read", n)
		}
		body, _ := io.ReadAll(resp.Body)
		if len(body) != 100*64<<10 {
			t.Errorf("read %d bytes", len(body))
		}
		resp.Body.Close()
	})
}

func TestTransportPanicIsAnErrorOfTheReader(t *testing.T) {
	rt := transportTo(func(w http.ResponseWriter, req *http.Request) {
		io.WriteString(w, "half")
		panic(http.ErrAbortHandler)
	})
	resp, err := rt.RoundTrip(request(t, t.Context(), "GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) || buf.String() != "half" {
		t.Fatalf("read %q, %v", buf.String(), err)
	}
	resp.Body.Close()
}

func TestTransportWaitsForTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := NewServer()
		rt := server.Transport(&user.DefaultInfo{})
		if _, err := rt.RoundTrip(request(t, t.Context(), "GET", "")); !errors.Is(err, ErrNotServing) {
			t.Fatalf("err = %v", err)
		}
		time.AfterFunc(time.Second, func() {
			server.Serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
		})
		resp, err := rt.RoundTrip(request(t, t.Context(), "GET", ""))
		if err != nil || resp.StatusCode != http.StatusNoContent {
			t.Fatalf("%v, %v", resp, err)
		}
		resp.Body.Close()
	})
}
