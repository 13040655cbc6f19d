package controllers

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
)

// However a controller ends, it is started again, later each time, and the log names it.
func TestSupervisorStartsAgain(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC))
	var log strings.Builder
	var mu sync.Mutex
	s := supervisor{name: "test-controller", clock: clock, logger: slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil))}
	starts := make(chan int)
	n := 0
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.run(ctx, func(ctx context.Context) error {
			n++
			starts <- n
			switch n {
			case 1:
				return errors.New("first reason")
			case 2:
				panic("second reason")
			case 3:
				return nil
			}
			<-ctx.Done()
			return nil
		})
	}()
	for i, backoff := range []time.Duration{0, firstBackoff, 2 * firstBackoff, 4 * firstBackoff} {
		if backoff > 0 {
			for !clock.HasWaiters() {
				time.Sleep(time.Millisecond)
			}
			clock.Step(backoff - time.Millisecond)
			select {
			case <-starts:
				t.Fatalf("start %d came before its back-off was over", i+1)
			case <-time.After(20 * time.Millisecond):
			}
			clock.Step(time.Millisecond)
		}
		if got := <-starts; got != i+1 {
			t.Fatalf("start %d, want %d", got, i+1)
		}
	}
	cancel()
	<-ended
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{"test-controller", "first reason", "second reason", ErrPanic.Error(), ErrEnded.Error()} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log doesn't say %q:\n%s", want, log.String())
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *strings.Builder
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
