//go:build slow

package critest

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/crishim/network"
	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/test/lab"
)

var (
	focus    = flag.String("focus", "", "only the specs that match (a regular expression)")
	runs     = flag.String("runs", "containerd,crishim,wasm", "which of the runs")
	versions = flag.String("versions", newest, "which versions of critest, in a comma list")
)

// newest of the versions of critest that are built. wasm-skips.txt has its specs,
// of which the others lack some.
const newest = "v1.37.0"

// TestSuite runs critest against containerd alone, against crishim with that
// containerd behind it, and against crishim alone with Wasm images. Every spec of
// the second and the third is a subtest.
func TestSuite(t *testing.T) {
	lab.NeedNamespaces(t)
	for version := range strings.SplitSeq(*versions, ",") {
		t.Run(version, func(t *testing.T) { suite(t, newRig(t, version)) })
	}
}

func suite(t *testing.T, r *rig) {
	table := map[string]Outcomes{}
	for run := range strings.SplitSeq(*runs, ",") {
		switch run {
		case "containerd":
			table[run] = r.containerd(t)
		case "crishim":
			table[run] = r.crishim(t)
		case "wasm":
			table[run] = r.wasm(t)
		default:
			t.Fatalf("no run %q", run)
		}
	}
	r.settle(t, table["containerd"], table["crishim"])
	if err := os.WriteFile(filepath.Join(r.dir, "table-"+r.version+".txt"), []byte("critest "+r.version+"\n"+tableOf(table)), 0o644); err != nil {
		t.Error(err)
	}
	if ref := table["containerd"]; ref != nil {
		t.Run("containerd", func(t *testing.T) {
			if n := count(ref, Outcome.Passed); *focus == "" && n < 100 {
				t.Errorf("only %d specs pass on containerd alone: it is no reference", n)
			}
		})
		compare(t, ref, table["crishim"])
	}
	compareWasm(t, table["wasm"], skips(t), r.version == newest)
}

// settle runs those specs again on containerd alone, twice, whose outcome there was
// another one than through crishim: some are races that containerd itself loses now
// and then. An outcome that it shows so is no difference.
func (r *rig) settle(t *testing.T, ref, got Outcomes) {
	var names []string
	for _, name := range ref.Names() {
		if ref[name].verdict() != got[name].verdict() {
			names = append(names, name)
		}
	}
	if got == nil || len(names) == 0 || len(names) > 10 {
		return
	}
	for range 2 {
		again := r.containerd(t, "-ginkgo.focus="+namePattern(names))
		for _, name := range names {
			if o := again[name]; o.verdict() == got[name].verdict() && o.verdict() != ref[name].verdict() {
				t.Logf("containerd alone isn't sure of %s: %s, then %s", name, ref[name], o)
				ref[name] = o
			}
		}
	}
}

// compare holds crishim against containerd alone.
func compare(t *testing.T, ref, got Outcomes) {
	if got == nil {
		return
	}
	t.Run("crishim", func(t *testing.T) {
		for _, name := range ref.Names() {
			want, o := ref[name], got[name]
			if !want.Selected() && !o.Selected() {
				continue
			}
			t.Run(name, func(t *testing.T) {
				switch {
				case want.Passed() && !o.Passed():
					t.Errorf("passes on containerd alone, here it %s: %s", o.State, o.Message)
				case want.Skipped() != o.Skipped():
					t.Errorf("on containerd alone it %s (%s), here it %s (%s)", want.State, want.Message, o.State, o.Message)
				case want.Skipped():
					t.Skip("on containerd alone too: ", want.Message)
				case !want.Passed() && !o.Passed():
					t.Skip("fails on containerd alone too: ", firstLine(want.Message))
				}
			})
		}
	})
}

