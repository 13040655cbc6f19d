package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	os.Exit(code)
}

// options are the flags.
type options struct {
	kubeconfig, bin, dataDir           string
	upArgs                             string
	e2e, hydrophone                    string
	image, registry                    string
	focus, skip, labels, specs, report string
	out                                string
	procs, nodes                       int
	timeout                            time.Duration
}

func parse(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("conformance", flag.ContinueOnError)
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "the cluster; empty: one is started for the run")
	fs.StringVar(&o.bin, "bin", "bin", "folder of this project's programs")
	fs.StringVar(&o.dataDir, "data-dir", ".coracle/conformance", "folder of the cluster that is started")
	fs.StringVar(&o.upArgs, "up", "", "more flags for `coracle up`, such as --registry-mirror=URL")
	fs.IntVar(&o.nodes, "nodes", 2, "nodes of the cluster that is started; the suite wants two")
	fs.StringVar(&o.e2e, "e2e", os.Getenv("E2E_TEST"), "upstream's e2e.test of the cluster's version; ginkgo and kubectl are taken from beside it, or from PATH")
	fs.StringVar(&o.hydrophone, "hydrophone", "hydrophone", "the program that runs the suite as a pod, if there is no e2e.test")
	fs.StringVar(&o.image, "conformance-image", "", "image of the suite for hydrophone; empty: its own choice")
	fs.StringVar(&o.registry, "registry", "", "for hydrophone: where the suite's images are, instead of registry.k8s.io")
	fs.StringVar(&o.focus, "focus", "", "regular expression of the specs to run; empty: all")
	fs.StringVar(&o.skip, "skip", "", "regular expression of specs to leave out")
	fs.StringVar(&o.labels, "labels", "Conformance", "ginkgo's label filter; with e2e.test only")
	fs.StringVar(&o.specs, "specs", "", "file with names of the specs to run, one to a line; with e2e.test only")
	fs.StringVar(&o.report, "report", "", "run nothing: print the table of this junit.xml, or of several, with commas between them: what a later one has run counts")
	fs.StringVar(&o.out, "out", ".coracle/conformance-report", "folder for the log and junit.xml")
	fs.IntVar(&o.procs, "procs", 2, "how many specs run at once; those marked Serial run alone at the end")
	fs.DurationVar(&o.timeout, "timeout", 3*time.Hour, "bound of the whole run")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q; flags start with -", fs.Arg(0))
	}
	if o.procs < 1 || o.nodes < 1 {
		return nil, fmt.Errorf("-procs %d, -nodes %d: at least one of each", o.procs, o.nodes)
	}
	return o, nil
}

// run is the program: 0 if every spec that was run passed, 1 if not, 2 if none could be run.
func run(ctx context.Context, args []string, out io.Writer) (int, error) {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil
	}
	if err != nil {
		return 2, err
	}
	names, err := o.names()
	if err != nil {
		return 2, err
	}
	files := strings.Split(o.report, ",")
	if o.report == "" {
		file, err := o.suite(ctx, names, out)
		if err != nil {
			return 2, err
		}
		files = []string{file}
	}
	var all []spec
	for _, file := range files {
		specs, err := readFile(file)
		if err != nil {
			return 2, err
		}
		all = combine(all, specs)
	}
	word := ""
	if o.labels == "Conformance" {
		word = "[Conformance]"
	}
	specs := choose(all, names, word)
	print(out, specs)
	ran := 0
	for _, s := range specs {
		switch s.outcome {
		case failed:
			return 1, nil
		case passed:
			ran++
		}
	}
	if ran == 0 {
		return 2, fmt.Errorf("no spec passed, and none failed: is there one that -focus %q and -skip %q select? The log is in %s", o.focus, o.skip, o.out)
	}
	return 0, nil
}

func readFile(file string) ([]spec, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	specs, err := readReport(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return specs, nil
}

func (o *options) names() ([]string, error) {
	if o.specs == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(o.specs)
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s names no spec", o.specs)
	}
	return out, nil
}

// suite runs it and returns the JUnit report's file.
func (o *options) suite(ctx context.Context, names []string, out io.Writer) (string, error) {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return "", err
	}
	abs, err := filepath.Abs(o.out)
	if err != nil {
		return "", err
	}
	o.out = abs
	command, where, err := o.command(names)
	if err != nil {
		return "", err
	}
	// A report of a former run is not this one's.
	if err := os.Remove(where); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if o.kubeconfig == "" {
		down, err := o.up(ctx, out)
		if err != nil {
			return "", err
		}
		defer down()
		if command, where, err = o.command(names); err != nil { // it has a kubeconfig now
			return "", err
		}
	}
	log, err := os.Create(filepath.Join(o.out, "log"))
	if err != nil {
		return "", err
	}
	defer log.Close()
	fmt.Fprintf(out, "%s\n\nThe log is %s\n\n", strings.Join(command, " "), log.Name())
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = o.out, log, log
	cmd.Env = append(os.Environ(), "KUBECONFIG="+o.kubeconfig)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it cleans up, and writes its report
	cmd.WaitDelay = time.Minute
	ended := cmd.Run()
	if _, err := os.Stat(where); err != nil {
		return "", fmt.Errorf("%s left no report, see %s: %w", command[0], log.Name(), errors.Join(ended, err))
	}
	return where, nil
}

