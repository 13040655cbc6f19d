package crishim_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/test/lab"
)

// attack is what a hostile container does, and how it must end.
type attack struct {
	name   string
	module string // of wasmruntime/testdata; "" for test/lab/hostile
	args   []string
	change func(*runtimeapi.ContainerConfig)
	// during is done to it while it runs.
	during func(t *testing.T)

	// codes that it may end with by itself; none for one that doesn't end: it is
	// stopped after a while.
	codes []int32
	// reason and says are in the status or, for says, the log.
	reason, says string
}

// contained is how long an attack may go on, and how much longer than its grace a
// container that is stopped. The mark is a second and a tenth of one, met on a quiet
// machine; here other tests run.
const contained, overtime = 5 * time.Second, time.Second

// Attacks end by themselves or can be ended, in time; the status or the log names what
// happened; and a neighbour keeps its pace, and its log.
func TestHostileContainers(t *testing.T) {
	lab.NeedNamespaces(t) // for the small file systems
	n := newNode(t, nil)
	img := n.image(lab.CNCF(lab.Wasm(t, filepath.Join(lab.Root(t), "test/lab/hostile/hostile.c"))))
	small := smallVolume(t)
	withSmall := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: small, ContainerPath: "/data"}}
	}
	memory := func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 32 << 20 }
	port := freePort(t)
	listens := func(c *runtimeapi.ContainerConfig) {
		c.Annotations = map[string]string{crishim.AnnotationListen: fmt.Sprintf("127.0.0.1:%d/tcp", port)}
	}
	b := watchNeighbour(t, n, img)
	for _, a := range []attack{
		{name: "memory", args: []string{"memory"}, change: memory, codes: []int32{7, 137}, says: "memory"},
		{name: "table", module: "table-grow", codes: []int32{0, 134}},
		{name: "recursion", module: "overflow", codes: []int32{134}, reason: "Error", says: "stack overflow"},
		{name: "recursion without end", module: "recursion"},
		{name: "recursion of C", args: []string{"recurse"}, codes: []int32{134}, reason: "Error"},
		{name: "trap", module: "trap", codes: []int32{134}, reason: "Error", says: "unreachable"},
		{name: "descriptors", args: []string{"files", "/data"}, change: withSmall, codes: []int32{8}, reason: "Error", says: "files: "},
		{name: "full disk", args: []string{"fill", "/data"}, change: withSmall, codes: []int32{9}, reason: "Error", says: "fill: No space left"},
		{name: "inodes", args: []string{"inodes", "/data"}, change: withSmall, codes: []int32{12}, reason: "Error", says: "inodes: No space left"},
		{name: "symbolic links", args: []string{"escape", "/data"}, change: withSmall, codes: []int32{10}, says: "escape: "},
		{name: "sockets", args: []string{"sockets"}, change: listens, during: func(t *testing.T) { connect(t, port, 4300) }, codes: []int32{11}, says: "sockets: "},
		{name: "loop", args: []string{"spin"}},
		{name: "loop without a call", module: "loop"},
		{name: "sleep", args: []string{"sleep"}},
		{name: "blocked read", args: []string{"read"}, change: func(c *runtimeapi.ContainerConfig) { c.Stdin = true }},
		{name: "blocked poll", args: []string{"poll"}, change: listens},
		{name: "log lines", args: []string{"flood"}, says: "faster than a megabyte a second"},
		{name: "log without a newline", args: []string{"noeol"}, says: "faster than a megabyte a second"},
		{name: "log byte by byte", args: []string{"stderr"}},
	} {
		t.Run(a.name, func(t *testing.T) {
			n.in(t)
			b.quiet(t)
			a.run(t, n, img)
			b.keptPace(t)
		})
	}
}

