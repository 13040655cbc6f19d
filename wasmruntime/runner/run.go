package runner

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cgroup"
	"github.com/coracle-edge/coracle/wasmruntime/internal/jail"
)

// runFlags are the command line of `wasmrunner run`.
type runFlags struct {
	spec, entry, cgroupRoot string
	status                  int
	noExec                  bool
}

func runMain(args []string) int {
	var f runFlags
	fs := flag.NewFlagSet("run", flag.ContinueOnError)
	fs.StringVar(&f.spec, "spec", "", "")
	fs.StringVar(&f.entry, "entry", "", "")
	fs.StringVar(&f.cgroupRoot, "cgroup-root", "", "")
	fs.IntVar(&f.status, "status-fd", -1, "")
	fs.BoolVar(&f.noExec, "no-exec", false, "")
	if fs.Parse(args) != nil {
		return 2
	}
	b, err := os.ReadFile(f.spec)
	var spec bundle.Spec
	if err == nil {
		err = json.Unmarshal(b, &spec)
	}
	if err != nil {
		return failed(f.status, bundle.KindStart, fmt.Errorf("specification: %w", err))
	}
	s := &stage{flags: f, spec: spec, order: guestOrder{Status: f.status, Exit: -1, Rest: [2]int{-1, -1}, Name: spec.ModuleName(), NotifyTerm: spec.NotifyTerm}}
	if spec.DieWithStarter {
		s.order.Starter = os.Getppid()
	}
	if err := s.run(); err != nil {
		kind := bundle.KindStart
		switch {
		case errors.Is(err, cache.ErrCorrupt):
			kind = bundle.KindCache
		case errors.Is(err, errOutbound):
			kind = bundle.KindOutbound
		}
		g := guestRun{order: s.order}
		return g.failed(kind, err)
	}
	return s.code // only without exec
}

// stage is the first stage of a run: with the starter's privileges, before
// any byte of the module is looked at.
type stage struct {
	flags  runFlags
	spec   bundle.Spec
	order  guestOrder
	index  cache.Index
	paths  []jail.Path
	keep   []int // descriptors that the guest inherits
	chroot int
	code   int
}

func (s *stage) run() error {
	if err := s.identify(); err != nil {
		return err
	}
	if err := s.openExit(); err != nil {
		return err
	}
	s.joinCgroup()
	if err := s.openEntry(); err != nil {
		return err
	}
	if err := s.openStdio(); err != nil {
		return err
	}
	if err := s.openMounts(); err != nil {
		return err
	}
	if err := s.openSockets(); err != nil {
		return err
	}
	s.arguments()
	if s.flags.noExec {
		s.code = guest(s.order)
		return nil
	}
	return s.jailAndExec()
}

// identify records who runs, before anything can go wrong, so that the
// starter's successor finds this process.
func (s *stage) identify() error {
	st, err := bundle.Self()
	if err != nil {
		return err
	}
	s.order.BootID = st.BootID
	return bundle.WriteJSON(s.spec.Dir, bundle.StateFile, st)
}

func (s *stage) openExit() error {
	path := filepath.Join(s.spec.Dir, bundle.ExitFile)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		fd, err = s.hold(fd)
	}
	if err != nil {
		return fmt.Errorf("exit record %s: %w", path, err)
	}
	s.order.Exit = fd
	return nil
}

// hold moves a descriptor out of the way and has the guest inherit it.
func (s *stage) hold(fd int) (int, error) {
	up, err := above(fd)
	if err != nil {
		return -1, err
	}
	unix.Close(fd)
	s.keep = append(s.keep, up)
	return up, nil
}

// joinCgroup does what it may; the starter has noted what it could not make.
func (s *stage) joinCgroup() {
	note := func(wall string) { s.order.Walls = append(s.order.Walls, wall) }
	if s.spec.Cgroup != "" {
		g, err := cgroup.Open(s.flags.cgroupRoot, s.spec.Cgroup)
		if err == nil {
			err = g.Join()
		}
		if err != nil {
			note("no cgroup: " + err.Error())
		} else {
			note("cgroup")
		}
	}
	if adj := s.spec.OOMScoreAdj; adj != nil {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*adj)), 0); err != nil {
			note("no oom_score_adj: " + err.Error())
		}
	}
}

