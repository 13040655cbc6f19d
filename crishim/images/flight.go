package images

import (
	"context"
	"sync"
)

// flights joins callers that want the same thing at the same time. The work
// runs under a context of its own, which ends when the last caller has left.
type flights struct {
	mu sync.Mutex
	m  map[string]*flight
}

type flight struct {
	waiting int
	cancel  context.CancelFunc
	done    chan struct{}
	res     Result
	err     error
}

func (f *flights) busy() bool { return f.count() > 0 }

func (f *flights) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.m)
}

func (f *flights) do(ctx context.Context, key string, work func(context.Context) (Result, error)) (Result, error) {
	f.mu.Lock()
	if f.m == nil {
		f.m = map[string]*flight{}
	}
	fl, ok := f.m[key]
	for ok && fl.waiting == 0 {
		// It is being cancelled. Both would write the same blobs: wait for its end.
		f.mu.Unlock()
		<-fl.done
		f.mu.Lock()
		fl, ok = f.m[key]
	}
	if !ok {
		run, cancel := context.WithCancel(context.WithoutCancel(ctx))
		fl = &flight{cancel: cancel, done: make(chan struct{})}
		f.m[key] = fl
		go func() {
			fl.res, fl.err = work(run)
			f.mu.Lock()
			if f.m[key] == fl {
				delete(f.m, key)
			}
			f.mu.Unlock()
			cancel()
			close(fl.done)
		}()
	}
	fl.waiting++
	f.mu.Unlock()

	select {
	case <-fl.done:
		return fl.res, fl.err
	case <-ctx.Done():
		f.mu.Lock()
		fl.waiting--
		last := fl.waiting == 0
		f.mu.Unlock()
		if last {
			fl.cancel()
			<-fl.done
		}
		return Result{}, ctx.Err()
	}
}