func (a *attack) run(t *testing.T, n *node, img string) {
	if a.module != "" {
		m, err := os.ReadFile(filepath.Join(lab.Root(t), "wasmruntime/testdata", a.module+".wasm"))
		if err != nil {
			t.Fatal(err)
		}
		img = n.image(lab.CNCF(m))
	}
	sb, pod := n.sandbox("attack-"+strings.ReplaceAll(a.name, " ", "-"), hostNetwork)
	cfg := containerConfig(img, a.args...)
	cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 2} // as a kubelet's BestEffort
	if a.change != nil {
		a.change(cfg)
	}
	begin := time.Now()
	id := n.start(sb, pod, cfg)
	defer func() { // also after a failure: the next one wants its port
		_, _ = n.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: id})
	}()
	if a.during != nil {
		a.during(t)
		begin = time.Now() // the time until then is the attack's own
	}
	if len(a.codes) == 0 {
		if time.Sleep(time.Second); n.status(id).GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING { // the attack's own time
			t.Fatalf("it ended by itself: %v", n.status(id))
		}
		begin = time.Now()
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begin)
		t.Logf("stopped after %v", took)
		if took > time.Second+overtime {
			t.Errorf("it took %v to stop, a grace of 1 s", took)
		}
	}
	st := n.wait(id)
	took := time.Since(begin)
	t.Logf("ended after %v: code %d, %s, %q", took, st.GetExitCode(), st.GetReason(), st.GetMessage())
	if len(a.codes) == 0 {
		if !strings.Contains(st.GetMessage(), a.says) {
			t.Errorf("message %q doesn't say %q", st.GetMessage(), a.says)
		}
		if c := st.GetExitCode(); c != 137 && c != 143 {
			t.Errorf("exit code %d of one that was stopped", c)
		}
		return
	}
	if took > contained {
		t.Errorf("it went on for %v", took)
	}
	if !slices.Contains(a.codes, st.GetExitCode()) {
		t.Errorf("exit code %d, want one of %v", st.GetExitCode(), a.codes)
	}
	if st.GetExitCode() == 137 && st.GetReason() != "OOMKilled" || a.reason != "" && st.GetReason() != a.reason {
		t.Errorf("reason %s, want %s (OOMKilled for 137)", st.GetReason(), a.reason)
	}
	if said := st.GetMessage() + text(readLog(t, st.GetLogPath())); !strings.Contains(said, a.says) {
		t.Errorf("neither message nor log says %q: %.500s", a.says, said)
	}
}

// smallVolume is a file system of 8 MiB and few files.
func smallVolume(t *testing.T) string {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=500,mode=777", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	return dir
}

// connect opens connections until nobody listens any more, and holds them until the
// test's end.
func connect(t *testing.T, port, most int) {
	// One that finds the queue full is asked again by the kernel after a second.
	d := net.Dialer{Timeout: 5 * time.Second}
	for made := range most {
		c, err := d.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Logf("%d connections: %v", made, err)
			return
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Errorf("%d connections, and there is no end of it", most)
}

// neighbour is a container that says how long sleeps of 10 ms take, in the middle of
// fifty. What it says is in its log, with the time at which it came there.
type neighbour struct {
	log    string
	seen   int // beats that count no more
	before beats
}

type beats struct{ pace, logged time.Duration }

func watchNeighbour(t *testing.T, n *node, img string) *neighbour {
	sb, pod := n.sandbox("neighbour", hostNetwork)
	cfg := containerConfig(img, "beat")
	cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 102} // a tenth of a core
	id := n.start(sb, pod, cfg)
	return &neighbour{log: n.status(id).GetLogPath()}
}

// quiet takes the measure before an attack.
func (b *neighbour) quiet(t *testing.T) {
	paces, _ := b.read(t)
	b.seen += len(paces)
	b.before = b.next(t, 2)
}

// keptPace takes it again: what came since, and one beat more.
func (b *neighbour) keptPace(t *testing.T) {
	now := b.next(t, 1)
	t.Logf("the neighbour's sleeps of 10 ms: %v, before %v; its log is late by %v, before %v", now.pace, b.before.pace, now.logged, b.before.logged)
	// What can't be told from a shared machine's noise isn't held against it.
	if now.pace > 2*b.before.pace && now.pace > 50*time.Millisecond {
		t.Errorf("the neighbour's sleeps of 10 ms take %v, before %v", now.pace, b.before.pace)
	}
	if now.logged > 2*b.before.logged && now.logged > 250*time.Millisecond {
		t.Errorf("the neighbour's log is late by %v, before %v", now.logged, b.before.logged)
	}
}

// next is the median of what came since the last call, when there is more of it.
func (b *neighbour) next(t *testing.T, more int) beats {
	paces, late := b.read(t)
	have := len(paces)
	eventually(t, func() string {
		if paces, late = b.read(t); len(paces) >= have+more {
			return ""
		}
		return "the neighbour says nothing"
	})
	b.seen += len(paces)
	slices.Sort(paces)
	slices.Sort(late)
	return beats{paces[len(paces)/2], late[len(late)/2]}
}

// read gives the beats that aren't seen yet.
func (b *neighbour) read(t *testing.T) (paces, late []time.Duration) {
	raw, err := os.ReadFile(b.log)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(raw)) {
		var stamp string
		var at, pace int64
		if !strings.Contains(line, " beat ") || !strings.HasSuffix(line, "\n") {
			continue // its greeting; one that is being written
		}
		if n++; n <= b.seen {
			continue
		}
		if _, err := fmt.Sscanf(line, "%s stdout F beat %d %d", &stamp, &at, &pace); err != nil {
			t.Fatalf("the neighbour's log has %q: %v", line, err)
		}
		logged, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			t.Fatalf("the neighbour's log has %q: %v", line, err)
		}
		paces, late = append(paces, time.Duration(pace)), append(late, logged.Sub(time.Unix(0, at)))
	}
	return paces, late
}
