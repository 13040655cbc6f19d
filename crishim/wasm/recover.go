package wasm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// recover makes memory agree with what is on disk and in the kernel. Nobody
// is told: whoever listens lists first.
func (m *Manager) recover(ctx context.Context) error {
	if err := m.recoverSandboxes(ctx); err != nil {
		return err
	}
	if err := m.recoverContainers(ctx); err != nil {
		return err
	}
	m.sweepNetNS()
	return nil
}

func (m *Manager) recoverSandboxes(ctx context.Context) error {
	entries, err := os.ReadDir(m.sandboxDir(""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := m.sandboxDir(e.Name())
		s := &sandbox{id: e.Name()}
		err := readRecord(path, &s.rec)
		var cfg *runtimeapi.PodSandboxConfig
		if err == nil {
			cfg, err = s.rec.config()
		}
		if err != nil || s.rec.ID != s.id || s.rec.Version > recordVersion {
			// Torn by a power cut, or an interrupted rename: its guests are dead.
			m.log.Warn("pod sandbox is dropped: its record can't be read", "sandbox", e.Name(), "err", err)
			os.Remove(path)
			continue
		}
		s.shown = showSandbox(cfg)
		s.name = sandboxName(s.shown.metadata)
		if s.rec.Making {
			if n, ok := m.opts.Network.(interface {
				EndAbandoned(ctx context.Context, id string)
			}); ok {
				n.EndAbandoned(ctx, s.id)
			}
			if err := m.disconnect(ctx, s); err == nil {
				os.Remove(path)
				continue
			} else {
				// Listed as not ready, so that whoever asked for it removes it, when
				// the network can be undone.
				m.log.Error("half-made pod sandbox can't be cleaned up yet", "sandbox", s.id, "err", err)
			}
			s.rec.Making, s.rec.Ready = false, false
			if err := m.saveSandbox(s, false); err != nil {
				m.log.Warn("pod sandbox's record can't be written", "sandbox", s.id, "err", err)
			}
		}
		m.sandboxes[s.id] = s
		m.names[s.name] = s.id
		if !s.rec.Ready {
			continue
		}
		if s.rec.BootID != m.bootID || s.rec.Network == netCNI && !isNetNS(s.rec.NetNS) {
			m.retire(ctx, s)
		}
	}
	return nil
}

// retire makes a sandbox NotReady whose boot or network namespace is over, so
// that the kubelet makes a new one.
func (m *Manager) retire(ctx context.Context, s *sandbox) {
	m.log.Info("pod sandbox has not survived the restart", "sandbox", s.id, "pod", s.shown.metadata.GetName(), "sameBoot", s.rec.BootID == m.bootID)
	if err := m.disconnect(ctx, s); err != nil {
		m.log.Warn("network of a dead pod sandbox can't be cleaned up yet", "sandbox", s.id, "err", err)
	}
	s.rec.Ready = false
	if err := m.saveSandbox(s, false); err != nil {
		m.log.Warn("pod sandbox's record can't be written", "sandbox", s.id, "err", err)
	}
}

func (m *Manager) recoverContainers(ctx context.Context) error {
	entries, err := os.ReadDir(m.containerDir(""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := m.containerDir(e.Name())
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			m.deleteBundle(ctx, dir)
			continue
		}
		c := &container{id: e.Name(), ended: make(chan struct{})}
		err := readRecord(filepath.Join(dir, recordFile), &c.rec)
		var cfg *runtimeapi.ContainerConfig
		if err == nil {
			cfg, err = c.rec.config()
		}
		if err != nil || c.rec.ID != c.id || c.rec.Version > recordVersion {
			m.log.Warn("container is dropped: its record can't be read", "container", e.Name(), "err", err)
			m.deleteBundle(ctx, dir)
			continue
		}
		c.shown = showContainer(cfg)
		c.name = containerName(c.shown.metadata, c.rec.SandboxID)
		m.recoverContainer(ctx, c)
		m.containers[c.id] = c
		m.names[c.name] = c.id
	}
	return nil
}

// recoverContainer takes a guest over if it lives, and finds out how it ended
// if it doesn't.
func (m *Manager) recoverContainer(ctx context.Context, c *container) {
	proc, err := m.opts.Runtime.Attach(c.rec.Spec.Dir)
	switch {
	case errors.Is(err, wasmruntime.ErrNotStarted):
		if c.rec.Exit != nil {
			close(c.ended)
			return
		}
		if c.rec.BootID != m.bootID {
			// Created in another boot: its sandbox is gone.
			m.exited(c, wasmruntime.ExitStatus{Code: 255, Reason: wasmruntime.ReasonUnknown, Message: "the machine restarted before the container was started", FinishedAt: m.opts.Now().UTC()})
		}
		return
	case err != nil:
		m.log.Error("guest can't be taken over", "container", c.id, "err", err)
		if c.rec.Exit == nil {
			m.exited(c, wasmruntime.ExitStatus{Code: 255, Reason: wasmruntime.ReasonUnknown, Message: err.Error(), FinishedAt: m.opts.Now().UTC()})
		} else {
			close(c.ended)
		}
		return
	}
	c.proc = proc
	defer closeOutput(proc) // when ours are open
	if c.rec.Exit != nil {
		close(c.ended)
		return
	}
	if exit, ended := proc.ExitStatus(); ended && exit.Reason == reasonStartError {
		// Who was starting it is gone, and with it the guest: it never ran, and nobody
		// was told that it couldn't. It can be started as if nothing had been tried.
		if err := proc.Delete(ctx); err == nil {
			c.proc = nil
			return
		}
		m.log.Warn("what a start left that was cut off can't be removed", "container", c.id, "err", err)
	}
	c.rec.StartedAt = proc.StartedAt()
	if at := c.rec.RestAt; at != nil {
		if err := cutLog(c.rec.LogPath, *at); err != nil {
			m.log.Warn("the end of a log may stand twice in it", "container", c.id, "log", c.rec.LogPath, "err", err)
		}
	}
	logs, err := m.openLogs(&c.rec, true)
	if err != nil {
		m.log.Error("log of a running container can't be opened, its output is not read", "container", c.id, "err", err)
		if logs, err = m.openLogs(&containerRecord{ID: c.id, Spec: c.rec.Spec}, true); err != nil {
			logs = &logPump{log: m.log, now: m.opts.Now, scratch: &m.scratch}
		}
	}
	c.logs = logs
	select {
	case <-proc.Done():
		m.finish(c, proc, logs)
	default:
		m.log.Info("running container taken over", "container", c.id, "name", c.shown.metadata.GetName(), "pid", proc.PID())
		m.watch(c, proc, logs)
	}
}

func (m *Manager) exited(c *container, exit wasmruntime.ExitStatus) {
	c.rec.Exit = &exit
	close(c.ended)
	m.saveContainer(c)
}

// deleteBundle kills what runs in a folder that isn't a container (any more)
// and deletes it.
func (m *Manager) deleteBundle(ctx context.Context, dir string) {
	if proc, err := m.opts.Runtime.Attach(filepath.Join(dir, bundleDir)); err == nil {
		if err := proc.Delete(ctx); err != nil {
			m.log.Error("left-over guest can't be ended", "dir", dir, "err", err)
			return
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		m.log.Error("left-over folder can't be removed", "dir", dir, "err", err)
	}
}

// sweepNetNS lets go of namespaces that no sandbox has.
func (m *Manager) sweepNetNS() {
	entries, err := os.ReadDir(m.opts.NetNSDir)
	if err != nil {
		return
	}
	mine := map[string]bool{}
	for _, s := range m.sandboxes {
		mine[s.rec.NetNS] = true
	}
	for _, e := range entries {
		path := filepath.Join(m.opts.NetNSDir, e.Name())
		if mine[path] {
			continue
		}
		if err := removeNetNS(path); err != nil {
			m.log.Warn("left-over network namespace can't be removed", "path", path, "err", err)
		}
	}
}
