package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coracle-edge/coracle/test/bench/proc"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

// memory of containers that run and do nothing, at several numbers of them.
func (b *bench) memory(ctx context.Context) error {
	var peer float64
	for _, n := range []int{1, 10} {
		pss, cgroup, err := b.runcMemory(ctx, n)
		if err != nil {
			return err
		}
		peer = pss
		b.report.Add(fmt.Sprintf("memory, runc through containerd, of %d: PSS each, with its shim and pause", n), pss, "MiB", "containerd shim 5.7; runwasi shims 16-67")
		b.report.Add(fmt.Sprintf("memory, runc through containerd, of %d: cgroup each", n), cgroup, "MiB", "-")
	}
	beside := fmt.Sprintf("runc, of 10 %.1f", peer)
	for _, g := range []struct {
		name, title string
		counts      []int
	}{{"c", "C", []int{1, 10, b.many}}, {"rust", "Rust", []int{1, 10}}, {"go", "Go", []int{1, 10}}} {
		file, ok := b.built.wasm[g.name]
		if !ok {
			continue
		}
		image, err := b.world.importModule(ctx, g.name, file)
		if err != nil {
			return err
		}
		for _, n := range g.counts {
			pss, cgroup, err := b.wasmMemory(ctx, image, n)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("memory, Wasm of %s, of %d: PSS each", g.title, n)
			switch {
			case g.name == "c" && n == b.many:
				b.report.AddMarked(name, pss, "MiB", beside, 1.5)
			case g.name == "go":
				b.report.AddMarked(name, pss, "MiB", beside, 18)
			default:
				b.report.Add(name, pss, "MiB", beside)
			}
			b.report.Add(fmt.Sprintf("memory, Wasm of %s, of %d: cgroup each", g.title, n), cgroup, "MiB", "-")
		}
	}
	return nil
}

// quiet is how long containers are left alone before their memory is read.
const quiet = 2 * time.Second

// several starts n containers, calls f while they run, and removes them.
func (b *bench) several(ctx context.Context, on cri, image string, n int, f func([]*pod) error) (err error) {
	var pods []*pod
	defer func() {
		for _, p := range pods {
			err = errors.Join(err, p.remove(context.WithoutCancel(ctx)))
		}
	}()
	for range n {
		p, err := b.world.sandbox(ctx, on)
		if err != nil {
			return err
		}
		pods = append(pods, p)
		if _, err := p.start(ctx, image, "hello\n", nil, "stay"); err != nil {
			return err
		}
	}
	if err := rig.Sleep(ctx, quiet); err != nil {
		return err
	}
	return f(pods)
}

func (b *bench) wasmMemory(ctx context.Context, image string, n int) (pss, cgroup float64, err error) {
	err = b.several(ctx, b.world.service, image, n, func(pods []*pod) error {
		pids, err := proc.PidsOf(filepath.Join(b.bin, "wasmrunner"))
		if err != nil {
			return err
		}
		if len(pids) != n {
			return fmt.Errorf("%d runners for %d containers: do others run on this machine?", len(pids), n)
		}
		if pss, err = sumPSS(pids); err != nil {
			return err
		}
		cgroup, err = sumCgroup(pids)
		return err
	})
	return pss / float64(n), cgroup / float64(n), err
}

// runcMemory counts whatever is there more than before: containerd's shims, the
// pause programs, the containers, and what containerd itself grew by.
func (b *bench) runcMemory(ctx context.Context, n int) (pss, cgroup float64, err error) {
	image, err := b.world.importProgram(ctx, "runc-memory", b.built.native["c"], "memory")
	if err != nil {
		return 0, 0, err
	}
	// containerd grows by its first containers for good.
	if _, err := b.once(ctx, b.world.direct, image); err != nil {
		return 0, 0, err
	}
	before, err := sumPSS([]int{b.world.containerd.PID()})
	if err != nil {
		return 0, 0, err
	}
	err = b.several(ctx, b.world.direct, image, n, func(pods []*pod) error {
		pids := []int{b.world.containerd.PID()}
		for _, p := range pods {
			of, err := proc.PidsWith(p.sandbox)
			if err != nil {
				return err
			}
			pids = append(pids, of...)
		}
		if len(pids) < 3*n {
			return fmt.Errorf("only %d processes for %d pods of containerd", len(pids), n)
		}
		if pss, err = sumPSS(pids); err != nil {
			return err
		}
		cgroup, err = sumCgroup(pids)
		return err
	})
	return (pss - before) / float64(n), cgroup / float64(n), err
}

func sumPSS(pids []int) (sum float64, err error) {
	for _, pid := range pids {
		m, err := proc.MemoryOf(pid)
		if err != nil {
			return 0, err
		}
		sum += m.PSS
	}
	return sum, nil
}

// sumCgroup is what the processes' cgroups are charged with, kernel memory
// included; those outside of the pods' own, where containerd's shims are, count not.
func sumCgroup(pids []int) (sum float64, err error) {
	seen := map[string]bool{}
	for _, pid := range pids {
		file, err := memoryOf(pid)
		if err != nil {
			return 0, err
		}
		if file == "" || seen[file] {
			continue
		}
		seen[file] = true
		raw, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(string(raw)), 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		sum += n / (1 << 20)
	}
	if len(seen) == 0 {
		return 0, fmt.Errorf("processes %v are in no cgroup of %s", pids, cgroupParent)
	}
	return sum, nil
}

// memoryOf is the file with what a process's cgroup is charged with, of version 1
// or 2; "" if it isn't one of ours.
func memoryOf(pid int) (string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], cgroupParent) {
			continue
		}
		file := ""
		switch f[1] {
		case "memory":
			file = filepath.Join("/sys/fs/cgroup/memory", f[2], "memory.usage_in_bytes")
		case "":
			file = filepath.Join("/sys/fs/cgroup", f[2], "memory.current")
		}
		if _, err := os.Stat(file); file != "" && err == nil {
			return file, nil
		}
	}
	return "", nil
}
