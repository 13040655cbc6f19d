package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/test/bench/proc"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

// Where the servers listen, in this program's own network namespace.
const wasmPort, nativePort = "18080", "18081"

// server starts the HTTP example as a Wasm container.
func (b *bench) server(ctx context.Context) (p *pod, pid int, err error) {
	image, err := b.world.importModule(ctx, "http", b.built.wasm["http"])
	if err != nil {
		return nil, 0, err
	}
	if p, err = b.world.sandbox(ctx, b.world.service); err != nil {
		return nil, 0, err
	}
	listen := map[string]string{crishim.AnnotationListen: "127.0.0.1:" + wasmPort + "/tcp"}
	if _, err = p.start(ctx, image, "listening\n", listen); err == nil {
		var pids []int
		if pids, err = proc.PidsOf(filepath.Join(b.bin, "wasmrunner")); err == nil && len(pids) != 1 {
			err = fmt.Errorf("%d runners for one server: do others run on this machine?", len(pids))
		}
		if err == nil {
			return p, pids[0], nil
		}
	}
	return nil, 0, errors.Join(err, p.remove(context.WithoutCancel(ctx)))
}

// idle is what a server that nobody asks takes of a core.
func (b *bench) idle(ctx context.Context) (err error) {
	p, pid, err := b.server(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remove(context.WithoutCancel(ctx))) }()
	// It has been asked before, and a client stays connected.
	client := &http.Client{}
	defer client.CloseIdleConnections()
	if err := get(ctx, client, wasmPort); err != nil {
		return err
	}
	before, err := proc.Ran(pid)
	if err != nil {
		return err
	}
	if err := rig.Sleep(ctx, b.window); err != nil {
		return err
	}
	after, err := proc.Ran(pid)
	if err != nil {
		return err
	}
	b.report.AddMarked("idle HTTP server of Wasm: processor, over "+b.window.String(), 100*float64(after-before)/float64(b.window), "% of a core", "wazero's own poll 100", 0.2)
	return nil
}

// requests are those a second that the HTTP example answers over connections that
// stay, as a Wasm container and as a process.
func (b *bench) requests(ctx context.Context) (err error) {
	p, _, err := b.server(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remove(context.WithoutCancel(ctx))) }()
	native := exec.CommandContext(ctx, b.built.native["http"])
	native.Env = []string{"PORT=" + nativePort}
	native.Stderr = os.Stderr
	if err := native.Start(); err != nil {
		return err
	}
	defer func() {
		_ = native.Process.Kill()
		_ = native.Wait()
	}()
	for _, clients := range []int{1, 8} {
		// Alternating, so that whatever else the machine does meets both.
		var asked [2]float64
		const turns = 4
		for range turns {
			for i, port := range []string{wasmPort, nativePort} {
				n, err := b.ask(ctx, port, clients, b.load/turns)
				if err != nil {
					return err
				}
				asked[i] += n / turns
			}
		}
		name := fmt.Sprintf("HTTP example, %d clients: requests", clients)
		b.report.Add(name, asked[0], "1/s", fmt.Sprintf("the same program native %.0f", asked[1]))
		b.report.Add(name+", native by Wasm", asked[1]/asked[0], "times", "-")
	}
	return nil
}

// ask has clients ask for a while, and gives the answers per second.
func (b *bench) ask(ctx context.Context, port string, clients int, window time.Duration) (float64, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	if err := rig.Until(ctx, 10*time.Second, "port "+port+" answers", func() bool { return get(ctx, client, port) == nil }); err != nil {
		return 0, err
	}
	var (
		answers atomic.Int64
		failed  atomic.Pointer[error]
		wg      sync.WaitGroup
	)
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			for time.Since(begin) < window && failed.Load() == nil {
				if err := get(ctx, client, port); err != nil {
					failed.Store(&err)
					return
				}
				answers.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(answers.Load()) / time.Since(begin).Seconds(), nil
}

func get(ctx context.Context, client *http.Client, port string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort("127.0.0.1", port)+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "ok\n" {
		err = fmt.Errorf("port %s answered %d %.60q", port, resp.StatusCode, body)
	}
	return err
}
