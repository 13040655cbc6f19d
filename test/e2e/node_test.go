package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/examples"
)

// A node says the version of the build that the API server says, too.
func TestNodesSayWhichBuildTheyAre(t *testing.T) {
	var v struct {
		ServerVersion struct{ GitVersion string } `json:"serverVersion"`
	}
	// A kubectl of another version adds a warning behind it.
	if err := json.NewDecoder(strings.NewReader(shared.must(t, "version", "-o", "json"))).Decode(&v); err != nil {
		t.Fatal(err)
	}
	server := v.ServerVersion.GitVersion
	if !regexp.MustCompile(`^v1\.36\.\d+\+coracle-[0-9A-Za-z.-]+$`).MatchString(server) {
		t.Errorf("the server is %q", server)
	}
	for _, node := range shared.state.Nodes {
		if got := shared.must(t, "get", "node", node, "-o", "jsonpath={.status.nodeInfo.kubeletVersion}"); got != server {
			t.Errorf("%s is %q, the server %q", node, got, server)
		}
	}
	for program, want := range map[string]string{"edgelet": server, "coracle": "coracle version " + server, "crishim": strings.SplitN(server, "+coracle-", 2)[1]} {
		out, err := exec.Command(filepath.Join(binDir(), program), "--version").Output()
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s --version: %q, %v, want %q", program, out, err, want)
		}
	}
}

// A pod that needs a feature goes to a node that declares it, and one that no
// node has is named to its owner.
func TestAPodThatNeedsAFeature(t *testing.T) {
	ns := shared.namespace(t)
	with := func(name, features string) string {
		return strings.Replace(wasmPod(name, examples.HelloImage), "metadata: {", fmt.Sprintf("metadata: {annotations: {coracle.dev/requires-features: %q}, ", features), 1)
	}
	shared.apply(t, ns, with("can", "wasm, Sidecars"))
	shared.must(t, "wait", "-n", ns, "--for=jsonpath={.status.phase}=Running", "pod/can", "--timeout=60s")
	shared.apply(t, ns, with("cannot", "wasm, Teleport"))
	shared.shows(t, 20*time.Second, []string{"0/2 nodes are available", "didn't declare the required feature(s) Teleport"}, "get", "events", "-n", ns)
	// Nor does a node take it that it is given to by name.
	shared.apply(t, ns, with("forced", "Teleport")+"  nodeName: "+shared.state.Nodes[0]+"\n")
	shared.shows(t, 60*time.Second, []string{"PodFeatureUnsupported", "Teleport"}, "get", "pod", "-n", ns, "forced", "-o", "jsonpath={.status}")
}

// doctor runs `coracle doctor` and returns what it printed, what it complained of,
// and its exit code.
func doctor(t *testing.T, args ...string) (out, complaint string, code int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(binDir(), "coracle"), append([]string{"doctor"}, args...)...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

func TestDoctorOnThisMachine(t *testing.T) {
	out, complaint, code := doctor(t, "--data-dir", t.TempDir())
	t.Logf("exit code %d\n%s", code, out)
	levels := map[string]int{}
	names := map[string]string{}
	for _, line := range strings.Split(out, "\n") {
		for _, level := range []string{"OK", "WARN", "FAIL"} {
			if rest, ok := strings.CutPrefix(line, fmt.Sprintf("%-4s  ", level)); ok {
				levels[level]++
				name, what, _ := strings.Cut(rest, " ")
				names[name] = strings.TrimSpace(what)
			}
		}
	}
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		t.Fatal(err)
	}
	for name, word := range map[string]string{
		"board": "Linux " + unix.ByteSliceToString(uname.Release[:]), "cpu": "agent for " + runtime.GOARCH, "memory": "MiB",
		"clock": time.Now().UTC().Format("2006-01-"), "storage": "coracle", "space": "GB free", "cgroups": "", "cgroup-memory": "", "user-namespaces": "",
	} {
		if what, ok := names[name]; name != "storage" && (!ok || !strings.Contains(what, word)) || name == "storage" && !ok {
			t.Errorf("%s: %q, want %q in it", name, what, word)
		}
	}
	if want := fmt.Sprintf("%d ok, %d to look at, %d wrong", levels["OK"], levels["WARN"], levels["FAIL"]); !strings.Contains(out, "\n"+want+"\n") {
		t.Errorf("the last line isn't %q", want)
	}
	verdict(t, levels["FAIL"], complaint, code)

	// The same as data.
	raw, complaint, code := doctor(t, "--data-dir", t.TempDir(), "-o", "json")
	var report struct {
		Findings []struct{ Name, Level, What, Do string }
	}
	if err := json.Unmarshal([]byte(raw), &report); err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	if len(report.Findings) != len(names) {
		t.Errorf("%d findings as data, %d as text", len(report.Findings), len(names))
	}
	verdict(t, levels["FAIL"], complaint, code)
}

// verdict: what is wrong shows in the exit code.
func verdict(t *testing.T, wrong int, complaint string, code int) {
	t.Helper()
	switch {
	case wrong == 0 && (code != 0 || complaint != ""):
		t.Errorf("exit code %d and %q although nothing is wrong", code, complaint)
	case wrong > 0 && (code != 1 || !strings.Contains(complaint, "can't run pods as it is")):
		t.Errorf("exit code %d and %q, %d things are wrong", code, complaint, wrong)
	}
}

// A data folder in memory is wrong on any machine: the exit code says so, and the
// text says what to do.
func TestDoctorFindsWhatIsWrong(t *testing.T) {
	const dir = "/dev/shm"
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil || int64(s.Type) != unix.TMPFS_MAGIC {
		t.Skipf("%s is no tmpfs here: %v", dir, err)
	}
	out, complaint, code := doctor(t, "--data-dir", filepath.Join(dir, "coracle"))
	for _, want := range []string{"FAIL  storage", "/dev/shm/coracle on memory", "gone after a reboot", "do:  give --data-dir a folder on a disk"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
	verdict(t, 1, complaint, code)
	_, complaint, code = doctor(t, "--data-dir", filepath.Join(dir, "coracle"), "-o", "json")
	verdict(t, 1, complaint, code)
	if _, err := os.Stat(filepath.Join(dir, "coracle")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the doctor makes folders: %v", err)
	}
}

func TestDoctorRecords(t *testing.T) {
	out, complaint, code := doctor(t, "--record")
	if code != 0 || complaint != "" || !strings.HasPrefix(out, "-- ") || !strings.Contains(out, "\n-- proc/cpuinfo --\n") || !strings.Contains(out, "\n-- proc/self/mountinfo --\n") {
		t.Errorf("exit code %d, %s\n%s", code, complaint, out)
	}
}
