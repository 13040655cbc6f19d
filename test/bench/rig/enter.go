package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// insideEnv marks the process that has namespaces of its own.
const insideEnv = "CORACLE_BENCH_INSIDE"

// Enter runs this program again as root in a network and a mount namespace of its
// own, so that bridges, rules and mounts stay off the host, and ends with that
// one's exit code. Inside it returns at once.
func Enter() {
	if os.Getenv(insideEnv) != "" {
		return
	}
	name := filepath.Base(os.Args[0])
	fail := func(code int, err any) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(code)
	}
	if os.Geteuid() != 0 {
		fail(2, "needs root, for containerd and namespaces of its own")
	}
	script := `mount --make-rshared / && mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link set lo up && exec "$0" "$@"`
	self, err := os.Executable()
	if err != nil {
		fail(1, err)
	}
	cmd := exec.Command("unshare", append([]string{"--net", "--mount", "--propagation", "private", "sh", "-c", script, self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	if exit, ok := err.(*exec.ExitError); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fail(1, err)
	}
	os.Exit(0)
}
