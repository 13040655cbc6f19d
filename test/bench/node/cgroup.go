package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coracle-edge/coracle/test/bench/proc"
)

const cgroupFS = "/sys/fs/cgroup"

// cgroup is one of this bench's, by its path below the hierarchies' roots. Of
// version 1 it is one in each hierarchy.
type cgroup string

// unified says whether this machine has version 2 only.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroupFS, "cgroup.controllers"))
	return err == nil
}

// in is the folder of a controller's hierarchy.
func (g cgroup) in(controller string) string {
	if unified() {
		return filepath.Join(cgroupFS, string(g))
	}
	return filepath.Join(cgroupFS, controller, string(g))
}

// make it, and those above, so that processes can be in it and cgroups below.
func (g cgroup) make() error {
	if unified() {
		dir := cgroupFS
		for _, name := range strings.Split(strings.Trim(string(g), "/"), "/") {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+cpu +memory +pids"), 0o600); err != nil {
				return fmt.Errorf("cgroup %s: %w", g, err)
			}
			if dir = filepath.Join(dir, name); os.Mkdir(dir, 0o755) != nil && !isDir(dir) {
				return fmt.Errorf("cgroup %s can't be made", dir)
			}
		}
		return nil
	}
	hierarchies, err := os.ReadDir(cgroupFS)
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		root := filepath.Join(cgroupFS, h.Name())
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil || h.Name() == "unified" {
			continue
		}
		dir := root
		for _, name := range strings.Split(strings.Trim(string(g), "/"), "/") {
			above := dir
			dir = filepath.Join(dir, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			// A cpuset begins without processors, and takes no process then.
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				raw, err := os.ReadFile(filepath.Join(above, f))
				if err != nil {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, f), raw, 0o600); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// prepare has a command's process be in it from its first page on: a shell goes
// there and becomes the program.
func (g cgroup) prepare(cmd *exec.Cmd) {
	files := []string{filepath.Join(g.in("memory"), "cgroup.procs")}
	if !unified() {
		files = append(files, filepath.Join(g.in("cpuacct"), "cgroup.procs"))
	}
	script := ""
	for _, f := range files {
		script += "echo $$ >" + f + " && "
	}
	cmd.Args = append([]string{"sh", "-c", script + `exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}

// pids of it and all below.
func (g cgroup) pids() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(g.in("memory"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was removed meanwhile
		}
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, f := range strings.Fields(string(raw)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}

// kernel is the memory that the kernel itself has for it and all below, in MiB:
// stacks, page tables, sockets, dentries.
func (g cgroup) kernel() (float64, error) {
	if !unified() {
		return number(filepath.Join(g.in("memory"), "memory.kmem.usage_in_bytes"), "", 1<<20)
	}
	return number(filepath.Join(g.in("memory"), "memory.stat"), "kernel", 1<<20)
}

// cpu is the processor time of all that ran in it, ended processes included.
func (g cgroup) cpu() (time.Duration, error) {
	if !unified() {
		n, err := number(filepath.Join(g.in("cpuacct"), "cpuacct.usage"), "", 1)
		return time.Duration(n), err
	}
	n, err := number(filepath.Join(g.in("cpu"), "cpu.stat"), "usage_usec", 1)
	return time.Duration(n) * time.Microsecond, err
}

// number reads a file's number, or that of a key in it, in units.
func number(file, key string, unit float64) (float64, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if key == "" && len(f) == 1 || len(f) == 2 && f[0] == key {
			n, err := strconv.ParseFloat(f[len(f)-1], 64)
			return n / unit, err
		}
	}
	return 0, fmt.Errorf("%s says nothing of %q", file, key)
}

// remove it and all below, when no process is in them any more.
func (g cgroup) remove() error {
	roots, err := filepath.Glob(filepath.Join(cgroupFS, "*", string(g)))
	if err != nil {
		return err
	}
	for _, root := range append(roots, filepath.Join(cgroupFS, string(g))) {
		var dirs []string
		err = errors.Join(err, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		}))
		for _, d := range slices.Backward(dirs) {
			err = errors.Join(err, os.Remove(d))
		}
	}
	return err
}

// memoryOf all processes of cgroups, and of which programs they are.
func memoryOf(groups ...cgroup) (m proc.Memory, processes int, err error) {
	for _, g := range groups {
		pids, err := g.pids()
		if err != nil {
			return m, 0, err
		}
		for _, pid := range pids {
			one, err := proc.MemoryOf(pid)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it ended
			}
			if err != nil {
				return m, 0, err
			}
			processes++
			m.RSS += one.RSS
			m.PSS += one.PSS
			m.Private += one.Private
			m.Anonymous += one.Anonymous
		}
	}
	return m, processes, nil
}
