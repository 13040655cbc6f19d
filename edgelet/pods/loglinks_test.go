package pods

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
)

// Collectors of logs know a log by the name of its link, and follow it below the
// folder that they have mounted.
func TestLogsHaveLinksForThoseWhoCollectThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		links := t.TempDir()
		b.more = func(c *Config) { c.ShownLogs = ShownLogs{LinksDir: links, LogsDir: "/var/log/pods"} }
		foreign := filepath.Join(links, "web_default_main-0.log")
		if err := os.Symlink("/var/lib/docker/containers/0/0-json.log", foreign); err != nil {
			t.Fatal(err)
		}
		b.rt.Plan("main", fakecri.Plan{RunFor: time.Second, ExitCode: 1, Log: "hello\n"})
		b.boot()
		b.store.put(testPod("web"))
		b.settle(500 * time.Millisecond)

		names := func() (out []string) {
			found, _ := filepath.Glob(filepath.Join(links, "*"))
			for _, f := range found {
				if f != foreign {
					out = append(out, f)
				}
			}
			return out
		}
		first := names()
		if len(first) != 1 || !strings.HasPrefix(filepath.Base(first[0]), "web_default_main-") || !strings.HasSuffix(first[0], ".log") {
			t.Fatalf("links: %q", first)
		}
		if target, err := os.Readlink(first[0]); err != nil || target != "/var/log/pods/default_web_uid-web/main/0.log" {
			t.Errorf("it leads to %q, %v", target, err)
		}
		b.settle(2 * time.Minute) // restarts: the last two runs are kept, and so are their links
		if now := names(); len(now) != 2 || now[0] == first[0] || now[1] == first[0] {
			t.Errorf("after restarts: %q, at first %q", now, first)
		}
		b.store.drop("uid-web")
		b.settle(time.Minute)
		if left := names(); len(left) != 0 {
			t.Errorf("of a pod that is gone: %q", left)
		}
		if _, err := os.Lstat(foreign); err != nil {
			t.Error("another's link:", err)
		}
		b.stop()
	})
}

// Names longer than a file's are cut, and found again.
func TestLongNamesOfLogLinks(t *testing.T) {
	b := newBoard(t)
	links := t.TempDir()
	m := &Manager{cfg: Config{LogsDir: b.dir, ShownLogs: ShownLogs{LinksDir: links, LogsDir: "/var/log/pods"}}}
	namespace, name, container := strings.Repeat("n", 63), strings.Repeat("p", 253), strings.Repeat("c", 63)
	log := m.logFile(namespace, "short", "u", container, 0)
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.linkLog(namespace, "short", "u", container, strings.Repeat("a", 64), 0)
	// What file system takes a folder of such a pod's name? None, but a link's is cut.
	if err := os.Symlink("/var/log/pods/gone/0.log", filepath.Join(links, cut(name+"_"+namespace+"_"+container)+logLinkSuffix)); err != nil {
		t.Fatal(err)
	}
	m.unlinkLogs(namespace, "short")
	if found, _ := filepath.Glob(filepath.Join(links, "*")); len(found) != 2 {
		t.Fatalf("%q", found)
	}
	m.unlinkLogs(namespace, name)
	if found, _ := filepath.Glob(filepath.Join(links, "*")); len(found) != 1 || !strings.HasPrefix(filepath.Base(found[0]), "short_") {
		t.Errorf("%q", found)
	}
}