// up starts a cluster; the function that it returns ends it.
func (o *options) up(ctx context.Context, out io.Writer) (func(), error) {
	coracle := filepath.Join(o.bin, "coracle")
	args := []string{"up", "--detach", "--no-example", "--data-dir", o.dataDir, "--nodes", strconv.Itoa(o.nodes)}
	cmd := exec.CommandContext(ctx, coracle, append(args, strings.Fields(o.upArgs)...)...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s up: %w", coracle, err)
	}
	kubeconfig, err := filepath.Abs(filepath.Join(o.dataDir, "kubeconfig"))
	if err != nil {
		return nil, err
	}
	o.kubeconfig = kubeconfig
	return func() {
		cmd := exec.Command(coracle, "down", "--data-dir", o.dataDir)
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Fprintf(os.Stderr, "conformance: %s down: %v\n", coracle, err)
		}
	}, nil
}

// command is what runs the suite, and where that leaves its report.
func (o *options) command(names []string) ([]string, string, error) {
	if o.e2e == "" {
		if path, err := exec.LookPath("e2e.test"); err == nil {
			o.e2e = path
		}
	}
	if o.kubeconfig != "" {
		abs, err := filepath.Abs(o.kubeconfig)
		if err != nil {
			return nil, "", err
		}
		o.kubeconfig = abs
	}
	if o.e2e == "" {
		return o.hydrophoneCommand(names)
	}
	e2e, err := filepath.Abs(o.e2e)
	if err != nil {
		return nil, "", err
	}
	ginkgo, err := beside(e2e, "ginkgo")
	if err != nil {
		return nil, "", err
	}
	kubectl, err := beside(e2e, "kubectl")
	if err != nil {
		return nil, "", err
	}
	focus := o.focus
	if len(names) > 0 {
		if focus != "" {
			return nil, "", errors.New("-specs and -focus exclude each other")
		}
		quoted := make([]string, len(names))
		for i, name := range names {
			quoted[i] = regexp.QuoteMeta(name) + "$"
		}
		focus = strings.Join(quoted, "|")
	}
	command := []string{ginkgo, "--procs", strconv.Itoa(o.procs), "--timeout", o.timeout.String(), "--no-color",
		"--output-dir", o.out, "--junit-report", "junit.xml", "--label-filter", o.labels}
	if focus != "" {
		command = append(command, "--focus", focus)
	}
	if o.skip != "" {
		command = append(command, "--skip", o.skip)
	}
	// Only the first process would count the nodes by itself.
	command = append(command, e2e, "--", "--kubeconfig", o.kubeconfig, "--kubectl-path", kubectl, "--provider", "local",
		"--disable-log-dump", "--num-nodes", strconv.Itoa(o.nodes))
	return command, filepath.Join(o.out, "junit.xml"), nil
}

func (o *options) hydrophoneCommand(names []string) ([]string, string, error) {
	program, err := exec.LookPath(o.hydrophone)
	if err != nil {
		return nil, "", errors.New("neither e2e.test (-e2e or E2E_TEST) nor hydrophone is here: docs/conformance.md says where to get one")
	}
	if len(names) > 0 {
		return nil, "", errors.New("-specs needs an e2e.test; hydrophone takes -focus")
	}
	command := []string{program, "--kubeconfig", o.kubeconfig, "--output-dir", o.out, "--parallel", strconv.Itoa(o.procs)}
	if o.focus == "" && o.skip == "" {
		command = append(command, "--conformance")
	} else {
		focus := o.focus
		if focus == "" {
			focus = `\[Conformance\]`
		}
		command = append(command, "--focus", focus)
	}
	if o.skip != "" {
		command = append(command, "--skip", o.skip)
	}
	if o.image != "" {
		command = append(command, "--conformance-image", o.image)
	}
	if o.registry != "" {
		command = append(command, "--test-repo", o.registry)
	}
	return command, filepath.Join(o.out, "junit_01.xml"), nil
}

// beside finds a program in the folder of another, or in PATH.
func beside(other, name string) (string, error) {
	path := filepath.Join(filepath.Dir(other), name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside %s nor in PATH", name, other)
	}
	return path, nil
}
