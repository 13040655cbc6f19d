package wasmruntime_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime"
)

func example(path string) string {
	abs, err := filepath.Abs(filepath.Join("..", "examples", path))
	if err != nil {
		panic(err)
	}
	return abs
}

// freePort is one that was free a moment ago.
func freePort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// cpu is what a process used.
func cpu(t *testing.T, pid int) time.Duration {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	sys, _ := strconv.Atoi(f[12])
	return time.Duration(user+sys) * 10 * time.Millisecond
}

func TestHTTPServerOnItsListeningSocket(t *testing.T) {
	addr := freePort(t)
	dir := openDir(t) // preopens come after the sockets
	g := start(t, newRuntime(t, nil), wasmruntime.Spec{
		Module: example("http/http.wasm"), Env: []string{"POD_NAME=p1"},
		Listen: []wasmruntime.Listen{{Network: "tcp", Address: addr}},
		Mounts: []wasmruntime.Mount{{Host: dir, Guest: "/data"}},
	})
	g.says("listening")
	for i := 1; i <= 3; i++ {
		r, err := http.Get("http://" + addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if want := fmt.Sprintf("Hello from WebAssembly over HTTP, request %d of p1\n", i); string(body) != want {
			t.Errorf("body %q, want %q", body, want)
		}
	}
	// With a real poll an idle server, one connection open, does nothing.
	before := cpu(t, g.PID())
	time.Sleep(2 * time.Second)
	if used := cpu(t, g.PID()) - before; used > 20*time.Millisecond {
		t.Errorf("idle for 2 s it used %v of CPU", used)
	}
	if _, err := http.Get("http://" + addr + "/crash"); err == nil {
		t.Error("the crash was answered")
	}
	if st := g.end(); st.Code != 134 || !strings.Contains(st.Message, "http.wasm") || !strings.Contains(st.Message, "unreachable") {
		t.Errorf("after the crash: %+v", st)
	}
}

// The socket is opened inside the pod's network namespace.
func TestListenInNetworkNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	holder := exec.Command("unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec sleep 60")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Skipf("unshare: %v", err)
	}
	defer func() { holder.Process.Kill(); holder.Wait() }()
	if b := make([]byte, 3); true {
		if _, err := io.ReadFull(out, b); err != nil {
			t.Skipf("no network namespace here: %v", err)
		}
	}
	g := start(t, newRuntime(t, nil), wasmruntime.Spec{
		Module: example("http/http.wasm"), NetNS: fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid),
		Listen: []wasmruntime.Listen{{Network: "tcp", Address: "0.0.0.0:80"}},
	})
	g.says("listening")
	inside := "printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' | nc -w 2 127.0.0.1 80"
	if _, err := exec.LookPath("nc"); err != nil {
		inside = "exec 3<>/dev/tcp/127.0.0.1/80; printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
	}
	answer, err := exec.Command("nsenter", "-t", strconv.Itoa(holder.Process.Pid), "-n", "bash", "-c", inside).CombinedOutput()
	if err != nil || !strings.Contains(string(answer), "200 OK") {
		t.Errorf("from inside the namespace: %q, %v", answer, err)
	}
	if c, err := net.DialTimeout("tcp", "127.0.0.1:80", time.Second); err == nil {
		c.Close()
		t.Error("port 80 can be reached from outside of the namespace")
	}
}

func TestListenErrorsNameTheSocket(t *testing.T) {
	rt := newRuntime(t, nil)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		l    wasmruntime.Listen
		want string
	}{
		{wasmruntime.Listen{Network: "tcp", Address: taken.Addr().String()}, "address already in use"},
		{wasmruntime.Listen{Network: "udp", Address: "127.0.0.1:53"}, "no sockets for udp"},
		{wasmruntime.Listen{Network: "tcp", Address: "everywhere"}, "everywhere"},
	} {
		_, err := rt.Start(t.Context(), wasmruntime.Spec{Dir: t.TempDir(), Module: module("sleep"), Listen: []wasmruntime.Listen{c.l}})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.l.Address) {
			t.Errorf("%+v: %v, want %q", c.l, err, c.want)
		}
	}
}

