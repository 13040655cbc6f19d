package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/crishim/network"
)

// ErrCannotRun is returned when this machine or user can't run a containerd:
// not installed, or not root.
var ErrCannotRun = errors.New("containerd can't be run here")

// PrivateConfig says how a containerd of one's own is to be run. Dir is
// required.
type PrivateConfig struct {
	// Dir holds its images, state, socket, log and configuration.
	Dir string
	// Name is what the network is called. Empty: made of Dir.
	Name string
	// Binary is containerd's path. Empty: found in PATH.
	Binary string
	// Pool gives pods their addresses, through a bridge of the node's own; see
	// network.Private. The zero prefix means that no CNI configuration is written
	// and CNIConfDir is used as it is.
	Pool netip.Prefix
	// CNIConfDir and CNIBinDir; empty: Dir/cni, and the first of /opt/cni/bin
	// and /usr/lib/cni that is there.
	CNIConfDir, CNIBinDir string
	// RegistryHosts is a registry hosts directory; may be empty.
	RegistryHosts string
	// SandboxImage; empty means the one made here.
	SandboxImage string
	// Snapshotter; empty: overlayfs where it works, else native.
	Snapshotter string
	// StartTimeout; zero: 30 s.
	StartTimeout time.Duration
	// Start starts the process, such as in namespaces of its own; nil starts it
	// where the caller is. Dir is the same folder there.
	Start  func(*exec.Cmd) error
	Logger *slog.Logger
}

// Private is a running containerd of one's own. Its containers outlive it.
type Private struct {
	cfg  PrivateConfig
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of the process; valid when done is closed
}

// StartPrivate writes the configuration, starts containerd, waits until its
// CRI answers and gives it the pause image. It ends with Stop or with ctx. If
// the caller is killed it runs on; the next StartPrivate with the same Dir
// replaces it. Containers outlive all of them and are taken over.
//
// ErrCannotRun says why there can be none here.
func StartPrivate(ctx context.Context, cfg PrivateConfig) (*Private, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	if err := cfg.write(); err != nil {
		return nil, fmt.Errorf("private containerd: %w", err)
	}
	if err := cfg.endFormer(ctx); err != nil {
		return nil, fmt.Errorf("private containerd: %w", err)
	}
	p := &Private{cfg: cfg, done: make(chan struct{})}
	// A log that grew in former runs starts again.
	logFile, err := os.OpenFile(filepath.Join(cfg.Dir, "containerd.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return nil, fmt.Errorf("private containerd: %w", err)
	}
	defer logFile.Close()
	p.cmd = exec.CommandContext(ctx, cfg.Binary, "--config", cfg.configFile())
	p.cmd.Stdout, p.cmd.Stderr = logFile, logFile
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 10 * time.Second
	// Containerd looks for its shim in PATH, where another version's may be first.
	p.cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(cfg.Binary)+":"+os.Getenv("PATH"))
	if err := cfg.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("private containerd: %w", err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := os.WriteFile(cfg.pidFile(), fmt.Appendf(nil, "%d\n", p.cmd.Process.Pid), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("private containerd: %w", err), p.Stop())
	}
	if err := p.prepare(ctx); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

// prepare waits for the CRI and imports the pause image.
func (p *Private) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.StartTimeout)
	defer cancel()
	c, err := New(p.Socket(), p.cfg.Logger)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		if err = c.Available(ctx); err == nil {
			break
		}
		select {
		case <-p.done:
			return fmt.Errorf("private containerd ended at once (%w), see %s: %s", p.err, filepath.Join(p.cfg.Dir, "containerd.log"), p.lastLines())
		case <-ctx.Done():
			return fmt.Errorf("private containerd doesn't answer after %v, see %s: %w", p.cfg.StartTimeout, filepath.Join(p.cfg.Dir, "containerd.log"), err)
		case <-time.After(30 * time.Millisecond):
		}
	}
	if p.cfg.SandboxImage != PauseImage {
		return nil
	}
	if err := c.ImportPause(ctx); err != nil {
		return fmt.Errorf("private containerd: pause image: %w", err)
	}
	return nil
}

// Socket is containerd's CRI endpoint.
func (p *Private) Socket() string { return p.cfg.socket() }

// NRISocket is where plugins of the Node Resource Interface reach it, if it is of
// version 1.7 or later.
func (p *Private) NRISocket() string { return p.cfg.nriSocket() }

