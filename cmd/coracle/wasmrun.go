package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// wasmRun is one `coracle wasm run`.
type wasmRun struct {
	file              string
	args              []string
	dirs, env, listen []string
	dns               []string
	user              string
	cacheDir, runner  string
	notifyTerm        bool
	sockets           bool
}

// run starts the guest, hands signals on to it and gives its exit code.
func (o *wasmRun) run(ctx context.Context) (int, error) {
	spec, err := o.spec()
	if err != nil {
		return 0, err
	}
	rt, err := o.runtime()
	if err != nil {
		return 0, err
	}
	if spec.Dir, err = os.MkdirTemp("", "coracle-wasm-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(spec.Dir)

	// From here on they are the guest's. While it isn't there yet, the
	// context ends compiling and starting.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	p, err := rt.Start(ctx, spec)
	if errors.Is(err, wasmruntime.ErrOutbound) {
		return 0, fmt.Errorf("%w; --sockets allows them", err)
	}
	if err != nil {
		return 0, err
	}
	for {
		select {
		case sig := <-signals:
			if err := p.Signal(sig.(syscall.Signal)); err != nil && !errors.Is(err, wasmruntime.ErrExited) {
				fmt.Fprintf(os.Stderr, "coracle: hand %v on to the guest: %v\n", sig, err)
			}
		case <-p.Done():
			st, _ := p.ExitStatus()
			if st.Reason == wasmruntime.ReasonOOMKilled {
				fmt.Fprintln(os.Stderr, "coracle:", st.Message)
			}
			return st.Code, p.Delete(context.WithoutCancel(ctx))
		}
	}
}

func (o *wasmRun) spec() (wasmruntime.Spec, error) {
	spec := wasmruntime.Spec{InheritStdio: true, DieWithStarter: true, NotifyTerm: o.notifyTerm}
	info, err := os.Stat(o.file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return spec, fmt.Errorf("module %s: there is no such file", o.file)
	case err != nil:
		return spec, fmt.Errorf("module: %w", err)
	case !info.Mode().IsRegular():
		return spec, fmt.Errorf("module %s: it isn't a regular file", o.file)
	}
	if spec.Module, err = filepath.Abs(o.file); err != nil {
		return spec, err
	}
	spec.ID = filepath.Base(o.file)
	spec.Args = append([]string{spec.ID}, o.args...)
	for _, text := range o.dirs {
		m, err := parseDir(text)
		if err != nil {
			return spec, err
		}
		spec.Mounts = append(spec.Mounts, m)
	}
	for _, text := range o.env {
		kv, err := parseEnv(text)
		if err != nil {
			return spec, err
		}
		spec.Env = append(spec.Env, kv)
	}
	if o.sockets {
		spec.Outbound = &wasmruntime.Outbound{Servers: o.dns, ResolvConf: "/etc/resolv.conf", Hosts: "/etc/hosts"}
	}
	for _, text := range o.listen {
		l, err := parseListen(text)
		if err != nil {
			return spec, err
		}
		spec.Listen = append(spec.Listen, l)
	}
	return spec, o.setUser(&spec)
}

// setUser has a guest that root starts be who owns what it works on.
func (o *wasmRun) setUser(spec *wasmruntime.Spec) (err error) {
	switch {
	case os.Geteuid() != 0 && o.user != "":
		return fmt.Errorf("--user %s: only root can start a guest as somebody else", o.user)
	case o.user != "":
		spec.UID, spec.GID, err = parseUser(o.user)
	case len(spec.Mounts) > 0:
		var st syscall.Stat_t
		if err = syscall.Stat(spec.Mounts[0].Host, &st); err == nil {
			spec.UID, spec.GID = st.Uid, st.Gid
		}
	}
	spec.AllowRoot = true
	return err
}

func (o *wasmRun) runtime() (*wasmruntime.Runtime, error) {
	runner, err := o.findRunner()
	if err != nil {
		return nil, err
	}
	dir := o.cacheDir
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("%w: say with --cache-dir where compiled code may be kept", err)
		}
		dir = filepath.Join(cache, "coracle", "wasm")
	}
	rt, err := wasmruntime.New(wasmruntime.Options{RunnerPath: runner, CacheDir: dir})
	if err != nil {
		return nil, fmt.Errorf("%w (--cache-dir and --runner name others)", err)
	}
	return rt, nil
}

func (o *wasmRun) findRunner() (string, error) {
	if o.runner != "" {
		return o.runner, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(exe), "wasmrunner")
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath("wasmrunner")
	if err != nil {
		return "", fmt.Errorf("there is no wasmrunner, neither as %s nor in PATH; --runner says where it is", beside)
	}
	return path, nil
}
