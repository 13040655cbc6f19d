package crishim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/crishim/network"
	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/crishim/wasm"
	"github.com/coracle-edge/coracle/wasmruntime"
)

// Annotations that are read or written here.
const (
	// AnnotationSandbox on a sandbox says of which kind it is to be: "wasm" or
	// "oci".
	AnnotationSandbox = "coracle.dev/sandbox"
	// AnnotationKind is in the Info of ImageStatus and in the annotations of
	// Image.Spec: "wasm" or "oci".
	AnnotationKind = images.KindKey
	// AnnotationListen on a container lists a guest's sockets.
	AnnotationListen = wasm.AnnotationListen
	// AnnotationStale marks a listed OCI sandbox or container that containerd
	// can't be asked about: the time when it was last known, RFC 3339.
	AnnotationStale = "coracle.dev/stale"
)

// RuntimeName is what Version says.
const RuntimeName = "coracle"

// Config of a Service. StateDir and RunnerPath are required.
type Config struct {
	// StateDir holds images, compiled code and the state of sandboxes and
	// containers. One Service uses it at a time.
	StateDir string
	// RunnerPath is the wasmrunner binary.
	RunnerPath string
	// ContainerdSocket is the path or unix:// URL of containerd's socket;
	// empty means that there is none.
	ContainerdSocket string
	// CDIDirs are where files that describe devices lie (Container Device Interface),
	// the later ones counting more. Empty: /etc/cdi and /var/run/cdi.
	CDIDirs []string
	// CNIConfDir is where the CNI configuration is; empty, or a folder without
	// one, means the host's network for Wasm pods.
	CNIConfDir string
	// RequireNetwork makes pods without hostNetwork wait for a CNI configuration,
	// as a kubelet expects of its runtime, instead of giving Wasm pods the host's
	// network.
	RequireNetwork bool
	// CNIBinDirs hold the CNI plugins. Empty: /opt/cni/bin and /usr/lib/cni.
	CNIBinDirs []string
	// RegistryHosts is a registry hosts directory as containerd's certs.d.
	RegistryHosts string
	// MaxParallelPulls of Wasm images; others wait. Zero: 2. containerd has a
	// limit of its own for the layers of OCI images.
	MaxParallelPulls int
	// PullStall ends a pull in which the registry said nothing for so long.
	// Zero: 90 s.
	PullStall time.Duration
	// KeepPartial is how long what an interrupted pull left is kept for the next
	// try. Zero: 24 h. Negative: not at all.
	KeepPartial time.Duration
	// CgroupParent for pods that name none. Empty: /coracle.
	CgroupParent string
	// Limits for Wasm modules; zero: those of this board.
	Limits wasmruntime.Limits
	// WasmCacheBytes bounds compiled modules; zero: wasmruntime.DefaultCacheBytes.
	WasmCacheBytes int64
	// WasmArtifacts is a folder with modules that were compiled elsewhere, and
	// WasmTrustedKeys one with the public keys that may have signed them.
	WasmArtifacts, WasmTrustedKeys string
	// Version is what the Version call says.
	Version string
	Logger  *slog.Logger
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
}

// Service implements runtimeapi.RuntimeServiceServer and ImageServiceServer.
// Its methods may be called directly; their errors carry gRPC codes.
type Service struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg    Config
	log    *slog.Logger
	now    func() time.Time
	store  *images.Store
	rt     *wasmruntime.Runtime
	wasm   *wasm.Manager
	oci    *oci.Client // nil without containerd
	last   *lastKnown
	events *hub
	pause  sandboxImage

	swept chan struct{}   // closed when containerd is
	lock  *os.File        // held while it lives
	done  <-chan struct{} // of the Service
	stop  context.CancelFunc
	wg    sync.WaitGroup
}

var (
	_ runtimeapi.RuntimeServiceServer = (*Service)(nil)
	_ runtimeapi.ImageServiceServer   = (*Service)(nil)
)

