package wasmruntime_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// starterEnv makes TestStarter the program of a starter that dies.
const starterEnv = "WASMRUNTIME_TEST_STARTER"

// TestStarter isn't a test: it starts a guest and waits to be killed.
func TestStarter(t *testing.T) {
	args := strings.Split(os.Getenv(starterEnv), "|")
	if len(args) != 4 {
		t.Skip("it is run by TestGuestOutlivesItsStarter")
	}
	rt, err := wasmruntime.New(wasmruntime.Options{RunnerPath: args[0], CacheDir: args[1]})
	if err != nil {
		t.Fatal(err)
	}
	spec := wasmruntime.Spec{Dir: args[2], ID: "outlives", Module: args[3], Stdin: true, Env: []string{"EXIT=7"}}
	if _, err := rt.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	fmt.Println("STARTED")
	time.Sleep(time.Minute)
}

// startAndDie starts a guest from a process that is then killed.
func startAndDie(t *testing.T, cacheDir, wasm string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestStarter$", "-test.v")
	cmd.Env = append(os.Environ(), "WASMRUNNER="+runnerPath, starterEnv+"="+strings.Join([]string{runnerPath, cacheDir, dir, wasm}, "|"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	b := make([]byte, 256)
	for !strings.Contains(said.String(), "STARTED") {
		n, err := out.Read(b)
		said.Write(b[:n])
		if err != nil {
			t.Fatalf("the starter said %q and ended", said.String())
		}
	}
	cmd.Process.Kill()
	io.Copy(io.Discard, out)
	cmd.Wait()
	return dir
}

func TestGuestOutlivesItsStarter(t *testing.T) {
	var cacheDir string
	rt := newRuntime(t, func(o *wasmruntime.Options) { cacheDir = o.CacheDir })
	t.Run("it still runs, and what it says is heard", func(t *testing.T) {
		p, err := rt.Attach(startAndDie(t, cacheDir, module("stdin")))
		if err != nil {
			t.Fatal(err)
		}
		g := collect(t, p)
		in, err := os.OpenFile(g.StdinPath(), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		in.WriteString("are you there?\n")
		g.says("are you there?\n")
		if st, err := g.Stop(t.Context(), time.Second); err != nil || st.Code != 143 || st.Reason != wasmruntime.ReasonError {
			t.Errorf("stop: %+v, %v", st, err)
		}
	})
	t.Run("it ended meanwhile", func(t *testing.T) {
		dir := startAndDie(t, cacheDir, module("hello"))
		time.Sleep(200 * time.Millisecond)
		p, err := rt.Attach(dir)
		if err != nil {
			t.Fatal(err)
		}
		g := collect(t, p)
		if st := g.end(); st.Code != 7 || !strings.Contains(g.stdout.String(), "arg hello.wasm") {
			t.Errorf("%+v, stdout %q", st, g.stdout.String())
		}
	})
	t.Run("it was killed meanwhile, by whom nobody knows", func(t *testing.T) {
		dir := startAndDie(t, cacheDir, module("sleep"))
		first, err := rt.Attach(dir) // for its number
		if err != nil {
			t.Fatal(err)
		}
		syscall.Kill(first.PID(), syscall.SIGKILL)
		st, err := first.Wait(t.Context())
		// Kernels since 6.15 tell how a stranger ended.
		if err != nil || st.Code != 137 && st.Reason != wasmruntime.ReasonUnknown {
			t.Errorf("%+v, %v", st, err)
		}
		t.Logf("%+v", st)
		second, err := rt.Attach(dir)
		if err != nil {
			t.Fatal(err)
		}
		if again, ok := second.ExitStatus(); !ok || again.Code != st.Code {
			t.Errorf("the next one hears %+v, %v", again, ok)
		}
	})
	t.Run("another boot", func(t *testing.T) {
		dir := startAndDie(t, cacheDir, module("sleep"))
		p, err := rt.Attach(dir)
		if err != nil {
			t.Fatal(err)
		}
		collect(t, p)
		other := t.TempDir()
		for _, f := range []string{"spec.json", "state.json"} {
			b, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(b), `"bootID":"`, `"bootID":"0`, 1)
			write(t, filepath.Join(other, f), text)
		}
		gone, err := rt.Attach(other)
		if err != nil {
			t.Fatal(err)
		}
		if st, ok := gone.ExitStatus(); !ok || st.Reason != wasmruntime.ReasonUnknown || st.MonotonicNS != 0 {
			t.Errorf("a guest of another boot: %+v, %v", st, ok)
		}
	})
}

// A guest that floods its output without a reader stands still, uses no
// memory for it, and can be stopped.
func TestFloodWithoutReader(t *testing.T) {
	rt := newRuntime(t, nil)
	p, err := rt.Start(t.Context(), wasmruntime.Spec{Dir: t.TempDir(), ID: "flood", Module: module("flood")})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Delete(context.Background())
	time.Sleep(100 * time.Millisecond)
	before := cpu(t, p.PID())
	time.Sleep(500 * time.Millisecond)
	if used := cpu(t, p.PID()) - before; used > 20*time.Millisecond {
		t.Errorf("it used %v of CPU while nobody read", used)
	}
	began := time.Now()
	if st, err := p.Stop(t.Context(), 5*time.Second); err != nil || st.Code != 143 || time.Since(began) > 100*time.Millisecond {
		t.Errorf("stop: %+v, %v after %v", st, err, time.Since(began))
	}
}
