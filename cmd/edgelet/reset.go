package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/identity"
	"github.com/coracle-edge/coracle/edgelet/node"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/reset"
	"github.com/coracle-edge/coracle/edgelet/state"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

const resetUsage = `edgelet reset makes this board nobody's: it stops all pods, then removes from the
data folder what the cluster gave and what was made for it (identity, Secrets,
orders, volumes, logs), and says so. Images stay, and the data of volumes of the
class local-path. It refuses while edgelet runs.
Give it --data-dir and what the agent is given to find its containers
(--containerd, --container-runtime-endpoint, --cni-conf-dir ...), and its
--local-volumes-dir.

`

// resetMain is `edgelet reset`.
func resetMain(args []string) error {
	var c reset.Config
	var within time.Duration
	o, err := parse(args, func(fs *flag.FlagSet) {
		fs.BoolVar(&c.Force, "force", false, "remove the node's files also if pods can't be stopped, as when containerd is gone")
		fs.BoolVar(&c.Images, "images", false, "remove images, too")
		fs.BoolVar(&c.Volumes, "volumes", false, "remove the data of volumes of the class local-path, too")
		fs.DurationVar(&within, "within", time.Minute, "how long pods may take to end")
		fs.Usage = func() {
			fmt.Fprint(fs.Output(), resetUsage)
			fs.PrintDefaults()
		}
	})
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.join != "" {
		return errors.New("reset: --join is for the start that comes after it")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	level := slog.LevelError
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	return resetBoard(ctx, o, c, within, log, os.Stdout)
}

func resetBoard(ctx context.Context, o *options, c reset.Config, within time.Duration, log *slog.Logger, out io.Writer) error {
	if _, err := os.Stat(o.dataDir); err != nil {
		return fmt.Errorf("reset: nothing to do: %w", err)
	}
	// Nobody hears any more what happens to this node.
	silent := node.NewRecorder(func(node.Event) error { return nil }, log)
	a := &agent{o: o, log: log, ops: newOperations(), events: silent, forGood: true, wrap: func(s pods.Store) pods.Store { return nothing{s} }}
	var err error
	// It is open to the end, so that no agent starts meanwhile.
	a.state, err = state.Open(filepath.Join(o.dataDir, "state.db"), state.Options{Logger: log})
	if errors.Is(err, state.ErrLocked) {
		return fmt.Errorf("reset: edgelet runs on %s: stop it first (systemctl stop edgelet), or its pods would be started again: %w", o.dataDir, err)
	}
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	was := whoWas(o.dataDir)
	c.Dir, c.VolumesDir, c.Out, c.MountsBelow = o.dataDir, o.localVolumes, out, volumes.MountsBelow
	c.Stop = func(ctx context.Context) ([]string, error) { return a.stopForGood(ctx, within) }
	err = reset.Run(ctx, c)
	if closeErr := a.state.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	if was == nil {
		fmt.Fprintln(out, "This board had not joined a cluster.")
		return nil
	}
	fmt.Fprintf(out, "This board was node %q of the cluster with CA sha256:%s, which still knows that node:\n"+
		"`coracle node revoke %[1]s` there ends its identity, `kubectl delete node %[1]s` its place, and\n"+
		"`coracle token create --replace %[1]s` makes a line for this board or another to take the name.\n", was.NodeName, was.Cluster().ID)
	return nil
}

// whoWas is the identity that is about to go, nil if there is none that can be read.
func whoWas(dataDir string) *identity.Identity {
	id, err := identity.Load(identity.Options{Dir: filepath.Join(dataDir, "identity")})
	if err != nil {
		return nil
	}
	return id
}

// nothing is a state in which no pod is desired, and somebody who knows has said so.
type nothing struct{ pods.Store }

func (nothing) Desired() ([]pods.Object, bool, error) { return nil, true, nil }

// stopForGood ends all pods as the agent would if they were ordered away, their
// hooks excepted, and returns when nothing is left of them.
func (a *agent) stopForGood(ctx context.Context, within time.Duration) (names []string, err error) {
	if _, err := os.Stat(filepath.Join(a.o.dataDir, "crishim")); errors.Is(err, os.ErrNotExist) && a.o.runtimeEndpoint == "" {
		return nil, a.unmountAll() // no container was ever made
	}
	if a.name = a.o.nodeName; a.name == "" {
		a.name = "reset"
	}
	closeRuntime, err := a.openRuntime(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeRuntime()) }()
	if a.shim != nil && a.shim.Forgotten() > 0 {
		return nil, fmt.Errorf("%d pods ran with OCI containers: give --containerd, so that they can be stopped", a.shim.Forgotten())
	}
	if err := errors.Join(a.buildDevices(), a.buildNode(), a.buildPods()); err != nil {
		return nil, err
	}
	if names, err = a.running(ctx); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- a.pods.Run(run) }()
	a.pods.SetStatic(nil)
	err = a.awaitNone(ctx, within)
	cancel()
	if runErr := <-done; err == nil {
		err = runErr
	}
	if err == nil {
		err = a.unmountAll()
	}
	return names, err
}

// running names the pods that the runtime has.
func (a *agent) running(ctx context.Context) ([]string, error) {
	list, err := a.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing what runs: %w", err)
	}
	var out []string
	for _, s := range list.Items {
		if s.Metadata.GetUid() != "" {
			out = append(out, s.Metadata.Namespace+"/"+s.Metadata.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func (a *agent) awaitNone(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		left, err := a.running(ctx)
		if err == nil && len(left) == 0 && len(a.pods.Pods()) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("after %s still there: %s; give them more time by --within", within, strings.Join(left, ", "))
			}
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// unmountAll unmounts the volumes of pods of which nothing else is left.
func (a *agent) unmountAll() error {
	vols := volumes.New(volumes.Config{Dir: a.podsDir(), DevicesDir: a.devicesDir(), Log: a.log})
	errs := []error{a.abandonCSI(), hideLogs(filepath.Join(a.o.dataDir, podLogsDir), shownLogs())}
	entries, err := os.ReadDir(vols.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(append(errs, err)...)
	}
	for _, e := range entries {
		errs = append(errs, vols.Unmount(e.Name()))
	}
	return errors.Join(append(errs, a.unbindPods())...)
}
