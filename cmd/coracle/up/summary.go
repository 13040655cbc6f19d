package up

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coracle-edge/coracle/cmd/coracle/image"
	"github.com/coracle-edge/coracle/examples"
)

// HelloTimeout is how long the example may take from its manifest to Running.
const HelloTimeout = 60 * time.Second

// Hello pushes the example's module, applies its manifest with kubectl, waits
// until it runs and shows the operator the cluster: how to reach it, what is in
// it, what the pod says and the way it took.
func Hello(ctx context.Context, o Options, s State, out io.Writer) error {
	l := Layout{Root: o.DataDir}
	a, err := image.New(examples.HelloModule, time.Time{})
	if err != nil {
		return err
	}
	if _, err := image.Push(ctx, a, examples.HelloImage, s.HostsDir); err != nil {
		return err
	}
	manifest := filepath.Join(l.Root, "run", "hello.yaml")
	if err := writeFile(manifest, examples.HelloManifest, 0o644); err != nil {
		return err
	}
	self := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, filepath.Join(o.BinDir, "coracle"), args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+l.Kubeconfig())
		cmd.Stdout, cmd.Stderr = out, out
		return cmd
	}
	quiet := func(args ...string) error {
		cmd := self(args...)
		cmd.Stdout, cmd.Stderr = nil, nil
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("coracle %s: %w\n%s", args[0], err, text)
		}
		return nil
	}
	// The namespace's default service account comes with a controller's first pass.
	if err := quiet("kubectl", "wait", "--for=create", "serviceaccount/default", "--timeout=30s"); err != nil {
		return err
	}
	for _, node := range s.Nodes {
		if err := quiet("kubectl", "wait", "--for=create", "node/"+node, "--timeout=30s"); err != nil {
			return fmt.Errorf("node %s did not register: %w\n%s", node, err, tail(l.Log(node), 15))
		}
		if err := quiet("kubectl", "wait", "--for=condition=Ready", "node/"+node, "--timeout=30s"); err != nil {
			return fmt.Errorf("node %s did not become ready: %w\n%s", node, err, tail(l.Log(node), 15))
		}
	}
	if err := quiet("kubectl", "apply", "-f", manifest); err != nil {
		return err
	}
	if err := quiet("kubectl", "wait", "--for=jsonpath={.status.phase}=Running", "pod/hello", "--timeout="+HelloTimeout.String()); err != nil {
		describe := self("kubectl", "describe", "pod/hello")
		_ = describe.Run()
		return fmt.Errorf("the hello pod does not run: %w", err)
	}

	fmt.Fprintf(out, "\n%s", l.Reach(s))
	for _, args := range [][]string{
		{"kubectl", "get", "nodes,pods", "-o", "wide"},
		{"kubectl", "logs", "hello"},
		{"trace", "hello"},
	} {
		fmt.Fprintf(out, "$ coracle %s\n", strings.Join(args, " "))
		if err := self(args...).Run(); err != nil {
			return fmt.Errorf("coracle %s: %w", strings.Join(args, " "), err)
		}
		fmt.Fprintln(out)
	}
	list := self("kubectl", "get", "nodes", "-l", "coracle.dev/oci=absent", "-o", "jsonpath={.items[*].metadata.name}")
	list.Stdout = nil
	names, err := list.Output()
	if err != nil || len(names) == 0 {
		return err
	}
	why := "containerd is not installed"
	if os.Geteuid() != 0 {
		why = fmt.Sprintf("OCI containers need root and containerd, and this is user %d", os.Geteuid())
	}
	fmt.Fprintf(out, "%s: Wasm pods only (label coracle.dev/oci=absent); %s.\n\n", names, why)
	return nil
}
