package fdwatch

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pipes are n of them, closed at the end.
func pipes(t *testing.T, n int) (r, w []int) {
	t.Helper()
	for range n {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		r, w = append(r, p[0]), append(w, p[1])
		t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	}
	return r, w
}

func await(t *testing.T, from <-chan int, want int) {
	t.Helper()
	select {
	case got := <-from:
		if got != want {
			t.Fatalf("%d is ready, want %d", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("%d is never ready", want)
	}
}

func TestOneGoroutineTellsOfAll(t *testing.T) {
	const n = 100
	r, w := pipes(t, n)
	before := runtime.NumGoroutine()
	var watcher Watcher
	ready := make(chan int, n)
	var watches []Watch
	for i := range n {
		h, err := watcher.Add(r[i], func() { ready <- i })
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, h)
	}
	if got := runtime.NumGoroutine() - before; got > 1 {
		t.Errorf("%d goroutines", got)
	}
	for i := n - 1; i >= 0; i-- {
		if _, err := unix.Write(w[i], []byte("x")); err != nil {
			t.Fatal(err)
		}
		await(t, ready, i)
	}
	// Nothing was read: only more wakes.
	if _, err := unix.Write(w[7], []byte("x")); err != nil {
		t.Fatal(err)
	}
	await(t, ready, 7)
	for _, h := range watches {
		h.Remove()
		h.Remove()
	}
	for end := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the goroutine stays when nothing is watched")
		}
	}
	// And begins again; what is there already counts.
	h, err := watcher.Add(r[3], func() { ready <- 3 })
	if err != nil {
		t.Fatal(err)
	}
	await(t, ready, 3)
	h.Remove()
}

func TestWhatIsRemovedIsNotTold(t *testing.T) {
	r, w := pipes(t, 2)
	var watcher Watcher
	ready := make(chan int, 2)
	first, err := watcher.Add(r[0], func() { ready <- 0 })
	if err != nil {
		t.Fatal(err)
	}
	second, err := watcher.Add(r[1], func() { ready <- 1 })
	if err != nil {
		t.Fatal(err)
	}
	defer second.Remove()
	first.Remove()
	for _, fd := range w {
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	await(t, ready, 1)
	if len(ready) != 0 {
		t.Error("told of what isn't watched any more")
	}
}

// Whoever removes the last watch may hold what a call that has begun waits for.
func TestRemoveWaitsForNoCall(t *testing.T) {
	r, w := pipes(t, 1)
	var watcher Watcher
	began, goOn := make(chan int, 1), make(chan struct{})
	h, err := watcher.Add(r[0], func() { began <- 0; <-goOn })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(w[0], []byte("x")); err != nil {
		t.Fatal(err)
	}
	await(t, began, 0)
	removed := make(chan int, 1)
	go func() { h.Remove(); removed <- 0 }()
	await(t, removed, 0)
	close(goOn)
}

func TestAFileThatCannotBeWatchedIsRefused(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := runtime.NumGoroutine()
	var watcher Watcher
	if _, err := watcher.Add(int(f.Fd()), func() {}); err == nil {
		t.Fatal("epoll takes a regular file?")
	}
	for end := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a goroutine watches nothing")
		}
	}
	Watch{}.Remove()
}
