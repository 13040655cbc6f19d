package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const sample = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="8"><testsuite name="e2e">
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1.5"></testcase>
<testcase name="[It] [sig-node] Pods run [Conformance] [sig-node, Conformance]" status="passed" time="2.5"></testcase>
<testcase name="[It] [sig-node] Pods fail [Conformance] [sig-node, Conformance]" status="failed" time="3"><failure message="&#xA;  wrong | exit code" type="failed">[FAILED] wrong</failure></testcase>
<testcase name="[It] [sig-apps] Jobs time out [Conformance] [sig-apps, Conformance]" status="timedout" time="3"><error type="timedout"></error></testcase>
<testcase name="[It] [sig-apps] Jobs skip [Conformance] [sig-apps, Conformance]" status="skipped" time="0.2"><skipped message="skipped - Requires at least 3 nodes"></skipped></testcase>
<testcase name="[It] [sig-cli] Kubectl [Conformance] [sig-cli, Conformance]" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] [sig-cli] Kubectl of no suite [sig-cli]" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] nothing of a SIG [Conformance]" status="pending" time="0"></testcase>
</testsuite></testsuites>`

func TestReportIsReadAsGinkgoMeansIt(t *testing.T) {
	specs, err := readReport(strings.NewReader(sample))
	if err != nil {
		t.Fatal(err)
	}
	want := []spec{
		{"[sig-node] Pods run [Conformance]", passed, ""},
		{"[sig-node] Pods fail [Conformance]", failed, "wrong | exit code"},
		{"[sig-apps] Jobs time out [Conformance]", failed, "timedout"},
		{"[sig-apps] Jobs skip [Conformance]", skipped, "Requires at least 3 nodes"},
		{"[sig-cli] Kubectl [Conformance]", notRun, ""},
		{"[sig-cli] Kubectl of no suite", notRun, ""},
		{"nothing of a SIG [Conformance]", notRun, ""},
	}
	if !slices.Equal(specs, want) {
		t.Errorf("got\n%v\nwant\n%v", specs, want)
	}
}

func TestTableCountsWhatWasMeant(t *testing.T) {
	file := filepath.Join(t.TempDir(), "junit.xml")
	if err := os.WriteFile(file, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(t.TempDir(), "specs.txt")
	if err := os.WriteFile(list, []byte("[sig-node] Pods run [Conformance]\n\n[sig-node] unknown\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		rows []string
	}{
		{[]string{"-report", file}, 1, []string{
			"| sig-node | 1 | 1 | 0 | 0 |", "| sig-apps | 0 | 1 | 1 | 0 |", "| sig-cli | 0 | 0 | 0 | 1 |", "| others | 0 | 0 | 0 | 1 |", "| all | 1 | 2 | 1 | 2 |",
			`| [sig-node] Pods fail [Conformance] | wrong \| exit code |`}},
		{[]string{"-report", file, "-specs", list}, 0, []string{"| sig-node | 1 | 0 | 0 | 1 |", "| all | 1 | 0 | 0 | 1 |", "| [sig-node] unknown |  |"}},
	} {
		var out strings.Builder
		code, err := run(t.Context(), c.args, &out)
		if err != nil || code != c.code {
			t.Errorf("%q: code %d, err %v", c.args, code, err)
		}
		for _, row := range c.rows {
			if !strings.Contains(out.String(), row+"\n") {
				t.Errorf("%q lacks %q:\n%s", c.args, row, out.String())
			}
		}
	}
}

func TestALaterRunCountsForWhatItRan(t *testing.T) {
	got := combine([]spec{{"a", failed, "why"}, {"b", passed, ""}, {"c", notRun, ""}},
		[]spec{{"a", passed, ""}, {"b", notRun, ""}, {"c", failed, "late"}, {"d", skipped, "so"}})
	want := []spec{{"a", passed, ""}, {"b", passed, ""}, {"c", failed, "late"}, {"d", skipped, "so"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestNothingToRunWithIsSaid(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("E2E_TEST", "")
	var out strings.Builder
	code, err := run(t.Context(), []string{"-out", t.TempDir()}, &out)
	if code != 2 || err == nil || !strings.Contains(err.Error(), "docs/conformance.md") {
		t.Errorf("code %d, err %v", code, err)
	}
}

func TestCommandsOfBothRunners(t *testing.T) {
	dir := t.TempDir()
	for _, program := range []string{"e2e.test", "ginkgo", "kubectl", "hydrophone"} {
		if err := os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	o := &options{e2e: filepath.Join(dir, "e2e.test"), kubeconfig: "/k", out: "/out", procs: 3, nodes: 2, labels: "Conformance", skip: "slow"}
	command, report, err := o.command([]string{"a [b]", "c+"})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(command, " ")
	for _, want := range []string{dir + "/ginkgo --procs 3", `--focus a \[b\]$|c\+$`, "--skip slow", "--kubectl-path " + dir + "/kubectl", "--num-nodes 2"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	if report != "/out/junit.xml" {
		t.Errorf("report is %s", report)
	}
	o = &options{hydrophone: filepath.Join(dir, "hydrophone"), kubeconfig: "/k", out: "/out", procs: 2, registry: "reg.example"}
	t.Setenv("PATH", t.TempDir())
	command, report, err = o.command(nil)
	if err != nil {
		t.Fatal(err)
	}
	got = strings.Join(command, " ")
	for _, want := range []string{"--parallel 2", "--conformance", "--test-repo reg.example", "--kubeconfig /k"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	if report != "/out/junit_01.xml" {
		t.Errorf("report is %s", report)
	}
}

func FuzzReadReport(f *testing.F) {
	f.Add(sample)
	f.Add("<testsuites><testsuite><testcase name='[It] x' status='failed'><failure/></testcase></testsuite></testsuites>")
	f.Fuzz(func(t *testing.T, text string) {
		specs, err := readReport(strings.NewReader(text))
		if err != nil {
			return
		}
		var out strings.Builder
		print(&out, specs)
		for _, s := range specs {
			if s.outcome == failed && s.reason == "" {
				t.Errorf("%q failed without a reason", s.name)
			}
		}
	})
}
