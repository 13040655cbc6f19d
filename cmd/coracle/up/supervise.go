package up

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-edge/coracle/cmd/coracle/registry"
	"github.com/coracle-edge/coracle/crishim/oci"
)

// Options are what the operator may choose.
type Options struct {
	DataDir string // where everything is kept
	BinDir  string // where controlplane, edgelet and wasmrunner lie
	Nodes   int    // how many nodes, at least one
	// RegistryAddress is where the registry listens; if it is taken, any port.
	RegistryAddress string
	// Isolate says whether nodes get namespaces of their own.
	Isolate Isolate
	// NoOutbound: isolated nodes reach this machine and nothing beyond it.
	NoOutbound bool
	// Containerd is the program, and CNIBinDir the folder of plugins, that nodes
	// use; empty: those found.
	Containerd, CNIBinDir string
	// RegistryMirror is the URL of a registry from which nodes pull every image,
	// and RegistryHosts a registry hosts directory that they follow; both may be
	// empty.
	RegistryMirror, RegistryHosts string
	// ControlPlaneArgs and NodeArgs are added to the processes' own.
	ControlPlaneArgs, NodeArgs []string
	Logger                     *slog.Logger
	// Notice receives lines for the operator, such as what is missing here.
	Notice io.Writer
}

// ErrAlreadyUp is returned when another `coracle up` runs from the data folder.
var ErrAlreadyUp = errors.New("a cluster is already running")

const (
	readyTimeout = 60 * time.Second
	// stopGrace is how long a process may take from SIGTERM to its end. The
	// control plane closes etcd; an edgelet stops its pods, and says itself how
	// long that may take.
	stopGrace = time.Minute
)

// endpoints is what the control plane writes when it is ready.
type endpoints struct {
	API   string `json:"api"`
	MQTT  string `json:"mqtt"`
	Fleet string `json:"fleet"`
	PID   int    `json:"pid"`
}

