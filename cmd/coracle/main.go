// Command coracle is the operator's tool.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/containerd/log"
	"github.com/spf13/cobra"
	kubectl "k8s.io/kubectl/pkg/cmd"

	"github.com/coracle-edge/coracle/cmd/coracle/up"
	"github.com/coracle-edge/coracle/internal/version"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "kubectl" {
		os.Exit(runKubectl(os.Args[1:]))
	}
	_ = log.SetLevel("error") // containerd's libraries warn of media types that they don't know
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		code, exit := 1, (*exitError)(nil)
		if errors.As(err, &exit) {
			code = exit.code
		}
		if exit == nil || exit.err != nil {
			fmt.Fprintln(os.Stderr, "coracle:", err)
		}
		os.Exit(code)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "coracle",
		Short:         "Kubernetes for boards",
		Version:       version.Node(), // adds --version
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(upCommand(), downCommand(), initCommand(), imageCommand(), wasmCommand(), tokenCommand(), nodeCommand(), caCommand(), brokerCommand(), traceCommand(), trafficCommand(), doctorCommand(),
		snapshotCommand(), restoreCommand(),
		&cobra.Command{Use: "kubectl", Short: "kubectl itself, for a machine that has none", DisableFlagParsing: true})
	return cmd
}

// runKubectl hands over to kubectl's own command, which exits by itself on errors.
func runKubectl(args []string) int {
	if os.Getenv("KUBECONFIG") == "" {
		if file := (up.Layout{Root: defaultDataDir()}).Kubeconfig(); readable(file) {
			os.Setenv("KUBECONFIG", file)
		}
	}
	os.Args = args
	if err := kubectl.NewDefaultKubectlCommand().Execute(); err != nil {
		return 1
	}
	return 0
}

// defaultDataDir is .coracle below the working directory.
func defaultDataDir() string {
	dir, err := filepath.Abs(".coracle")
	if err != nil {
		return ".coracle"
	}
	return dir
}

func readable(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// kubeconfigFile is where the administrator's credentials are: --kubeconfig,
// $KUBECONFIG, the local cluster's, ~/.kube/config.
func kubeconfigFile(flag string) (string, error) {
	home, _ := os.UserHomeDir()
	for _, file := range []string{flag, os.Getenv("KUBECONFIG"), (up.Layout{Root: defaultDataDir()}).Kubeconfig(), filepath.Join(home, ".kube", "config")} {
		if file == "" {
			continue
		}
		if readable(file) {
			return file, nil
		}
		if file == flag {
			return "", fmt.Errorf("--kubeconfig %s: no such readable file", file)
		}
	}
	return "", errors.New("no kubeconfig: give --kubeconfig FILE, or run this beside a cluster that `coracle up` started")
}