// New opens the state directory and takes over what runs. ctx bounds the
// opening only; the Service lives until Close.
func New(ctx context.Context, cfg Config) (_ *Service, err error) {
	if cfg.StateDir == "" || cfg.RunnerPath == "" {
		return nil, errors.New("crishim: StateDir and RunnerPath are required")
	}
	if cfg.StateDir, err = filepath.Abs(cfg.StateDir); err != nil {
		return nil, fmt.Errorf("crishim: %w", err)
	}
	if _, err := os.Stat(cfg.RunnerPath); err != nil {
		return nil, fmt.Errorf("crishim: wasmrunner: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if len(cfg.CNIBinDirs) == 0 {
		cfg.CNIBinDirs = []string{"/opt/cni/bin", "/usr/lib/cni"}
	}
	s := &Service{cfg: cfg, log: cfg.Logger, now: cfg.Now, events: newHub(), swept: make(chan struct{})}
	if s.lock, err = lockDir(cfg.StateDir); err != nil {
		return nil, fmt.Errorf("crishim: %w", err)
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	rt, err := wasmruntime.New(wasmruntime.Options{
		RunnerPath: cfg.RunnerPath, CacheDir: filepath.Join(cfg.StateDir, "compiled"), Limits: cfg.Limits, Logger: cfg.Logger, Now: cfg.Now,
		CacheBytes: cfg.WasmCacheBytes, ArtifactDir: cfg.WasmArtifacts, TrustedKeys: cfg.WasmTrustedKeys, InUse: s.moduleInUse,
	})
	if err != nil {
		return nil, fmt.Errorf("crishim: %w", err)
	}
	s.rt = rt
	s.store, err = images.Open(images.Options{
		Dir: filepath.Join(cfg.StateDir, "images"), HostsDir: cfg.RegistryHosts, Logger: cfg.Logger, Now: cfg.Now,
		Prepare: func(ctx context.Context, m images.Module) error { return rt.Compile(ctx, m.Path, m.Digest.String()) },
		InUse:   s.imageInUse, MaxParallel: cfg.MaxParallelPulls, Stall: cfg.PullStall, KeepPartial: cfg.KeepPartial,
	})
	if err != nil {
		return nil, fmt.Errorf("crishim: %w", err)
	}
	opts := wasm.Options{
		Dir: filepath.Join(cfg.StateDir, "wasm"), Runtime: rt, Image: s.store.Lookup, Emit: s.events.publish,
		CgroupParent: cfg.CgroupParent, RequireNetwork: cfg.RequireNetwork, Logger: cfg.Logger, Now: cfg.Now,
	}
	if cfg.CNIConfDir != "" && os.Geteuid() == 0 {
		opts.Network = &network.CNI{ConfDir: cfg.CNIConfDir, BinDirs: cfg.CNIBinDirs}
	}
	if cfg.ContainerdSocket != "" {
		if s.oci, err = oci.New(cfg.ContainerdSocket, cfg.Logger); err != nil {
			return nil, fmt.Errorf("crishim: %w", err)
		}
		sum := sha256.Sum256([]byte(cfg.StateDir))
		s.oci.Owner = hex.EncodeToString(sum[:8])
		opts.ForeignSandbox = s.foreignSandbox
	}
	s.last = openLastKnown(filepath.Join(cfg.StateDir, "oci-last.json"), cfg.Logger, cfg.Now)
	if s.wasm, err = wasm.New(ctx, opts); err != nil {
		if s.oci != nil {
			s.oci.Close()
		}
		return nil, fmt.Errorf("crishim: %w", err)
	}
	s.store.Collect() // images removed while their containers ran
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop, s.done = stop, run.Done()
	if s.oci != nil {
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			s.sweepContainerd(run)
			s.followContainerd(run)
		}()
	}
	return s, nil
}

// Close stops serving. Guests and OCI containers run on; the next Service of
// the same StateDir takes them over.
func (s *Service) Close() error {
	s.stop()
	s.events.close()
	s.wg.Wait()
	s.store.Close()
	err := s.wasm.Close()
	if s.oci != nil {
		err = errors.Join(err, s.oci.Close())
	}
	return errors.Join(err, s.lock.Close())
}

// Forgotten is how many OCI sandboxes containerd was last known to run, in this
// boot, though this Service was given no containerd to ask.
func (s *Service) Forgotten() int {
	if s.oci != nil {
		return 0
	}
	return len(s.last.listSandboxes(nil))
}

// ErrInUse is returned by New when another process has the state directory.
var ErrInUse = errors.New("state directory is in use")

// lockDir makes a state directory ours until the file is closed.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := awaitFree(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		return nil, errors.Join(fmt.Errorf("%w by another process: %s", ErrInUse, dir), f.Close())
	}
	return f, nil
}

// sweepContainerd removes what a killed process left there half-imported. Imports
// wait for it, or it would take theirs.
func (s *Service) sweepContainerd(ctx context.Context) {
	defer close(s.swept)
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := s.oci.SweepImports(ctx); err != nil {
		s.log.Debug("what a former process imported by half is left in containerd until it expires", "err", err)
	}
	if err := s.oci.SweepImageVolumes(ctx, s.imageVolumes()); err != nil {
		s.log.Warn("image volumes of former pod sandboxes are left until the next start", "err", err)
	}
}

// Import stores the images of an OCI or docker archive: Wasm ones here, others
// in containerd. ref names the image of an archive with one; empty means the
// archive's own names. It returns the full names.
func (s *Service) Import(ctx context.Context, archive io.Reader, ref string) ([]string, error) {
	var target images.OCITarget
	if s.oci != nil {
		target = s.oci
		select {
		case <-s.swept:
		case <-ctx.Done():
			return nil, rpcError(ctx.Err())
		}
	}
	names, err := s.store.Import(ctx, archive, ref, target)
	return names, rpcError(err)
}

// imageInUse may be asked before there is a wasm.Manager: then the answer that
// deletes nothing.
func (s *Service) imageInUse(id digest.Digest) bool {
	return s.wasm == nil || s.wasm.UsesImage(id.String())
}

// moduleInUse is the same for compiled code.
func (s *Service) moduleInUse(digest string) bool {
	return s.wasm == nil || s.wasm.UsesModule(digest)
}

// foreignSandbox tells the wasm package of a sandbox of containerd's.
func (s *Service) foreignSandbox(ctx context.Context, id string) (*wasm.ForeignSandbox, error) {
	sb, err := s.oci.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	return &wasm.ForeignSandbox{
		ID: sb.Status.GetId(), Config: sb.Config, NetNS: sb.NetNS, CgroupParent: sb.Config.GetLinux().GetCgroupParent(),
		Ready: sb.Status.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY,
	}, nil
}
