package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// pasture holds the nodes of this process.
type pasture struct {
	dir    string
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup
	cut    atomic.Bool // no connection to the broker stands or can be had
	counts counts
	agents map[string]*agent
}

type counts struct{ started, restarted, stopped, ended atomic.Int64 }

func newPasture(dir string) *pasture {
	ctx, cancel := context.WithCancel(context.Background())
	return &pasture{dir: dir, ctx: ctx, cancel: cancel, agents: map[string]*agent{}}
}

func (p *pasture) handle(r request) answer {
	var a answer
	var err error
	switch r.Op {
	case "join":
		err = p.join(r.Lines)
	case "start":
		err = p.start()
	case "cut":
		p.cut.Store(true)
		for _, n := range p.agents {
			n.pull()
		}
	case "mend":
		p.cut.Store(false)
	case "await":
		a.Took, a.Late = p.await(r)
	case "stats":
	default:
		err = fmt.Errorf("operation %q isn't known", r.Op)
	}
	if err != nil {
		a.Err = err.Error()
	}
	a.Stats = p.stats()
	return a
}

// join makes an identity of each line, as edgelet --join does.
func (p *pasture) join(lines []string) error {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(p.ctx)
	g.SetLimit(8 * runtime.NumCPU())
	for _, text := range lines {
		g.Go(func() error {
			line, err := enrollment.ParseLine(text)
			if err != nil {
				return err
			}
			n, err := newAgent(ctx, p, filepath.Join(p.dir, line.Node), line)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			p.agents[n.name] = n
			return nil
		})
	}
	return g.Wait()
}

func (p *pasture) start() error {
	for _, n := range p.agents {
		if err := n.register(); err != nil {
			return err
		}
	}
	for _, n := range p.agents {
		p.group.Go(func() { n.run(p.ctx) })
	}
	return nil
}

// await looks, twenty times a second, which nodes are in step: the hub has
// welcomed them, they have exactly the pods that they should, and the hub has
// answered for all that they said.
func (p *pasture) await(r request) (took []time.Duration, late []string) {
	waiting := maps.Clone(p.agents)
	maps.DeleteFunc(waiting, func(name string, _ *agent) bool { _, ok := r.Want[name]; return !ok })
	for end := time.Now().Add(r.Within); ; {
		for name, n := range waiting {
			if n.lacks(r.Want[name]) == "" {
				took = append(took, time.Since(r.Since))
				delete(waiting, name)
			}
		}
		if len(waiting) == 0 || !time.Now().Before(end) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, name := range slices.Sorted(maps.Keys(waiting)) {
		late = append(late, name+": "+waiting[name].lacks(r.Want[name]))
	}
	return took, late
}

func (p *pasture) stats() stats {
	s := stats{Started: p.counts.started.Load(), Restarted: p.counts.restarted.Load(), Stopped: p.counts.stopped.Load(), Ended: p.counts.ended.Load()}
	for _, n := range p.agents {
		l := n.link.Status()
		s.Connections += l.Connections
		if l.Live {
			s.Live++
			if l.Resumed {
				s.Resumed++
			}
		}
	}
	return s
}

func (p *pasture) close() error {
	p.cancel()
	p.group.Wait()
	var errs []error
	for _, n := range p.agents {
		errs = append(errs, n.store.Close())
	}
	return errors.Join(errs...)
}

func few(list []string) string {
	if len(list) > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:5], "; "), len(list)-5)
	}
	return strings.Join(list, "; ")
}