// PID of containerd.
func (p *Private) PID() int { return p.cmd.Process.Pid }

// Done is closed when containerd has ended; Err then says how.
func (p *Private) Done() <-chan struct{} { return p.done }

// Err is how it ended; nil while it runs.
func (p *Private) Err() error {
	select {
	case <-p.done:
		if p.err == nil {
			return errors.New("private containerd ended")
		}
		return p.err
	default:
		return nil
	}
}

// CNIConfDir and CNIBinDir are what Wasm pods of the same node should use too.
func (p *Private) CNIConfDir() string { return p.cfg.CNIConfDir }
func (p *Private) CNIBinDir() string  { return p.cfg.CNIBinDir }

// Stop ends containerd. Containers run on: remove them first, through CRI.
func (p *Private) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	return nil
}

// CanRun is nil, or ErrCannotRun with what is missing here.
func CanRun(cfg PrivateConfig) error { return cfg.setPrograms() }

// RemoveNetwork takes the bridge of a containerd with this configuration away,
// when all its containers are gone and nothing makes new ones.
func RemoveNetwork(cfg PrivateConfig) error {
	if err := cfg.setPaths(); err != nil || !cfg.Pool.IsValid() {
		return err
	}
	return cfg.network().Remove()
}

func (p *Private) lastLines() string {
	raw, err := os.ReadFile(filepath.Join(p.cfg.Dir, "containerd.log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

func (c *PrivateConfig) configFile() string { return filepath.Join(c.Dir, "config.toml") }
func (c *PrivateConfig) pidFile() string    { return filepath.Join(c.Dir, "containerd.pid") }
func (c *PrivateConfig) root() string       { return filepath.Join(c.Dir, "root") }
func (c *PrivateConfig) state() string      { return filepath.Join(c.Dir, "state") }

// socket is Dir/containerd.sock, unless that is too long for a socket's name.
func (c *PrivateConfig) socket() string {
	if s := filepath.Join(c.Dir, "containerd.sock"); len(s) < 95 { // containerd appends .ttrpc
		return s
	}
	sum := sha256.Sum256([]byte(c.Dir))
	return filepath.Join("/run/coracle", hex.EncodeToString(sum[:8]), "containerd.sock")
}

func (c *PrivateConfig) nriSocket() string {
	return filepath.Join(filepath.Dir(c.socket()), "nri.sock")
}

func (c *PrivateConfig) setPaths() error {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	c.Dir = dir
	if c.Name == "" {
		sum := sha256.Sum256([]byte(c.Dir))
		c.Name = hex.EncodeToString(sum[:4])
	}
	if c.CNIConfDir == "" {
		c.CNIConfDir = filepath.Join(c.Dir, "cni")
	}
	return nil
}

func (c *PrivateConfig) setDefaults() error {
	if err := c.setPrograms(); err != nil {
		return err
	}
	if err := c.setPaths(); err != nil {
		return err
	}
	if c.SandboxImage == "" {
		c.SandboxImage = PauseImage
	}
	if c.Snapshotter == "" {
		c.Snapshotter = "native"
		if overlayWorks(c.Dir) {
			c.Snapshotter = "overlayfs"
		}
	}
	if c.Start == nil {
		c.Start = (*exec.Cmd).Start
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = 30 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// setPrograms finds what is run.
func (c *PrivateConfig) setPrograms() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it needs root, this is user %d; OCI containers are not available, Wasm containers are", ErrCannotRun, os.Geteuid())
	}
	if c.Binary == "" {
		var err error
		if c.Binary, err = exec.LookPath("containerd"); err != nil {
			return fmt.Errorf("%w: it isn't installed (apt-get install containerd); OCI containers are not available, Wasm containers are", ErrCannotRun)
		}
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return fmt.Errorf("%w: runc isn't installed (apt-get install runc)", ErrCannotRun)
	}
	for _, d := range []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"} {
		if _, err := os.Stat(filepath.Join(d, "bridge")); c.CNIBinDir == "" && err == nil {
			c.CNIBinDir = d
		}
	}
	if c.CNIBinDir == "" {
		return fmt.Errorf("%w: no CNI plugins in /opt/cni/bin or /usr/lib/cni (apt-get install containernetworking-plugins)", ErrCannotRun)
	}
	return nil
}

// overlayWorks tries an overlay mount in dir: not every file system can be an
// upper layer.
func overlayWorks(dir string) bool {
	if os.MkdirAll(dir, 0o711) != nil {
		return false
	}
	tmp, err := os.MkdirTemp(dir, "overlay-*")
	if err != nil {
		return false
	}
	defer os.RemoveAll(tmp)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if os.Mkdir(filepath.Join(tmp, d), 0o755) != nil {
			return false
		}
	}
	opts := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", tmp)
	if unix.Mount("overlay", filepath.Join(tmp, "merged"), "overlay", 0, opts) != nil {
		return false
	}
	return unix.Unmount(filepath.Join(tmp, "merged"), 0) == nil
}

// write makes the folders, containerd's configuration and the network's.
func (c *PrivateConfig) write() error {
	for _, d := range []string{c.root(), c.state(), c.CNIConfDir, filepath.Dir(c.socket())} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return err
		}
	}
	if err := os.WriteFile(c.configFile(), []byte(c.toml()), 0o600); err != nil {
		return err
	}
	if !c.Pool.IsValid() {
		return nil
	}
	return c.network().Write()
}