// buildGo builds the main.go in dir for wasip1.
func buildGo(t *testing.T, dir string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("no Go tool: %v", err)
	}
	wasm := filepath.Join(t.TempDir(), "main.wasm")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", wasm, "main.go")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return wasm
}

// Go's network poller needs a non-blocking listener, and a poll_oneoff that
// waits.
func TestGoHTTPServer(t *testing.T) {
	addr := freePort(t)
	g := start(t, newRuntime(t, nil), wasmruntime.Spec{
		Module: buildGo(t, "testdata/gohttp"), Listen: []wasmruntime.Listen{{Network: "tcp", Address: addr}},
	})
	g.says("listening")
	for range 3 {
		r, err := http.Get("http://" + addr + "/you")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if string(body) != "Go says hello to /you\n" {
			t.Errorf("body %q", body)
		}
	}
	before := cpu(t, g.PID())
	time.Sleep(2 * time.Second)
	used := cpu(t, g.PID()) - before
	t.Logf("idle for 2 s: %v of CPU", used)
	if used > 40*time.Millisecond {
		t.Errorf("idle for 2 s it used %v of CPU", used)
	}
}

func TestGoProgramReadsItsConfiguration(t *testing.T) {
	wasm := buildGo(t, example("config"))
	// As a kubelet makes a ConfigMap volume.
	dir := openDir(t)
	os.Mkdir(filepath.Join(dir, "..2026"), 0o755)
	write(t, filepath.Join(dir, "..2026", "colour"), "blue")
	os.Symlink("..2026", filepath.Join(dir, "..data"))
	os.Symlink("..data/colour", filepath.Join(dir, "colour"))
	g := start(t, newRuntime(t, nil), wasmruntime.Spec{
		Module: wasm, Env: []string{"APP_MODE=production"},
		Mounts: []wasmruntime.Mount{{Host: dir, Guest: "/config", ReadOnly: true}},
	})
	g.says("env APP_MODE=production\nfile colour = blue\n")
	p, d := pss(t, g.PID())
	t.Logf("a Go guest: %d KiB PSS, %d private and dirty", p, d)
}

func TestCPython(t *testing.T) {
	wasm := example("python/python.wasm")
	if _, err := os.Stat(wasm); err != nil {
		t.Skip("no python.wasm: run examples/build.sh python, which fetches it from npm")
	}
	rt := newRuntime(t, nil)
	began := time.Now()
	if err := rt.Compile(t.Context(), wasm, ""); err != nil {
		t.Fatal(err)
	}
	t.Logf("compiled in %v", time.Since(began))
	dir := openDir(t)
	write(t, filepath.Join(dir, "main.py"), `
import json, os, re, sys, hashlib, decimal, time
print(json.dumps({"argv": sys.argv, "env": os.environ["K"], "files": os.listdir("/script")}))
print(re.sub(r"(\w+) (\w+)", r"\2 \1", "world hello"), hashlib.sha256(b"x").hexdigest()[:8], decimal.Decimal(1) / 3)
try:
    open("/script/new", "w")
except OSError as e:
    print("read-only:", e.strerror)
time.sleep(0.01)
sys.exit(5)
`)
	began = time.Now()
	g := start(t, rt, wasmruntime.Spec{
		Module: wasm, Args: []string{"python", "/script/main.py", "arg"}, Env: []string{"K=V"},
		Mounts: []wasmruntime.Mount{{Host: dir, Guest: "/script", ReadOnly: true}},
	})
	t.Logf("started in %v", time.Since(began))
	st := g.end()
	t.Logf("ran in %v", time.Since(began))
	want := `{"argv": ["/script/main.py", "arg"], "env": "V", "files": ["main.py"]}
hello world 2d711642 0.3333333333333333333333333333
read-only: Read-only file system
`
	if st.Code != 5 || g.stdout.String() != want {
		t.Errorf("%+v\n%s\n%s", st, g.stdout.String(), g.stderr.String())
	}
}
