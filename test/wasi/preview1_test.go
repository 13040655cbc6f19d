package wasi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// functions are all of preview 1.
var functions = strings.Fields(`
args_get args_sizes_get environ_get environ_sizes_get clock_res_get clock_time_get
fd_advise fd_allocate fd_close fd_datasync fd_fdstat_get fd_fdstat_set_flags fd_fdstat_set_rights fd_filestat_get
fd_filestat_set_size fd_filestat_set_times fd_pread fd_prestat_get fd_prestat_dir_name fd_pwrite fd_read fd_readdir
fd_renumber fd_seek fd_sync fd_tell fd_write
path_create_directory path_filestat_get path_filestat_set_times path_link path_open path_readlink
path_remove_directory path_rename path_symlink path_unlink_file
poll_oneoff proc_exit proc_raise random_get sched_yield
sock_accept sock_recv sock_send sock_shutdown`)

// wcase is a case of the suite.
type wcase struct {
	number         int
	function, what string
	alone          bool
}

func (c wcase) name() string { return c.function + ": " + c.what }

func suite(t *testing.T) (module string, cases []wcase) {
	sources, err := filepath.Glob("guest/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	module = clang(t, "suite.wasm", sources...)
	r := guest(t, "", module, "--list")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	for line := range strings.Lines(r.stdout) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		n, err := strconv.Atoi(f[0])
		if err != nil || len(f) != 4 {
			t.Fatalf("the list of cases has %q", line)
		}
		cases = append(cases, wcase{n, f[1], f[2], f[3] == "1"})
	}
	return module, cases
}

func TestPreview1(t *testing.T) {
	module, cases := suite(t)
	per := map[string]int{}
	for _, c := range cases {
		per[c.function]++
	}
	t.Run("every function has a case", func(t *testing.T) {
		for _, f := range functions {
			t.Logf("%-24s %d", f, per[f])
			if per[f] == 0 {
				t.Errorf("%s has none", f)
			}
		}
		if len(per) != len(functions) {
			t.Errorf("cases of %d functions, preview 1 has %d", len(per), len(functions))
		}
	})
	for _, user := range []int{os.Getuid(), ordinary} {
		t.Run(fmt.Sprintf("uid %d", user), func(t *testing.T) {
			if user != os.Getuid() && os.Getuid() != 0 {
				t.Skip("only root can become somebody else")
			}
			cmd := command(t, user, "--dir", openDir(t, user)+"::/", module)
			null, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer null.Close()
			cmd.Stdin = null
			out, err := cmd.Output()
			if err != nil {
				t.Errorf("the suite ended with %v", err)
			}
			report(t, cases, string(out))
		})
	}
	for _, c := range cases {
		if c.alone {
			t.Run(c.name(), func(t *testing.T) { alone(t, module, c) })
		}
	}
}

// Standard streams are streams, no sockets, even where the parent made them of
// a socket pair, as Node does: the guest can't shut them down.
func TestPreview1OverSocketPairs(t *testing.T) {
	module, cases := suite(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "the guest's")
	defer ours.Close()
	cmd := command(t, os.Getuid(), "--dir", openDir(t, os.Getuid())+"::/", module)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(fds[0], unix.SHUT_WR); err != nil { // nothing to wait for at stdin
		t.Error(err)
	}
	out, err := io.ReadAll(ours)
	if err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the suite ended with %v", err)
	}
	report(t, cases, string(out))
}

// report makes a test of every case that isn't alone: "ok" or "FAIL" and its
// number, after what was wrong.
func report(t *testing.T, cases []wcase, out string) {
	verdicts, wrong := map[int]string{}, ""
	for line := range strings.Lines(out) {
		verdict, number, _ := strings.Cut(strings.TrimSpace(line), "\t")
		n, err := strconv.Atoi(number)
		if err != nil {
			wrong += line
			continue
		}
		verdicts[n] = verdict + "\n" + wrong
		wrong = ""
	}
	for _, c := range cases {
		if c.alone {
			continue
		}
		t.Run(c.name(), func(t *testing.T) {
			if v := verdicts[c.number]; v != "ok\n" {
				t.Errorf("%s%s", v, wrong)
			}
		})
	}
}