// openEntry checks the compiled module and opens its directory.
func (s *stage) openEntry() error {
	index, err := cache.Verify(s.flags.entry, engine())
	if err != nil {
		return fmt.Errorf("%w: %w", cache.ErrCorrupt, err)
	}
	fd, err := unix.Open(s.flags.entry, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", cache.ErrCorrupt, err)
	}
	s.index, s.chroot = index, fd
	s.order.Entry, s.order.Imports = s.flags.entry, index.Imports
	s.paths = append(s.paths, jail.Path{FD: fd, Dir: true})
	if err := s.allowOutbound(); err != nil {
		return err
	}

	if limit := s.spec.MemoryLimit(); limit > 0 && int64(index.MemoryPages) > limit/65536 {
		return fmt.Errorf("it needs %d bytes of memory to begin with, the limit is %d", int64(index.MemoryPages)*65536, limit)
	}
	fd, err = unix.Open(filepath.Join(s.spec.Dir, bundle.LimitFile), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		s.order.Limit, err = s.hold(fd)
	}
	if err != nil {
		return fmt.Errorf("its memory limit: %w", err)
	}
	return nil
}

// pipeSize is asked for the guest's output, so that it can go on for a while
// when nobody reads.
const pipeSize = 1 << 20

func (s *stage) openStdio() error {
	if s.spec.InheritStdio {
		return nil
	}
	for i, name := range []string{bundle.StdinFifo, bundle.StdoutFifo, bundle.StderrFifo} {
		path, flags := filepath.Join(s.spec.Dir, name), unix.O_RDWR
		if i == 0 && !s.spec.Stdin {
			path, flags = "/dev/null", unix.O_RDONLY
		}
		fd, err := unix.Open(path, flags|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		if i > 0 {
			unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
			// For what is in it at the end, another description, that doesn't block.
			rest, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == nil {
				s.order.Rest[i-1], err = s.hold(rest)
			}
			if err != nil {
				return fmt.Errorf("open %s: %w", path, err)
			}
		}
		if i == 0 && s.spec.Stdin && s.spec.StdinOnce {
			// The guest's own end can't hold a writer then: another one is held,
			// until it is told to close it.
			reader, err := unix.Open(path, unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open %s: %w", path, err)
			}
			if s.order.StdinWriter, err = s.hold(fd); err != nil {
				return fmt.Errorf("hold %s: %w", path, err)
			}
			fd = reader
		}
		if err := unix.Dup3(fd, i, 0); err != nil {
			return err
		}
		unix.Close(fd)
	}
	return nil
}

func (s *stage) arguments() {
	s.order.Args = s.spec.Args
	if len(s.order.Args) == 0 {
		s.order.Args = []string{s.order.Name}
	}
	s.order.Env = s.spec.Env
	if n := len(s.order.Listeners); n > 0 {
		s.order.Env = append(s.order.Env, "LISTEN_FDS="+strconv.Itoa(n))
	}
	if s.spec.WorkingDir != "" {
		s.order.Env = append(s.order.Env, "PWD="+s.spec.WorkingDir)
	}
}

// guestFiles is how many descriptors a guest's process may have.
const guestFiles = 4096

func (s *stage) jailAndExec() error {
	exe, err := self()
	if err != nil {
		return err
	}
	cfg := jail.Config{Chroot: -1, Files: guestFiles, Outbound: s.order.Outbound != nil, Paths: append(s.paths, jail.Path{FD: exe, Exec: true})}
	if os.Geteuid() == 0 {
		cfg.SetUser, cfg.Chroot = true, s.chroot
		cfg.UID, cfg.GID, cfg.Groups = s.spec.UID, s.spec.GID, s.spec.Groups
		if cfg.UID == 0 && !s.spec.AllowRoot {
			cfg.UID = bundle.DefaultUID
			if cfg.GID == 0 {
				cfg.GID = bundle.DefaultUID
			}
		}
	} else if err := unix.Chdir("/"); err != nil {
		return err
	}
	walls, err := jail.Enter(cfg)
	if err != nil {
		return err
	}
	if slices.Contains(walls, "chroot") {
		s.order.Entry = "/"
	}
	s.order.Walls = append(s.order.Walls, walls...)
	handover, err := put(s.order)
	if err != nil {
		return err
	}
	procs := 1
	if s.spec.NotifyTerm || s.order.StdinWriter > 0 {
		procs = 2 // the guest may never give the only one back
	}
	inherit(append(s.keep, s.order.Status)...)
	return execSelf(exe, handover, "guest", s.spec.ID, tuning(procs, 0))
}