func (c *PrivateConfig) network() network.Private {
	return network.Private{Name: "coracle-" + c.Name, Dir: c.Dir, ConfDir: c.CNIConfDir, Pool: c.Pool}
}

// endFormer ends the containerd of a caller that was killed: one that has this
// very configuration on its command line.
func (c *PrivateConfig) endFormer(ctx context.Context) error {
	raw, err := os.ReadFile(c.pidFile())
	if err != nil {
		return nil
	}
	var pid int
	if _, err := fmt.Sscan(string(raw), &pid); err != nil || pid <= 1 {
		return nil
	}
	mine := func() bool {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return err == nil && strings.Contains(string(cmdline), "\x00"+c.configFile()+"\x00")
	}
	for i := 0; mine(); i++ {
		sig := syscall.SIGTERM
		if i == 100 {
			sig = syscall.SIGKILL
		}
		if i == 0 || i == 100 {
			if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("process %d of a former run: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// toml is a configuration of version 2: containerd 1.6 reads no other, and 2.x
// migrates it.
func (c *PrivateConfig) toml() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("version = 2")
	p("root = %q", c.root())
	p("state = %q", c.state())
	p("oom_score = 0")
	p("disabled_plugins = [\"io.containerd.internal.v1.opt\", \"io.containerd.tracing.processor.v1.otlp\", \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.aufs\"]")
	p("[grpc]")
	p("  address = %q", c.socket())
	// Its own, or a second one on this machine would take the first one's place.
	p("[plugins.\"io.containerd.nri.v1.nri\"]")
	p("  socket_path = %q", c.nriSocket())
	p("[plugins.\"io.containerd.grpc.v1.cri\"]")
	p("  sandbox_image = %q", c.SandboxImage)
	p("  stream_server_address = \"127.0.0.1\"")
	p("  stream_server_port = \"0\"")
	p("  enable_tls_streaming = false")
	p("  disable_apparmor = %v", !exists("/sys/module/apparmor/parameters/enabled"))
	// Without CAP_SYS_RESOURCE a sandbox with a lower oom_score_adj can't start.
	p("  restrict_oom_score_adj = %v", !canLowerOOMScore())
	p("  tolerate_missing_hugetlb_controller = true")
	p("  [plugins.\"io.containerd.grpc.v1.cri\".cni]")
	p("    bin_dir = %q", c.CNIBinDir)
	p("    conf_dir = %q", c.CNIConfDir)
	p("    max_conf_num = 1")
	p("  [plugins.\"io.containerd.grpc.v1.cri\".containerd]")
	p("    snapshotter = %q", c.Snapshotter)
	p("    default_runtime_name = \"runc\"")
	p("    discard_unpacked_layers = false")
	p("    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]")
	p("      runtime_type = \"io.containerd.runc.v2\"")
	p("      [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]")
	p("        SystemdCgroup = false")
	p("  [plugins.\"io.containerd.grpc.v1.cri\".registry]")
	p("    config_path = %q", c.RegistryHosts)
	return b.String()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// canLowerOOMScore says whether this process may protect others from the OOM
// killer: CAP_SYS_RESOURCE is in the effective set.
func canLowerOOMScore() bool {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "CapEff:"); ok {
			var caps uint64
			if _, err := fmt.Sscanf(strings.TrimSpace(rest), "%x", &caps); err != nil {
				return false
			}
			return caps&(1<<unix.CAP_SYS_RESOURCE) != 0
		}
	}
	return false
}