// Supervise runs the cluster until ctx ends. ready is called once, when the
// control plane answers and every node was started.
func Supervise(ctx context.Context, o Options, ready func(State) error) error {
	l := Layout{Root: o.DataDir}
	if err := os.MkdirAll(l.Root, 0o755); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	lock, err := takeLock(l)
	if err != nil {
		return err
	}
	defer lock.Close()
	left, err := stopLeftovers(l, stopGrace)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		fmt.Fprintf(o.Notice, "stopped what an earlier run had left behind: %s\n", strings.Join(left, ", "))
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	start := func(run func(context.Context) error) {
		running.Go(func() {
			if err := run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	// Nodes stop before the control plane does, so that their last reports arrive.
	planeCtx, stopPlane := context.WithCancel(context.WithoutCancel(ctx))
	var plane sync.WaitGroup
	defer func() {
		running.Wait()
		stopPlane()
		plane.Wait()
		_ = os.Remove(l.state())
	}()

	lan, err := openLAN(o)
	if err != nil {
		cancel(err)
		return err
	}
	if lan != nil {
		defer func() {
			running.Wait()
			stopPlane()
			plane.Wait()
			if err := errors.Join(lan.down(), l.removeCgroups()); err != nil {
				o.Logger.Warn("something of the boards' network stays", "err", err)
			}
		}()
	}
	reg := &registry.Registry{Dir: l.Registry()}
	if lan != nil {
		reg.Addresses = []net.IP{lan.host().AsSlice()}
	}
	regListener, err := reg.Listen(o.RegistryAddress)
	if err != nil {
		cancel(err)
		return err
	}
	start(func(ctx context.Context) error { return reg.Serve(ctx, regListener) })
	nodeHosts, err := nodeRegistries(o, reg, regListener, lan, start)
	if err != nil {
		cancel(err)
		return err
	}

	info := filepath.Join(l.ControlPlane(), "run", "controlplane.json")
	if err := os.Remove(info); err != nil && !errors.Is(err, os.ErrNotExist) {
		cancel(err)
		return err
	}
	cp := &process{name: "controlplane", layout: l, log: o.Logger, grace: stopGrace,
		args: func(context.Context) ([]string, error) {
			args := []string{filepath.Join(o.BinDir, "controlplane"), "--data-dir", l.ControlPlane(), "--port-fallback"}
			if lan != nil {
				host := lan.host().String()
				args = append(args, "--bind-address", host, "--advertise-address", host)
			}
			return append(args, o.ControlPlaneArgs...), nil
		}}
	plane.Go(func() { _ = cp.run(planeCtx) })
	ep, err := waitForEndpoints(ctx, info, l.Log("controlplane"))
	if err == nil {
		err = linkFile(filepath.Join("controlplane", "kubeconfig"), l.Kubeconfig())
	}
	if err != nil {
		cancel(err)
		return err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig())
	if err != nil {
		cancel(err)
		return err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		cancel(err)
		return err
	}

	state := State{PID: os.Getpid(), API: ep.API, HostsDir: reg.HostsDir(), Moved: moved(o, ep, regListener.Addr().String())}
	for i := 1; i <= max(1, o.Nodes); i++ {
		n := &node{name: fmt.Sprintf("board-%d", i), number: i, layout: l, options: o, client: client, hostsDir: nodeHosts, lan: lan}
		state.Nodes = append(state.Nodes, n.name)
		start(n.run)
	}
	if err := l.writeState(state); err != nil {
		cancel(err)
		return err
	}
	if err := ready(state); err != nil {
		cancel(err)
		return err
	}
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// moved says which addresses aren't the usual ones, because those were taken.
func moved(o Options, ep endpoints, registryAddress string) []string {
	var out []string
	usual := func(what, port, address string) {
		if u, err := url.Parse(address); err == nil && u.Port() != "" && u.Port() != port {
			out = append(out, fmt.Sprintf("port %s was taken: %s is at %s", port, what, address))
		}
	}
	if len(o.ControlPlaneArgs) == 0 { // the operator's own choice needs no word
		usual("the API", "6443", ep.API)
		usual("the fleet endpoint", "6444", ep.Fleet)
		usual("the MQTT broker", "8883", ep.MQTT)
	}
	if _, port, err := net.SplitHostPort(o.RegistryAddress); err == nil && port != "0" {
		usual("the registry (still called "+registry.Name+" by nodes and `coracle image push`)", port, "https://"+registryAddress)
	}
	return out
}

// takeLock holds the data folder for as long as the returned file is open.
func takeLock(l Layout) (*os.File, error) {
	f, err := os.OpenFile(l.lock(), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", l.lock(), err)
		}
		who := ""
		if s, err := l.ReadState(); err == nil {
			who = fmt.Sprintf(" (pid %d, %s)", s.PID, s.API)
		}
		return nil, fmt.Errorf("%w from %s%s; `coracle down --data-dir %s` stops it", ErrAlreadyUp, l.Root, who, l.Root)
	}
	return f, nil
}

func waitForEndpoints(ctx context.Context, file, log string) (endpoints, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		var ep endpoints
		if raw, err := os.ReadFile(file); err == nil && json.Unmarshal(raw, &ep) == nil && ep.API != "" {
			return ep, nil
		}
		select {
		case <-ctx.Done():
			return ep, fmt.Errorf("the control plane was not ready after %s: %w\n%s", readyTimeout, context.Cause(ctx), tail(log, 15))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tail returns the last lines of a log, to be shown with an error.
func tail(file string, lines int) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return fmt.Sprintf("the end of %s:\n%s", file, strings.Join(all, "\n"))
}

// linkFile makes link point to a file beside it: the control plane writes its
// kubeconfig again when certificates are renewed.
func linkFile(to, link string) error {
	tmp := link + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(to, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, link)
}

// Down stops the cluster that runs from the data folder, and whatever a killed
// one has left. It returns once everything has ended.
func Down(dataDir string, out io.Writer) error {
	l := Layout{Root: dataDir}
	s, err := l.ReadState()
	if err == nil {
		since := startTime(s.PID)
		if since != "" {
			// The supervisor waits for its own processes, each with a grace.
			err = stopPID(s.PID, since, 2*stopGrace)
		}
	} else if errors.Is(err, ErrNotUp) {
		err = nil
	}
	if err != nil {
		return err
	}
	left, err := stopLeftovers(l, stopGrace)
	if err != nil {
		return err
	}
	nodes, err := l.nodes()
	if err != nil {
		return err
	}
	for _, node := range nodes {
		if err := oci.RemoveNetwork(privateContainerd(l, node)); err != nil {
			return err
		}
	}
	if err := (&lan{layout: l, device: lanDevice(l)}).down(); err != nil {
		return err
	}
	if err := l.removeCgroups(); err != nil {
		return err
	}
	if s.PID == 0 && len(left) == 0 {
		fmt.Fprintf(out, "No cluster is running from %s.\n", l.Root)
		return nil
	}
	_ = os.Remove(l.state())
	fmt.Fprintf(out, "Stopped. The data is in %s; `coracle up` finds the same cluster again, removing the folder ends it.\n", l.Root)
	return nil
}