// compareWasm holds the run with Wasm images against the list of the specs that
// don't apply to them: every other one has to pass.
func compareWasm(t *testing.T, got Outcomes, skips map[string]string, all bool) {
	if got == nil {
		return
	}
	t.Run("wasm", func(t *testing.T) {
		for _, name := range got.Names() {
			o, why := got[name], skips[name]
			if !o.Selected() && why == "" && (*focus != "" || strings.Contains(name, "benchmark")) {
				continue
			}
			t.Run(name, func(t *testing.T) {
				switch {
				case why != "" && !o.Selected():
					t.Skip(why)
				case !o.Selected():
					t.Error("it was neither run nor is it in wasm-skips.txt")
				case !o.Passed():
					t.Errorf("%s: %s", o, o.Message)
				}
			})
		}
		for name := range skips {
			if _, ok := got[name]; !ok && all {
				t.Errorf("wasm-skips.txt names a spec that critest doesn't have: %q", name)
			}
		}
	})
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func skips(t *testing.T) map[string]string {
	f, err := os.Open("wasm-skips.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, err := ParseSkips(f)
	if err != nil {
		t.Fatal("wasm-skips.txt: ", err)
	}
	return out
}

func count(o Outcomes, is func(Outcome) bool) (n int) {
	for _, x := range o {
		if is(x) {
			n++
		}
	}
	return n
}

// tableOf prints the runs side by side.
func tableOf(runs map[string]Outcomes) string {
	cols := []string{"containerd", "crishim", "wasm"}
	all := Outcomes{}
	for _, o := range runs {
		for name, x := range o {
			if all[name].State == "" || x.Selected() {
				all[name] = x
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-11s %-11s %-11s %s\n", "containerd", "crishim", "Wasm", "spec")
	for _, name := range all.Names() {
		if !all[name].Selected() && strings.Contains(name, "benchmark") {
			continue
		}
		for _, c := range cols {
			s := "not run"
			if o, ok := runs[c]; ok {
				s = o[name].String()
			}
			fmt.Fprintf(&b, "%-11s ", s)
		}
		fmt.Fprintln(&b, strings.TrimPrefix(name, "[k8s.io] "))
	}
	for _, c := range cols {
		if o, ok := runs[c]; ok {
			fmt.Fprintf(&b, "%s: %d specs, %d pass, %d skip themselves, %d fail, %d don't apply\n", c, len(o),
				count(o, Outcome.Passed), count(o, Outcome.Skipped),
				count(o, func(x Outcome) bool { return x.Selected() && !x.Passed() && !x.Skipped() }),
				count(o, func(x Outcome) bool { return !x.Selected() }))
		}
	}
	return b.String()
}

// rig has what the runs share.
type rig struct {
	version string // of critest
	root    string // of the repository
	tools   string // critest, containerd and its shim
	debian  string // packages that images are made of
	dir     string // reports and logs, kept
}

func newRig(t *testing.T, version string) *rig {
	t.Helper()
	root := lab.Root(t)
	r := &rig{version: version, root: root, tools: filepath.Join(root, "bin/tools/cri"), dir: filepath.Join(root, ".coracle/critest"), debian: filepath.Join(root, "bin/tools/debian")}
	for _, p := range []string{"critest-" + version, "containerd", "containerd-shim-runc-v2"} {
		if _, err := os.Stat(filepath.Join(r.tools, p)); err != nil {
			t.Fatalf("%v: `make critest` builds it", err)
		}
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// containerd has to find its own shim first.
	t.Setenv("PATH", r.tools+":"+os.Getenv("PATH"))
	return r
}

// registry serves images under all names.
func (r *rig) registry(t *testing.T, images map[string]*lab.Image) *lab.Registry {
	t.Helper()
	reg := lab.StartRegistry(t)
	reg.ServeAll(t)
	for name, img := range images {
		reg.Push(t, name, img)
	}
	return reg
}

// startContainerd starts one of its own, with nothing in it.
func (r *rig) startContainerd(t *testing.T, hosts string) *oci.Private {
	t.Helper()
	lab.Need(t, "runc")
	dir, err := os.MkdirTemp("", "cor-cri-*") // a short path: sockets have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	// t's cleanups run last first: the log is kept before the folder goes.
	p := lab.StartContainerdOf(t, oci.PrivateConfig{Dir: dir, RegistryHosts: hosts, Binary: filepath.Join(r.tools, "containerd")}, true)
	t.Cleanup(func() {
		r.keep(filepath.Join(dir, "containerd.log"), strings.ReplaceAll(t.Name(), "/", "-")+"-containerd.log")
	})
	return p
}

func (r *rig) keep(from, name string) {
	if data, err := os.ReadFile(from); err == nil {
		_ = os.WriteFile(filepath.Join(r.dir, name), data, 0o644)
	}
}

func (r *rig) containerd(t *testing.T, args ...string) (out Outcomes) {
	t.Run("run containerd", func(t *testing.T) {
		reg := r.registry(t, ociImages(t, r.debian))
		c := r.startContainerd(t, reg.HostsDir)
		out = r.critest(t, "containerd", c.Socket(), append(r.nri(c), args...)...)
	})
	return out
}

func (r *rig) crishim(t *testing.T) (out Outcomes) {
	t.Run("run crishim", func(t *testing.T) {
		reg := r.registry(t, ociImages(t, r.debian))
		c := r.startContainerd(t, reg.HostsDir)
		socket := r.startCrishim(t, "crishim", "--containerd", c.Socket(), "--registry-hosts", reg.HostsDir,
			"--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir())
		out = r.critest(t, "crishim", socket, r.nri(c)...)
	})
	return out
}

// nri has plugins of critest's reach containerd, which v1.36.0 doesn't have.
func (r *rig) nri(c *oci.Private) []string {
	if r.version < "v1.37" {
		return nil
	}
	return []string{"-nri-socket=" + c.NRISocket()}
}

func (r *rig) wasm(t *testing.T) (out Outcomes) {
	t.Run("run wasm", func(t *testing.T) {
		reg := r.registry(t, wasmImages(t))
		dir := t.TempDir()
		net := network.Private{Name: "critest", Dir: dir, ConfDir: dir, Pool: netip.MustParsePrefix(lab.Pool)}
		if err := net.Write(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := net.Remove(); err != nil {
				t.Error(err)
			}
		})
		socket := r.startCrishim(t, "wasm", "--registry-hosts", reg.HostsDir, "--cni-conf-dir", dir)
		var names []string
		for name := range skips(t) {
			names = append(names, name)
		}
		slices.Sort(names)
		t.Setenv("TMPDIR", openTemp(t))
		args := []string{"-runtime-handler=wasm"}
		if len(names) > 0 {
			args = append(args, "-ginkgo.skip="+namePattern(names))
		}
		out = r.critest(t, "wasm", socket, args...)
	})
	return out
}

// startCrishim starts the real program, and ends it with the test.
func (r *rig) startCrishim(t *testing.T, name string, args ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cor-shim-*")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // guests of other users pass through
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(r.dir, r.version+"-"+name+"-crishim.log"))
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "cri.sock")
	program, runner := filepath.Join(r.root, "bin/crishim"), filepath.Join(r.root, "bin/wasmrunner")
	cmd := exec.Command(program, append([]string{"-v", "--listen", "unix://" + socket, "--state-dir", filepath.Join(dir, "state"), "--runner", runner}, args...)...)
	cmd.Stderr, cmd.Stdout = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("crishim ended with %v, see %s", err, log.Name())
		}
		log.Close()
		if err := lab.UnmountBelow(dir); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			return socket
		}
		if time.Now().After(end) {
			t.Fatalf("crishim doesn't listen: %v, see %s", err, log.Name())
		}
	}
}

// critest runs the suite against a socket and reads its report.
func (r *rig) critest(t *testing.T, name, socket string, args ...string) Outcomes {
	t.Helper()
	log, err := os.Create(filepath.Join(r.dir, r.version+"-"+name+"-critest.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	report := filepath.Join(t.TempDir(), "report.json")
	all := append([]string{"-runtime-endpoint=unix://" + socket, "-image-endpoint=unix://" + socket, "-config=/nonexistent",
		"-ginkgo.no-color", "-ginkgo.timeout=30m", "-ginkgo.seed=1", "-ginkgo.json-report=" + report}, args...)
	if *focus != "" {
		all = append(all, "-ginkgo.focus="+*focus)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 31*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(r.tools, "critest-"+r.version), all...)
	cmd.Stdout, cmd.Stderr = log, io.MultiWriter(log, os.Stderr)
	start := time.Now()
	runErr := cmd.Run() // it fails if a spec does
	slog.Info("critest", "version", r.version, "run", name, "took", time.Since(start).Round(time.Second), "err", runErr)
	f, err := os.Open(report)
	if err != nil {
		t.Fatalf("critest (%v) left no report: %v, see %s", runErr, err, log.Name())
	}
	defer f.Close()
	r.keep(report, r.version+"-"+name+".json")
	out, err := ParseReport(f)
	if err != nil {
		t.Fatalf("critest (%v): %v, see %s", runErr, err, log.Name())
	}
	return out
}
