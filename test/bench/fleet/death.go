package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

const upstreamDeath = "upstream 52 (40 s of grace)"

// die ends boards, the real agent each, and reads how long it takes until a
// watcher of the API hears that they are away: first their processes are killed,
// so that their connections break, then they are stopped, so that they fall
// silent.
func (b *bench) die(ctx context.Context, dir string) error {
	w, err := watchNodes(ctx, b.plane.client)
	if err != nil {
		return err
	}
	defer w.stop()
	agents := make([]*rig.Program, b.deaths)
	defer func() {
		for _, a := range agents {
			if a != nil {
				a.Kill()
			}
		}
	}()
	names := make([]string, b.deaths)
	for i := range agents {
		names[i] = fmt.Sprintf("mortal-%d", i)
		line, err := join.CreateToken(ctx, b.plane.client, join.TokenOptions{Node: names[i], Wait: time.Minute})
		if err != nil {
			return err
		}
		data := filepath.Join(dir, names[i])
		agents[i] = &rig.Program{Name: filepath.Join(b.bin, "edgelet"), Log: data + ".log", Args: []string{"--data-dir", data, "--node-name", names[i],
			"--runner", filepath.Join(b.bin, "wasmrunner"), "--cni-conf-dir", filepath.Join(data, "none"), "--join", line.String()}}
		if err := agents[i].Start(); err != nil {
			return err
		}
	}
	is := func(i int, want corev1.ConditionStatus, within time.Duration) (time.Time, error) {
		err := rig.Until(ctx, within, fmt.Sprintf("node %s is Ready=%s", names[i], want), func() bool { return w.of(names[i]).to == want })
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, agents[i].Tail())
		}
		return w.of(names[i]).at, err
	}
	all := func(want corev1.ConditionStatus, within time.Duration) error {
		for i := range agents {
			if _, err := is(i, want, within); err != nil {
				return err
			}
		}
		return nil
	}
	if err := all(corev1.ConditionTrue, time.Minute); err != nil {
		return err
	}
	keepalive := fleet.DefaultClasses()[fleet.DefaultClass].Keepalive

	var broken []time.Duration
	for i, a := range agents {
		at := time.Now()
		a.Kill()
		seen, err := is(i, corev1.ConditionUnknown, 2*keepalive)
		if err != nil {
			return err
		}
		broken = append(broken, seen.Sub(at))
	}
	for _, a := range agents {
		if err := a.Start(); err != nil {
			return err
		}
	}
	if err := all(corev1.ConditionTrue, time.Minute); err != nil {
		return err
	}
	// Anywhere between two keepalives, as deaths are.
	stopped := make([]time.Time, len(agents))
	for i, a := range agents {
		if err := rig.Sleep(ctx, time.Duration(rand.Float64()*float64(keepalive)/float64(len(agents)))); err != nil {
			return err
		}
		stopped[i] = time.Now()
		if err := syscall.Kill(a.PID(), syscall.SIGSTOP); err != nil {
			return err
		}
	}
	var silent []time.Duration
	for i := range agents {
		seen, err := is(i, corev1.ConditionUnknown, 3*keepalive)
		if err != nil {
			return err
		}
		silent = append(silent, seen.Sub(stopped[i]))
	}
	for _, x := range []struct {
		how  string
		took []time.Duration
		mark float64
	}{
		{"killed, its connection breaks", broken, 1},
		{fmt.Sprintf("stopped, it falls silent (keepalive %s)", keepalive), silent, 1.5 * keepalive.Seconds()},
	} {
		slices.Sort(x.took)
		name := fmt.Sprintf("%d boards, each %s: until Ready=Unknown", b.deaths, x.how)
		b.report.Add(name+", p50", x.took[len(x.took)/2].Seconds(), "s", upstreamDeath)
		b.report.AddMarked(name+", worst", x.took[len(x.took)-1].Seconds(), "s", upstreamDeath, x.mark)
	}
	return nil
}
