// Command crishim is a CRI endpoint for Wasm and OCI containers, for any
// kubelet: containerd does the OCI part, behind its own socket.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/crishim/streaming"
	"github.com/coracle-edge/coracle/internal/version"
	"github.com/coracle-edge/coracle/wasmruntime"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "crishim:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	fs := flag.NewFlagSet("crishim", flag.ContinueOnError)
	listen := fs.String("listen", "unix:///run/coracle/cri.sock", "socket to serve CRI on")
	admin := fs.String("admin", "", "socket for `coracle image import`; default: admin.sock beside --listen")
	containerd := fs.String("containerd", "", "containerd's socket (unix:///run/containerd/containerd.sock); empty: no OCI containers")
	state := fs.String("state-dir", "/var/lib/coracle/crishim", "images, compiled code, sandboxes and containers")
	runner := fs.String("runner", "", "the wasmrunner program; default: beside this one")
	cniConf := fs.String("cni-conf-dir", "/etc/cni/net.d", "CNI configuration")
	cniBin := fs.String("cni-bin-dir", "", "comma list of folders with CNI plugins; default: /opt/cni/bin,/usr/lib/cni")
	podNetwork := fs.String("pod-network", "cni", "network of Wasm pods that aren't on the host's: cni (they wait for a configuration), or host (the host's as long as there is none; a kubelet doesn't understand that)")
	hosts := fs.String("registry-hosts", "/etc/containerd/certs.d", "registry hosts directory (hosts.toml)")
	wasmCache := fs.Int64("wasm-cache-bytes", wasmruntime.DefaultCacheBytes, "bound of compiled Wasm modules; what was used longest ago goes first, and nothing that a container uses")
	artifacts := fs.String("wasm-artifacts", "", "folder with modules that `coracle wasm compile` made; empty: all are compiled here")
	trusted := fs.String("wasm-trusted-keys", "/etc/coracle/wasm-keys", "folder with public keys, *.pem, that may have signed them")
	cgroup := fs.String("cgroup-parent", "", "cgroup of pods that name none; default: /coracle")
	streamAddr := fs.String("streaming", "127.0.0.1:0", "address where clients attach to Wasm containers and forward ports to Wasm pods, by URLs that are given out over CRI; keep it on loopback")
	verbose := fs.Bool("v", false, "log what is done")
	show := fs.Bool("version", false, "print the version and end")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *show {
		fmt.Println(version.String())
		return nil
	}
	if *podNetwork != "cni" && *podNetwork != "host" {
		return fmt.Errorf("--pod-network %q is neither cni nor host", *podNetwork)
	}
	if *runner == "" {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		*runner = filepath.Join(filepath.Dir(exe), "wasmrunner")
	}
	if *admin == "" {
		*admin = filepath.Join(filepath.Dir(strings.TrimPrefix(*listen, "unix://")), "admin.sock")
	}
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	cfg := crishim.Config{
		StateDir: *state, RunnerPath: *runner, ContainerdSocket: *containerd, CNIConfDir: *cniConf, RequireNetwork: *podNetwork == "cni",
		RegistryHosts: *hosts, CgroupParent: *cgroup, WasmCacheBytes: *wasmCache, WasmArtifacts: *artifacts, WasmTrustedKeys: *trusted,
		Version: version.Semantic(), Logger: log,
	}
	if *cniBin != "" {
		cfg.CNIBinDirs = strings.Split(*cniBin, ",")
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cri, err := crishim.ListenUnix(*listen)
	if err != nil {
		return err
	}
	defer cri.Close()
	adm, err := crishim.ListenUnix(*admin)
	if err != nil {
		return err
	}
	defer adm.Close()
	svc, err := crishim.New(ctx, cfg)
	if err != nil {
		return err
	}
	streams, err := net.Listen("tcp", *streamAddr)
	if err != nil {
		return errors.Join(fmt.Errorf("--streaming: %w", err), svc.Close())
	}
	defer streams.Close()
	streamer, err := streaming.New(streams, svc)
	if err != nil {
		return errors.Join(err, svc.Close())
	}
	log.Info("serving", "cri", *listen, "admin", *admin, "containerd", *containerd, "streaming", streams.Addr())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return svc.Serve(ctx, cri, streamer) })
	g.Go(func() error { return streamer.Run(ctx) })
	g.Go(func() error {
		srv := &http.Server{Handler: svc.Admin(), ReadHeaderTimeout: 10 * time.Second}
		closed := context.AfterFunc(ctx, func() { _ = srv.Close() })
		defer closed()
		if err := srv.Serve(adm); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return errors.Join(g.Wait(), svc.Close())
}
