package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
)

// cpuset is the hierarchy of version 1 that binds processes to processors and
// memory. A guest is in it only if it is bound: unlike in the others, a group takes
// no process before somebody has filled it and all above it (cpusets(7)).
const cpuset = "cpuset"

// bind binds the group, and what runs in it already, in version 1. Empty values are
// left as they are.
func (g *Group) bind(res bundle.Resources) error {
	if res.CPUSet == "" && res.MemorySet == "" {
		return nil
	}
	at := filepath.Join(g.root, cpuset)
	if _, err := os.Stat(at); err != nil {
		return err
	}
	for level := range strings.SplitSeq(strings.Trim(g.path, "/"), "/") {
		above := at
		at = filepath.Join(at, level)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if has, err := os.ReadFile(filepath.Join(at, file)); err != nil || strings.TrimSpace(string(has)) != "" {
				continue
			}
			all, err := os.ReadFile(filepath.Join(above, file))
			if err == nil {
				err = write(at, file, strings.TrimSpace(string(all)))
			}
			if err != nil {
				return err
			}
		}
	}
	var errs []error
	for file, list := range map[string]string{"cpuset.cpus": res.CPUSet, "cpuset.mems": res.MemorySet} {
		if list != "" {
			errs = append(errs, write(at, file, list))
		}
	}
	// What runs was in the others before there was this one.
	for _, controller := range v1 {
		procs, err := os.ReadFile(filepath.Join(g.dir(controller), "cgroup.procs"))
		if err != nil {
			continue
		}
		for pid := range strings.FieldsSeq(string(procs)) {
			if err := write(at, "cgroup.procs", pid); err != nil && exists(filepath.Join("/proc", pid)) {
				errs = append(errs, err)
			}
		}
		break
	}
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
