package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	fleetapi "github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
	"github.com/coracle-edge/coracle/controlplane/leadership"
)

// options are the flags.
type options struct {
	dataDir      string
	pkiDir       string
	bindAddress  string
	advertise    string
	securePort   int
	mqttPort     int
	fleetPort    int
	portFallback bool
	hosts        []string

	etcdEndpoints                         []string
	etcdCAFile, etcdCertFile, etcdKeyFile string
	leaseDuration                         time.Duration

	snapshotDir      string
	snapshotInterval time.Duration
	snapshotKeep     int
	snapshotBytes    int64
	restore          string
	markRestored     bool

	localPath     bool
	podRoutes     []netip.Prefix
	mqttURL       string
	nodeKeepalive time.Duration
	linkClasses   fleetapi.LinkClasses
	logLevel      slog.Level
	klogLevel     int
}

func parseFlags(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("controlplane", flag.ContinueOnError)
	fs.StringVar(&o.dataDir, "data-dir", "", "folder of all state: etcd, keys, kubeconfig (required)")
	fs.StringVar(&o.pkiDir, "pki-dir", "", "folder of the cluster's keys, which all its control planes share; pki in --data-dir if unset")
	fs.StringVar(&o.bindAddress, "bind-address", "127.0.0.1", "address of all listeners")
	fs.StringVar(&o.advertise, "advertise-address", "", "address of the API server in the endpoints of the kubernetes Service; the default route's interface if unset")
	fs.IntVar(&o.securePort, "secure-port", 6443, "port of the Kubernetes API")
	fs.IntVar(&o.mqttPort, "mqtt-port", 8883, "port of the embedded MQTT broker")
	fs.IntVar(&o.fleetPort, "fleet-port", 6444, "port where nodes join and open tunnels")
	fs.BoolVar(&o.portFallback, "port-fallback", false, "take another port where one is in use, and write it to run/controlplane.json")
	hosts := fs.String("hosts", "", "comma-separated names and addresses under which clients and nodes reach this machine, for its certificates")
	endpoints := fs.String("etcd-endpoints", "", "comma-separated URLs of an external etcd; embedded if unset")
	fs.StringVar(&o.etcdCAFile, "etcd-cafile", "", "CA of the external etcd")
	fs.StringVar(&o.etcdCertFile, "etcd-certfile", "", "client certificate for the external etcd")
	fs.StringVar(&o.etcdKeyFile, "etcd-keyfile", "", "key of --etcd-certfile")
	fs.DurationVar(&o.leaseDuration, "lease-duration", 10*time.Second, "with an external etcd: how long after its last sign of life another control plane takes over")
	fs.StringVar(&o.snapshotDir, "snapshot-dir", "", "folder of snapshots of etcd; snapshots in --data-dir if unset")
	fs.DurationVar(&o.snapshotInterval, "snapshot-interval", 24*time.Hour, "how often a snapshot of etcd is taken if something changed; 0 for none")
	fs.IntVar(&o.snapshotKeep, "snapshot-keep", 7, "how many snapshots are kept of each reason (scheduled, requested, upgrade)")
	snapshotMiB := fs.Int64("snapshot-max-mib", 512, "bound of all kept snapshots together, in MiB")
	fs.StringVar(&o.restore, "restore", "", "put this snapshot, a file or a name in the folder of snapshots, in the place of the embedded etcd's data, and exit; nodes keep what they run until `coracle restore confirm`")
	fs.BoolVar(&o.markRestored, "mark-restored", false, "say in etcd that it was put back to an earlier time by other means than --restore, and exit; no control plane may run on it meanwhile")
	fs.BoolVar(&o.localPath, "local-path", true, "make StorageClass "+localvolumes.Class+", whose volumes are folders of nodes, if it isn't there; the default one unless another is")
	routes := fs.String("pod-routes", "", "comma-separated networks (CIDR) of pods that this machine reaches by itself; all other pods are reached through their nodes' tunnels")
	fs.StringVar(&o.mqttURL, "mqtt-url", "", "URL of an external MQTT broker; embedded if unset")
	fs.DurationVar(&o.nodeKeepalive, "node-keepalive", 0, "how often an idle node says that it is there, whatever its link class; that of the class if 0")
	o.linkClasses = fleetapi.DefaultClasses()
	fs.Func("link-class", "change a link class (lan, wifi, lte, satellite): NAME:KEY=VALUE,... with the keys keepalive, jitter, slots, retry, gather, answer, grace; may be repeated", o.linkClasses.Set)
	fs.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.IntVar(&o.klogLevel, "v", 0, "verbosity of Kubernetes' own log")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q: there are only flags", fs.Arg(0))
	}
	if o.dataDir == "" {
		return o, errors.New("--data-dir is required: the folder where this cluster lives")
	}
	if o.snapshotKeep < 1 {
		return o, fmt.Errorf("--snapshot-keep %d: at least one is kept; --snapshot-interval 0 takes none", o.snapshotKeep)
	}
	if o.pkiDir == "" {
		o.pkiDir = filepath.Join(o.dataDir, "pki")
	}
	if o.leaseDuration < leadership.MinDuration {
		return o, fmt.Errorf("--lease-duration %v: at least %v", o.leaseDuration, leadership.MinDuration)
	}
	if o.snapshotDir == "" {
		o.snapshotDir = filepath.Join(o.dataDir, "snapshots")
	}
	for _, text := range list(*routes) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return o, fmt.Errorf("--pod-routes: %w; want networks such as 10.42.0.0/16", err)
		}
		o.podRoutes = append(o.podRoutes, p)
	}
	o.snapshotBytes = *snapshotMiB << 20
	o.hosts, o.etcdEndpoints = list(*hosts), list(*endpoints)
	if o.restore != "" && len(o.etcdEndpoints) > 0 {
		return o, errors.New("--restore is for the embedded etcd: put an external one back with `etcdutl snapshot restore`, then run this with --mark-restored in its place")
	}
	return o, nil
}

// list splits a comma-separated flag.
func list(s string) []string {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}
