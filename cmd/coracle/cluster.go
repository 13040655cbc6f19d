package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/coracle-edge/coracle/cmd/coracle/up"
)

func upCommand() *cobra.Command {
	var o up.Options
	var detach, supervise, noHello bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a whole cluster on this machine, and the hello example on it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, out := cmd.Context(), cmd.OutOrStdout()
			if err := complete(&o); err != nil {
				return err
			}
			o.Notice = out
			o.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			hello := func(s up.State) error {
				if noHello {
					fmt.Fprint(out, up.Layout{Root: o.DataDir}.Reach(s))
					return nil
				}
				return up.Hello(ctx, o, s, out)
			}
			switch {
			case supervise:
				return up.Supervise(ctx, o, func(up.State) error { return nil })
			case detach:
				s, err := up.Detach(ctx, o, forward(cmd))
				if err != nil {
					return err
				}
				if err := hello(s); err != nil {
					return err
				}
				fmt.Fprintf(out, "It runs in the background; `coracle down` (or `make down`) stops it.\n")
				return nil
			default:
				return up.Supervise(ctx, o, func(s up.State) error {
					if err := hello(s); err != nil {
						return err
					}
					fmt.Fprintln(out, "It runs until Ctrl-C.")
					return nil
				})
			}
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.DataDir, "data-dir", defaultDataDir(), "where the cluster keeps everything")
	f.IntVar(&o.Nodes, "nodes", 1, "how many nodes")
	f.StringVar(&o.RegistryAddress, "registry-address", "127.0.0.1:5443", "where the registry listens; any other port if it is taken")
	f.StringVar(&o.BinDir, "bin-dir", "", "where controlplane, edgelet and wasmrunner are (default: beside coracle)")
	o.Isolate = up.IsolateAuto
	f.Var(&o.Isolate, "isolate", "whether nodes get network, mount and PID namespaces of their own, as boards on one LAN: auto does so as root with containerd and CNI plugins")
	f.BoolVar(&o.NoOutbound, "no-outbound", false, "isolated nodes reach each other and this machine, and nothing beyond it")
	f.StringVar(&o.Containerd, "containerd", "", "the containerd program of the nodes (default: the one in PATH)")
	f.StringVar(&o.CNIBinDir, "cni-bin-dir", "", "the folder of CNI plugins (default: /opt/cni/bin or /usr/lib/cni)")
	f.StringVar(&o.RegistryMirror, "registry-mirror", "", "URL of a registry from which nodes pull every image, whatever registry its name says; may be on this machine's loopback")
	f.StringVar(&o.RegistryHosts, "registry-hosts", "", "a registry hosts directory (containerd's certs.d layout) that nodes follow")
	f.BoolVarP(&detach, "detach", "d", false, "return once the pod runs and leave the cluster running")
	f.BoolVar(&noHello, "no-example", false, "do not apply the hello example")
	f.StringArrayVar(&o.ControlPlaneArgs, "controlplane-arg", nil, "one more argument for controlplane; may be repeated")
	f.StringArrayVar(&o.NodeArgs, "node-arg", nil, "one more argument for each edgelet; may be repeated")
	f.BoolVar(&supervise, "supervise", false, "run the processes and print nothing")
	_ = f.MarkHidden("supervise")
	return cmd
}

// forward repeats the flags that the operator set, for the detached process.
func forward(cmd *cobra.Command) []string {
	var args []string
	for _, name := range []string{"data-dir", "nodes", "registry-address", "bin-dir", "isolate", "no-outbound", "containerd", "cni-bin-dir", "registry-mirror", "registry-hosts"} {
		if f := cmd.Flags().Lookup(name); f.Changed {
			args = append(args, "--"+name+"="+f.Value.String())
		}
	}
	for _, name := range []string{"controlplane-arg", "node-arg"} {
		values, _ := cmd.Flags().GetStringArray(name)
		for _, v := range values {
			args = append(args, "--"+name+"="+v)
		}
	}
	return args
}

func complete(o *up.Options) error {
	if o.Nodes < 1 {
		return fmt.Errorf("--nodes %d: a cluster has at least one node", o.Nodes)
	}
	if o.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		o.BinDir = filepath.Dir(self)
	}
	for _, dir := range []*string{&o.DataDir, &o.BinDir, &o.Containerd, &o.CNIBinDir, &o.RegistryHosts} {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = abs
	}
	for _, name := range []string{"controlplane", "edgelet", "wasmrunner"} {
		if file := filepath.Join(o.BinDir, name); !readable(file) {
			return fmt.Errorf("%s is missing; `make build` builds it, --bin-dir says where it is", file)
		}
	}
	return nil
}

func downCommand() *cobra.Command {
	var dataDir string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the cluster that `coracle up` started; its data stays",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := filepath.Abs(dataDir)
			if err != nil {
				return err
			}
			return up.Down(dir, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", defaultDataDir(), "where the cluster keeps everything")
	return cmd
}

// initCommand is a board's first process, which `coracle up` starts.
func initCommand() *cobra.Command {
	return &cobra.Command{
		Use: up.InitCommand + " NAME DIR", Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error { return up.Init(args[0], args[1]) },
	}
}
