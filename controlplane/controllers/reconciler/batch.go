package reconciler

import (
	"fmt"
	"runtime/debug"
	"sync"
)

// SlowStart calls do for 0 to n-1 in batches that start with one call and double as long as all calls of a batch
// succeed; calls of a batch run side by side. So a hundred pods that will all be refused by the same quota cost one
// refused request and one event. After a batch with a failure no further one is started.
// It returns how many calls were made, how many of them succeeded, and the first error.
func SlowStart(n int, do func(i int) error) (made, ok int, err error) {
	for size := min(n, 1); size > 0; size = min(2*size, n-made) {
		errs := parallel(size, func(i int) error { return do(made + i) })
		made += size
		ok += size - len(errs)
		if len(errs) > 0 {
			return made, ok, errs[0]
		}
	}
	return made, ok, nil
}

// width is how many requests of one batch run at the same time. All of them go to one API server in the same process.
const width = 16

// Parallel calls do for 0 to n-1, several at a time, and returns the errors.
func Parallel(n int, do func(i int) error) []error { return parallel(n, do) }

func parallel(n int, call func(i int) error) []error {
	do := func(i int) (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%w: %v\n%s", ErrPanic, p, debug.Stack())
			}
		}()
		return call(i)
	}
	if n == 1 {
		if err := do(0); err != nil {
			return []error{err}
		}
		return nil
	}
	var (
		mu   sync.Mutex
		errs []error
		wg   sync.WaitGroup
		slot = make(chan struct{}, width)
	)
	for i := range n {
		slot <- struct{}{}
		wg.Go(func() {
			defer func() { <-slot }()
			if err := do(i); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errs
}
