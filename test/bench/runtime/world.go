package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/test/bench/rig"
	"github.com/coracle-edge/coracle/test/lab"
)

// cgroupParent of everything that is started here.
const cgroupParent = "/coracle-bench-runtime"

// cri is the part of the runtime service that is measured; our own is called as a
// function, as edgelet calls it, containerd's over its socket, as a kubelet does.
type cri interface {
	RunPodSandbox(context.Context, *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error)
	RemovePodSandbox(context.Context, *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error)
	CreateContainer(context.Context, *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error)
	StartContainer(context.Context, *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error)
}

// world is a node: our CRI, and a containerd.
type world struct {
	dir        string
	state      string
	service    *crishim.Service
	containerd *oci.Private
	conn       *grpc.ClientConn
	direct     cri // containerd's own
	config     oci.PrivateConfig
	stop       context.CancelFunc
	made       int
}

func open(ctx context.Context, dir, runner string) (_ *world, err error) {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	w := &world{dir: dir, state: filepath.Join(dir, "state"), stop: stop, config: oci.PrivateConfig{
		Dir: filepath.Join(dir, "ctd"), Pool: netip.MustParsePrefix("10.232.0.0/16"), Logger: log, StartTimeout: time.Minute,
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if err := os.MkdirAll(w.config.Dir, 0o711); err != nil {
		return nil, err
	}
	if w.containerd, err = oci.StartPrivate(ctx, w.config); err != nil {
		return nil, err
	}
	w.service, err = crishim.New(ctx, crishim.Config{
		StateDir: w.state, RunnerPath: runner, CgroupParent: cgroupParent, ContainerdSocket: w.containerd.Socket(), Logger: log,
	})
	if err != nil {
		return nil, err
	}
	if w.conn, err = grpc.NewClient("unix://"+w.containerd.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return nil, err
	}
	w.direct = direct{runtimeapi.NewRuntimeServiceClient(w.conn)}
	return w, nil
}

func (w *world) close() error {
	var err error
	if w.service != nil {
		list, listErr := w.service.ListPodSandbox(context.Background(), &runtimeapi.ListPodSandboxRequest{})
		err = errors.Join(err, listErr)
		for _, s := range list.GetItems() {
			_, rmErr := w.service.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()})
			err = errors.Join(err, rmErr)
		}
		err = errors.Join(err, w.service.Close())
	}
	if w.conn != nil {
		err = errors.Join(err, w.conn.Close())
	}
	if w.containerd != nil {
		err = errors.Join(err, w.containerd.Stop(), oci.RemoveNetwork(w.config))
	}
	w.stop()
	return err
}

// direct calls containerd over its socket.
type direct struct {
	c runtimeapi.RuntimeServiceClient
}

func (d direct) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return d.c.RunPodSandbox(ctx, r)
}

func (d direct) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return d.c.RemovePodSandbox(ctx, r)
}

func (d direct) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return d.c.CreateContainer(ctx, r)
}

func (d direct) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return d.c.StartContainer(ctx, r)
}

// importModule makes an image of a module.
func (w *world) importModule(ctx context.Context, name, file string) (string, error) {
	module, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	return w.load(ctx, lab.CNCF(module), name)
}

// importProgram makes an image of a static program, with its name changed in no
// run: what differs makes it another image, so that its layers are unpacked anew.
func (w *world) importProgram(ctx context.Context, name, file, differs string) (string, error) {
	program, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	img := lab.OCI(ocispec.ImageConfig{Entrypoint: []string{"/program"}}, nil,
		[]lab.File{{Path: "program", Mode: 0o755, Data: program}, {Path: "which", Mode: 0o644, Data: []byte(differs)}})
	return w.load(ctx, img, name)
}

func (w *world) load(ctx context.Context, img *lab.Image, name string) (string, error) {
	names, err := w.service.Import(ctx, bytes.NewReader(lab.Archive(img, "")), "bench.example/"+name+":1")
	if err != nil {
		return "", err
	}
	return names[0], nil
}

// forgetCode removes all compiled modules.
func (w *world) forgetCode() error {
	entries, err := filepath.Glob(filepath.Join(w.state, "compiled", "*"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		err := filepath.WalkDir(e, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				err = os.Chmod(path, 0o700)
			}
			return err
		})
		if err := errors.Join(err, os.RemoveAll(e)); err != nil {
			return err
		}
	}
	return nil
}

// pod is a sandbox with one container.
type pod struct {
	on      cri
	sandbox string
	config  *runtimeapi.PodSandboxConfig
	id      string
	log     string
}

// sandbox makes the sandbox of a pod, on the host's network.
func (w *world) sandbox(ctx context.Context, on cri) (*pod, error) {
	w.made++
	name := fmt.Sprintf("pod-%d", w.made)
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		LogDirectory: filepath.Join(w.dir, "logs", name),
		Annotations:  map[string]string{crishim.AnnotationSandbox: "wasm"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: cgroupParent + "/" + name, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
		}},
	}
	resp, err := on.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return nil, err
	}
	return &pod{on: on, sandbox: resp.GetPodSandboxId(), config: cfg, log: filepath.Join(cfg.LogDirectory, "main/0.log")}, nil
}

// start makes and starts the container; from the call to the first byte in its
// log, which must be of its greeting.
func (p *pod) start(ctx context.Context, image, greeting string, annotations map[string]string, args ...string) (time.Duration, error) {
	cfg := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: &runtimeapi.ImageSpec{Image: image}, Annotations: annotations,
		Args: args, LogPath: "main/0.log", Linux: &runtimeapi.LinuxContainerConfig{},
	}
	// As the kubelet does.
	if err := os.MkdirAll(filepath.Dir(p.log), 0o755); err != nil {
		return 0, err
	}
	begin := time.Now()
	resp, err := p.on.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, Config: cfg, SandboxConfig: p.config})
	if err != nil {
		return 0, err
	}
	p.id = resp.GetContainerId()
	if _, err := p.on.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.id}); err != nil {
		return 0, err
	}
	for {
		if said, err := os.ReadFile(p.log); err == nil && len(said) > 0 {
			took := time.Since(begin)
			if !bytes.Contains(said, []byte(" stdout F "+greeting)) {
				return 0, fmt.Errorf("container %s of %s said %q", p.id, image, said)
			}
			return took, nil
		}
		if time.Since(begin) > 2*time.Minute {
			return 0, fmt.Errorf("container %s of %s said nothing in two minutes", p.id, image)
		}
		if err := rig.Sleep(ctx, 100*time.Microsecond); err != nil {
			return 0, err
		}
	}
}

func (p *pod) remove(ctx context.Context) error {
	_, err := p.on.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
	return err
}