// surroundings are what an ALONE case gets besides a directory.
type surroundings struct {
	flags, args []string
	readOnly    bool
	code        int  // of the guest; others than 0 say nothing else
	pipe        bool // stdin is a pipe that is empty
	talk        func(t *testing.T, stdin io.WriteCloser, said *bufio.Reader)
	listen      string
}

func alone(t *testing.T, module string, c wcase) {
	s := surroundings{pipe: true}
	switch {
	case c.function == "args_get":
		s.args = []string{"a b", "", "ü"}
	case c.function == "environ_get":
		s.flags = []string{"--env", "A=1", "--env", "B=", "--env", "C=x=y"}
	case strings.HasPrefix(c.what, "a read-only volume"):
		s.readOnly = true
	case c.function == "proc_exit":
		s.code = map[string]int{"0": 0, "33": 33, "255": 255}[c.what]
		if strings.HasPrefix(c.what, "at once") {
			s.code = 7
		}
		expectCode(t, module, c, s.code)
		return
	case c.function == "proc_raise":
		words := strings.Fields(c.what)
		code, err := strconv.Atoi(words[len(words)-1])
		if err != nil {
			t.Fatalf("no code in %q", c.what)
		}
		expectCode(t, module, c, code)
		return
	case c.function == "poll_oneoff":
		s.talk = fillAndClose
	case strings.HasPrefix(c.function, "sock_"):
		s.listen = freePort(t)
		s.talk = func(t *testing.T, _ io.WriteCloser, said *bufio.Reader) { peer(t, s.listen, said) }
		s.flags = []string{"--listen", s.listen}
	}
	dir := openDir(t, os.Getuid())
	args := append(s.flags, "--dir", dir+"::/")
	if s.readOnly {
		ro := openDir(t, os.Getuid())
		write(t, filepath.Join(ro, "f"), "keep")
		if err := os.Mkdir(filepath.Join(ro, "d"), 0o755); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--dir", ro+"::/ro:ro")
	}
	cmd := command(t, os.Getuid(), append(append(args, module, strconv.Itoa(c.number)), s.args...)...)
	out := converse(t, cmd, s.talk)
	if want := fmt.Sprintf("ok\t%d\n", c.number); !strings.HasSuffix(out, want) || strings.Contains(out, "FAIL") {
		t.Errorf("%s", out)
	}
}

func expectCode(t *testing.T, module string, c wcase, code int) {
	if r := guest(t, "", module, strconv.Itoa(c.number)); r.code != code || r.stdout != "" {
		t.Errorf("%+v, want code %d", r, code)
	}
}

// converse runs a command with a pipe at stdin, and talk beside it.
func converse(t *testing.T, cmd *exec.Cmd, talk func(*testing.T, io.WriteCloser, *bufio.Reader)) string {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(stdout)
	if talk != nil {
		talk(t, stdin, said)
	}
	rest, err := io.ReadAll(said)
	if err != nil {
		t.Error(err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the guest ended with %v", err)
	}
	return string(rest)
}

// expect reads a line; what fails before it is said comes out instead.
func expect(t *testing.T, said *bufio.Reader, want string) bool {
	line, err := said.ReadString('\n')
	if err != nil || line != want+"\n" {
		t.Errorf("the guest said %q, want %q: %v", line, want, err)
		return false
	}
	return true
}

func fillAndClose(t *testing.T, stdin io.WriteCloser, said *bufio.Reader) {
	if expect(t, said, "waiting") {
		io.WriteString(stdin, "hello")
	}
	expect(t, said, "close")
	stdin.Close()
}

// peer connects when asked, greets, and takes what comes until its end.
func peer(t *testing.T, addr string, said *bufio.Reader) {
	if !expect(t, said, "connect") {
		return
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	done := make(chan struct{})
	go func() { // ends with the guest
		defer close(done)
		defer c.Close()
		io.Copy(io.Discard, c)
	}()
	t.Cleanup(func() { <-done })
	if !strings.Contains(t.Name(), "sock_accept") {
		io.WriteString(c, "hello")
	}
}

func freePort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
