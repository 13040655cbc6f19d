// Package rig is what all benches of this folder do: call the operator's tool, wait.
package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const look = 50 * time.Millisecond

// Until waits until ok, at most within.
func Until(ctx context.Context, within time.Duration, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for !ok() {
		if Sleep(ctx, look) != nil {
			return fmt.Errorf("waited %s in vain until %s", within, what)
		}
	}
	return nil
}

// Sleep for d; the error is ctx's, if that ends before.
func Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Coracle runs the operator's tool of the folder bin.
func Coracle(ctx context.Context, bin string, args ...string) error {
	text, err := exec.CommandContext(ctx, filepath.Join(bin, "coracle"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("coracle %s: %w\n%s", args[0], err, text)
	}
	return nil
}

// Client of a cluster, without client-go's own limit of five calls a second, which
// would be measured, too.
func Client(kubeconfig string) (*kubernetes.Clientset, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	return kubernetes.NewForConfig(cfg)
}

// PID that `coracle up` noted for a process in its data folder.
func PID(root, process string) (int, error) {
	raw, err := os.ReadFile(filepath.Join(root, "run", process+".pid"))
	if err != nil {
		return 0, err
	}
	pid, _, _ := strings.Cut(string(raw), " ")
	return strconv.Atoi(pid)
}
