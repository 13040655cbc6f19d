// Command edgelet is the agent of a node: it runs the pods that the control
// plane, or a folder of its own, says it should run.
//
// It starts in the order of what needs least (D7): state, board, container
// runtime, pods; then the link to the control plane. What ran before runs again
// without a network.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	stdlog "log"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/devices"
	"github.com/coracle-edge/coracle/edgelet/podresources"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/shutdown"
	"github.com/coracle-edge/coracle/edgelet/streams"
	"github.com/coracle-edge/coracle/edgelet/tunnel"
	"github.com/coracle-edge/coracle/internal/version"
	"github.com/coracle-edge/coracle/wasmruntime"
)

func main() {
	run := mainErr
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "reset" {
		run, args = resetMain, args[1:]
	}
	if err := run(args); err != nil {
		fmt.Fprintln(os.Stderr, "edgelet:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	dataDir, nodeName, nodeIP string
	kubeletDir                string
	localVolumes              string
	localVolumesGiven         bool
	join                      string
	joinRetry                 time.Duration
	standalone                bool

	runner, containerd, cniConfDir, cniBinDir, registryHosts string
	runtimeEndpoint                                          string
	wasmArtifacts, wasmTrusted                               string
	wasmCache                                                int64

	staticPods, resolvConf, clusterDNS, clusterDomain string
	unsafeSysctls, seccompDir                         string
	cgroupRoot, labels, linkClass                     string
	registerTaints, devicePlugins, systemBus          string
	podResources                                      string
	registerSchedulable                               bool
	shutdownGrace, shutdownCritical                   time.Duration
	shutdownByPriority                                string
	shutdownResume                                    bool
	affinity                                          affinityFlags
	maxPods                                           int64
	logMaxSize                                        int64
	logMaxFiles                                       int
	streams                                           int
	streamIdle                                        time.Duration
	stopPods, verbose, version                        bool
	imageAccess                                       string
	asKubelet                                         bool // this agent is the machine's kubelet: logs and folders of pods are where a kubelet has them
	resources                                         resourceFlags
}

const (
	defaultDataDir    = "/var/lib/coracle"
	defaultKubeletDir = "/var/lib/kubelet" // where every driver and plugin looks
	localVolumesDir   = "local-volumes"
)

// parse reads the command line; more may define flags besides the agent's own.
func parse(args []string, more func(*flag.FlagSet)) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("edgelet", flag.ContinueOnError)
	if more != nil {
		more(fs)
	}
	fs.StringVar(&o.dataDir, "data-dir", defaultDataDir, "everything this node keeps")
	fs.StringVar(&o.kubeletDir, "kubelet-dir", "", "where drivers of volumes and device plugins look for a kubelet: both register below it, and volumes of drivers are mounted there; default: "+defaultKubeletDir+". With it, or with the default --data-dir, the folders of pods are in its pods, and their logs shown in /var/log/pods and /var/log/containers")
	fs.StringVar(&o.localVolumes, "local-volumes-dir", "", "where volumes of StorageClass local-path get their folders, such as one on an SSD; it has to be there. Default: "+localVolumesDir+" in --data-dir")
	fs.StringVar(&o.nodeName, "node-name", "", "the node's name; default: the one it joined as, else the host's")
	fs.StringVar(&o.nodeIP, "node-ip", "", "comma list of the node's addresses; default: those of the interface with the default route")
	fs.StringVar(&o.join, "join", "", "the line that `coracle token create` printed; needed once")
	fs.DurationVar(&o.joinRetry, "join-retry", time.Minute, "the first pause before a refused join line is tried again, if this node has pods to look after; it doubles up to an hour")
	fs.BoolVar(&o.standalone, "standalone", false, "no control plane: static pods, and what was ordered before")
	fs.StringVar(&o.runner, "runner", "", "the wasmrunner program; default: beside this one")
	fs.StringVar(&o.containerd, "containerd", "", "containerd's socket; empty: no OCI containers")
	fs.StringVar(&o.cniConfDir, "cni-conf-dir", "/etc/cni/net.d", "CNI configuration; without one Wasm pods use the host's network")
	fs.StringVar(&o.cniBinDir, "cni-bin-dir", "", "comma list of folders with CNI plugins; default: /opt/cni/bin,/usr/lib/cni")
	fs.StringVar(&o.registryHosts, "registry-hosts", "/etc/containerd/certs.d", "registry hosts directory (hosts.toml)")
	fs.Int64Var(&o.wasmCache, "wasm-cache-bytes", wasmruntime.DefaultCacheBytes, "bound of compiled Wasm modules; what was used longest ago goes first, and nothing that a container uses")
	fs.StringVar(&o.wasmArtifacts, "wasm-artifacts", "", "folder with modules that `coracle wasm compile` made; empty: all are compiled here")
	fs.StringVar(&o.wasmTrusted, "wasm-trusted-keys", "/etc/coracle/wasm-keys", "folder with public keys, *.pem, that may have signed them")
	fs.StringVar(&o.runtimeEndpoint, "container-runtime-endpoint", "", "another CRI runtime's socket instead of the one inside")
	fs.StringVar(&o.staticPods, "static-pods", "", "folder of pods that this node runs by itself")
	fs.StringVar(&o.resolvConf, "resolv-conf", "/etc/resolv.conf", "the resolver configuration that pods get")
	fs.StringVar(&o.clusterDNS, "cluster-dns", "", "comma list of the cluster's name servers")
	fs.StringVar(&o.clusterDomain, "cluster-domain", "cluster.local", "the cluster's domain")
	fs.StringVar(&o.cgroupRoot, "cgroup-root", "/kubepods", "cgroup below which pods get theirs; ignored without root")
	fs.StringVar(&o.labels, "node-labels", "", "comma list of NAME=VALUE to label the node with")
	fs.StringVar(&o.linkClass, "link-class", "", "what kind of link this node has: lan, wifi, lte or satellite; it counts when the node registers, later the Node's label "+fleet.LabelLinkClass+" does")
	fs.StringVar(&o.registerTaints, "register-with-taints", "", "comma list of NAME=VALUE:EFFECT that the node has when it registers")
	fs.BoolVar(&o.registerSchedulable, "register-schedulable", true, "false: the node registers as cordoned")
	fs.StringVar(&o.devicePlugins, "device-plugin-dir", "", "where device plugins register; default: KUBELET-DIR/device-plugins, or DATA-DIR/device-plugins with another --data-dir than the default and no --kubelet-dir, so that of two agents on one machine each has its own")
	fs.DurationVar(&o.shutdownGrace, "shutdown-grace-period", 0, "how long pods have to end, one priority after the other, when systemd's logind says that the machine goes down; 0: they are killed with it and run again after it")
	fs.DurationVar(&o.shutdownCritical, "shutdown-grace-period-critical-pods", 0, "the part of it that is for critical pods, which end last")
	fs.StringVar(&o.systemBus, "system-bus", shutdown.DefaultBus, "the socket of D-Bus where logind is")
	fs.StringVar(&o.shutdownByPriority, "shutdown-grace-period-by-pod-priority", "", "comma list of PRIORITY=PERIOD instead of the two above")
	fs.BoolVar(&o.shutdownResume, "shutdown-resume-pods", false, "pods of restartPolicy Always aren't over after such a shutdown, as with a kubelet, but run again when the machine does: for boards that start where no control plane is")
	o.affinity.define(fs)
	fs.StringVar(&o.unsafeSysctls, "allowed-unsafe-sysctls", "", "comma list of sysctls, or of patterns ending in *, that pods may set beside the safe ones")
	fs.StringVar(&o.seccompDir, "seccomp-profile-root", pods.DefaultSeccompDir, "folder of the seccomp profiles that pods name as Localhost")
	fs.StringVar(&o.imageAccess, "image-pull-credentials-verification-policy", verifyPulled, "which pods may use an image that is here. "+verifyPulled+": of one that was pulled with a pod's imagePullSecrets, those whose own Secrets are the same; others have the registry asked; all may use what was brought otherwise. "+verifyNever+": all")
	fs.Int64Var(&o.maxPods, "max-pods", 0, "how many pods fit; default 110")
	fs.Int64Var(&o.logMaxSize, "container-log-max-size", 1<<20, "bytes of a container's log before it is rotated")
	fs.IntVar(&o.logMaxFiles, "container-log-max-files", 3, "how many rotated logs of a container are kept, the current one included")
	fs.IntVar(&o.streams, "streams", tunnel.DefaultStreams, "how many streams to the control plane may be open at once for kubectl (logs -f, exec, port-forward), and how many besides for connections to pods; more wait, and are refused if it takes too long")
	fs.DurationVar(&o.streamIdle, "stream-idle-timeout", streams.DefaultIdle, "how long nothing may pass on an exec, attach or port-forward before it is ended")
	o.resources.define(fs)
	fs.BoolVar(&o.stopPods, "stop-pods", false, "stop the pods when the agent is told to end; otherwise they outlive it")
	fs.BoolVar(&o.verbose, "v", false, "log what is done")
	fs.BoolVar(&o.version, "version", false, "print the version and end")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q; flags start with --", fs.Arg(0))
	}
	dir, err := filepath.Abs(o.dataDir)
	if err != nil {
		return nil, err
	}
	o.dataDir = dir
	if o.localVolumesGiven = o.localVolumes != ""; !o.localVolumesGiven {
		o.localVolumes = filepath.Join(o.dataDir, localVolumesDir)
	}
	if o.localVolumes, err = filepath.Abs(o.localVolumes); err != nil {
		return nil, err
	}
	base := cmp.Or(o.kubeletDir, defaultKubeletDir)
	if o.kubeletDir == "" && o.dataDir != defaultDataDir {
		base = o.dataDir
	}
	o.devicePlugins = cmp.Or(o.devicePlugins, filepath.Join(base, filepath.Base(devices.DefaultDir)))
	o.podResources = filepath.Join(base, filepath.Base(podresources.DefaultDir))
	// Of two agents on one machine only one can be where a kubelet is.
	o.asKubelet = o.kubeletDir != "" || o.dataDir == defaultDataDir
	o.kubeletDir = cmp.Or(o.kubeletDir, defaultKubeletDir)
	if !filepath.IsAbs(o.kubeletDir) {
		return nil, fmt.Errorf("--kubelet-dir %s: it has to be an absolute path, drivers of volumes are told it", o.kubeletDir)
	}
	if o.linkClass != "" {
		if err := fleet.CheckClass(o.linkClass); err != nil {
			return nil, fmt.Errorf("--link-class: %w", err)
		}
	}
	if o.imageAccess != verifyPulled && o.imageAccess != verifyNever {
		return nil, fmt.Errorf("--image-pull-credentials-verification-policy %s: it is %s or %s", o.imageAccess, verifyPulled, verifyNever)
	}
	if err := o.checkValues(); err != nil {
		return nil, err
	}
	if o.standalone && o.join != "" {
		return nil, errors.New("--standalone and --join exclude each other")
	}
	if o.streams < 1 || o.streamIdle <= 0 {
		return nil, fmt.Errorf("--streams %d and --stream-idle-timeout %s: at least one stream, and a time longer than nothing", o.streams, o.streamIdle)
	}
	if o.joinRetry <= 0 {
		return nil, fmt.Errorf("--join-retry %s: a pause must be longer than nothing", o.joinRetry)
	}
	if o.runner == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		o.runner = filepath.Join(filepath.Dir(exe), "wasmrunner")
	}
	return o, nil
}

func mainErr(args []string) error {
	o, err := parse(args, nil)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.version {
		fmt.Println(version.Node())
		return nil
	}
	tuneMemory()
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	// net/http prints what a container sends unasked, kilobytes at each probe.
	stdlog.SetOutput(slog.NewLogLogger(log.Handler(), slog.LevelDebug).Writer())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return run(ctx, o, log)
}

func split(list string) []string {
	var out []string
	for _, s := range strings.Split(list, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

func keyValues(list string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range split(list) {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("--node-labels: %q is not NAME=VALUE", s)
		}
		if k == fleet.LabelLinkClass {
			return nil, fmt.Errorf("--node-labels: %s is the administrator's to change: give the node's own with --link-class", k)
		}
		out[k] = v
	}
	return out, nil
}
