package network

import (
	"os/exec"
	"testing"
	"time"
)

func TestPluginsOfADeadCallerAreEnded(t *testing.T) {
	start := func(id string) chan error {
		t.Helper()
		cmd := exec.Command("sh", "-c", "sleep 60; true") // with a child, as plugins have for addresses
		cmd.Env = []string{"PATH=/usr/bin:/bin", "CNI_COMMAND=ADD", "CNI_CONTAINERID=" + id, "CNI_IFNAME=eth0"}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return ended
	}
	mine, other := start("abc"), start("abcd")
	(&CNI{}).EndAbandoned(t.Context(), "abc")
	select {
	case err := <-mine:
		if err == nil {
			t.Error("it ended by itself")
		}
	case <-time.After(10 * time.Second):
		t.Error("it runs on")
	}
	select {
	case err := <-other:
		t.Errorf("another pod's plugin ended: %v", err)
	default:
	}
	(&CNI{}).EndAbandoned(t.Context(), "abcd")
}
