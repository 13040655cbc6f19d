package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

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
	rt, forget, err := o.runtime(spec.Digest)
	if err != nil {
		return 0, err
	}
	defer forget()
	if spec.Dir, err = os.MkdirTemp("", "coracle-wasm-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(spec.Dir)

	// From here on they are the guest's. While it is compiled they end that.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	if err := rt.Compile(ctx, spec.Module, spec.Digest); ctx.Err() != nil {
		select {
		case sig := <-signals:
			return 128 + int(sig.(syscall.Signal)), nil
		case <-time.After(time.Second): // it came before there was anything here to take it
			return 128 + int(syscall.SIGINT), nil
		}
	} else if err != nil {
		return 0, err
	}
	// What comes meanwhile waits: the guest may run before Start returns.
	p, err := rt.Start(context.WithoutCancel(ctx), spec)
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
	if spec.Digest, err = digest(o.file); err != nil {
		return spec, fmt.Errorf("module: %w", err)
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

// digest names the module's bytes, as the cache of compiled code does.
func digest(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// setUser has a guest that root starts be who owns what it works on.
func (o *wasmRun) setUser(spec *wasmruntime.Spec) (err error) {
	switch {
	case os.Geteuid() != 0 && o.user != "":
		return fmt.Errorf("--user %s: only root can start a guest as somebody else", o.user)
	case o.user != "":
		spec.UID, spec.GID, err = parseUser(o.user)
	case os.Geteuid() == 0 && !mayBecomeOthers():
		spec.UID, spec.GID = 0, uint32(os.Getegid())
	case len(spec.Mounts) > 0:
		var st syscall.Stat_t
		if err = syscall.Stat(spec.Mounts[0].Host, &st); err == nil {
			spec.UID, spec.GID = st.Uid, st.Gid
		}
	}
	spec.AllowRoot = true
	return err
}

// runtime is one for the module with that digest; forget is for when it ended.
func (o *wasmRun) runtime(digest string) (rt *wasmruntime.Runtime, forget func(), err error) {
	runner, err := o.findRunner()
	if err != nil {
		return nil, nil, err
	}
	dir, kept, err := o.cacheFolder()
	if err != nil {
		return nil, nil, fmt.Errorf("wasm code cache: %w (--cache-dir names another)", err)
	}
	forget = func() {
		if !kept {
			// Entries are read-only: who makes them knows how to remove them.
			if err := errors.Join(rt.Forget(digest), os.RemoveAll(dir)); err != nil {
				fmt.Fprintln(os.Stderr, "coracle: remove the compiled code:", err)
			}
		}
	}
	if rt, err = wasmruntime.New(wasmruntime.Options{RunnerPath: runner, CacheDir: dir}); err != nil {
		if !kept {
			os.RemoveAll(dir)
		}
		return nil, nil, fmt.Errorf("%w (--cache-dir and --runner name others)", err)
	}
	return rt, forget, nil
}

// cacheFolder is where compiled code is kept. A user who has no cache folder,
// as in many a build's environment, or can't write to it, has one for this run.
func (o *wasmRun) cacheFolder() (dir string, kept bool, err error) {
	if o.cacheDir != "" {
		return o.cacheDir, true, nil
	}
	if user, err := os.UserCacheDir(); err == nil {
		dir = filepath.Join(user, "coracle", "wasm")
		if os.MkdirAll(dir, 0o700) == nil && unix.Access(dir, unix.W_OK|unix.X_OK) == nil {
			return dir, true, nil
		}
	}
	dir, err = os.MkdirTemp("", "coracle-wasm-cache-")
	return dir, false, err
}

// mayBecomeOthers is false for a root from whom a container took the
// capabilities; its guests are who it is.
func mayBecomeOthers() bool {
	var sets [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0])
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return err == nil && sets[0].Effective&need == need
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
