package oci_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// TestPausePrograms runs each board's pause program: it waits, and ends when
// it is asked to.
func TestPausePrograms(t *testing.T) {
	for arch, qemu := range map[string][]string{
		"amd64": {"qemu-x86_64-static"}, "arm64": {"qemu-aarch64-static"}, "arm": {"qemu-arm-static", "-cpu", "arm1176"}, "riscv64": {"qemu-riscv64-static"},
	} {
		t.Run(arch, func(t *testing.T) {
			lab.Need(t, qemu[0])
			cmd := exec.Command(qemu[0], append(qemu[1:], "pause/pause-"+arch)...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case err := <-ended:
				t.Fatalf("it ended by itself: %v", err)
			case <-time.After(500 * time.Millisecond):
			}
			_ = cmd.Process.Signal(syscall.SIGTERM)
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(5 * time.Second):
				_ = cmd.Process.Kill()
				t.Error("SIGTERM doesn't end it")
			}
		})
	}
}

// TestPauseProgramsAreOfTheirSource builds them again.
func TestPauseProgramsAreOfTheirSource(t *testing.T) {
	lab.Need(t, "clang", "ld.lld")
	if v, _ := exec.Command("clang", "--version").Output(); !strings.Contains(string(v), "version 14.") {
		t.Skipf("they were built with clang 14, this is %.40q", v)
	}
	dir := t.TempDir()
	for _, f := range []string{"pause.c", "build.sh"} {
		b, err := os.ReadFile("pause/" + f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(filepath.Join(dir, "build.sh")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, arch := range []string{"amd64", "arm64", "arm", "riscv64"} {
		built, _ := os.ReadFile(filepath.Join(dir, "pause-"+arch))
		committed, _ := os.ReadFile("pause/pause-" + arch)
		if len(built) == 0 || string(built) != string(committed) {
			t.Errorf("pause-%s: what is committed isn't what the source gives: run go generate", arch)
		}
	}
}

func TestPrivateReplacesTheFormer(t *testing.T) {
	lab.NeedNamespaces(t)
	dir, err := os.MkdirTemp("", "cor-ctd-*")
	if err != nil {
		t.Fatal(err)
	}
	former := lab.StartContainerdIn(t, dir, "", true)
	// Its starter was killed: nobody stops it, and another start comes.
	next := lab.StartContainerdIn(t, dir, "", false)
	select {
	case <-former.Done():
	default:
		t.Error("the former containerd runs on")
	}
	c, err := oci.New(next.Socket(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	st, err := c.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, cond := range st.GetStatus().GetConditions() {
		if !cond.GetStatus() {
			t.Errorf("%s: %s", cond.GetType(), cond.GetMessage())
		}
	}
}

func TestPrivateSaysWhyNot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Setenv("PATH", t.TempDir())
	}
	_, err := oci.StartPrivate(context.Background(), oci.PrivateConfig{Dir: t.TempDir(), Pool: netip.MustParsePrefix("10.1.0.0/16")})
	if !errors.Is(err, oci.ErrCannotRun) || !strings.Contains(err.Error(), "Wasm containers are") {
		t.Errorf("got %v", err)
	}
}
