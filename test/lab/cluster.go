package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Coracle runs the operator's tool of the folder bin and returns all that it
// printed.
func Coracle(bin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "coracle"), args...)
	cmd.Dir = os.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("coracle %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// opening is what kubectl says when it hears the empty message by which the API server
// opens the lowest stream (createWebSocketStreams) before it has made that itself.
var opening = regexp.MustCompile(`(?m)^E\d{4} .* websocket\.go:\d+\] Unknown stream id 1, discarding message\n`)

// Kubectl runs the machine's kubectl, or our own where there is none.
func Kubectl(bin, kubeconfig, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	program, err := exec.LookPath("kubectl")
	if err != nil {
		program, args = filepath.Join(bin, "coracle"), append([]string{"kubectl"}, args...)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out.String())
	}
	return opening.ReplaceAllString(out.String(), ""), err
}

// ClusterDown stops the cluster of a data folder, whose Layout has this ID. Nothing
// of it is left then but its files.
func ClusterDown(bin, dir, id string) error {
	if text, err := Coracle(bin, "down", "--data-dir", dir); err != nil {
		return fmt.Errorf("%w: %s", err, text)
	}
	left, err := MountsBelow(dir)
	if err != nil {
		return err
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, file := range processes {
		if cmdline, _ := os.ReadFile(file); bytes.Contains(cmdline, []byte(dir+"/")) {
			left = append(left, string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	networks, err := filepath.Glob(filepath.Join(dir, "nodes", "*", "containerd", "cni", "*.conflist"))
	if err != nil {
		return err
	}
	for _, file := range networks {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if _, after, ok := bytes.Cut(raw, []byte(`"bridge": "`)); ok {
			name, _, _ := bytes.Cut(after, []byte(`"`))
			if _, err := net.InterfaceByName(string(name)); err == nil {
				left = append(left, "interface "+string(name))
			}
		}
	}
	// Of isolated nodes: the bridge, and what is left of their cables and cgroups.
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		if strings.HasPrefix(i.Name, "cor-") && strings.Contains(i.Name, id[:7]) {
			left = append(left, "interface "+i.Name)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/coracle-" + id, "/sys/fs/cgroup/*/coracle-" + id} {
		cgroups, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		left = append(left, cgroups...)
	}
	if rules, err := exec.Command("iptables-save").Output(); err == nil && bytes.Contains(rules, []byte(id)) {
		left = append(left, string(rules))
	}
	if len(left) > 0 {
		return fmt.Errorf("left after `coracle down --data-dir %s`:\n%s", dir, strings.Join(left, "\n"))
	}
	return nil
}

// ClusterLogs shows the end of each process's log.
func ClusterLogs(out io.Writer, dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, "logs", "*.log"))
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		lines := strings.Split(string(raw), "\n")
		if len(lines) > 60 {
			lines = lines[len(lines)-60:]
		}
		fmt.Fprintf(out, "=== %s\n%s\n", f, strings.Join(lines, "\n"))
	}
}
