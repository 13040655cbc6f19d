package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// imageReader reads two images: all of one, a folder and a file of it, and one of a
// single layer, of which a snapshot is a bind mount.
const imageReader = `
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: two, image: {reference: "example.org/two-layers:1", pullPolicy: Never}}
  - {name: one, image: {reference: "example.org/one-layer:1", pullPolicy: Never}}
  containers:
  - name: main
    image: example.org/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "exec 2>&1; cat /two/usr/share/lower /two/upper /sub/lower /file /one/motd; touch /two/x; touch /one/x; touch /sub/x; trap 'exit 3' TERM; while true; do sleep 0.1; done"]
    volumeMounts:
    - {name: two, mountPath: /two}
    - {name: two, mountPath: /sub, subPath: usr/share}
    - {name: two, mountPath: /file, subPath: usr/share/lower}
    - {name: one, mountPath: /one}
  - {name: other, image: "example.org/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"], volumeMounts: [{name: one, mountPath: /one}]}
`

const imageMissing = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: i, image: {reference: %q, pullPolicy: %s}}]
  containers:
  - {name: main, image: "example.org/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"], volumeMounts: [{name: i, mountPath: /i, subPath: %q}]}
`

// Image volumes of OCI containers: containerd before 2.1 has none, and the agent
// makes them of read-only views.
func TestImageVolumesOfOCIContainers(t *testing.T) {
	c := newCluster(t, "--nodes=1", "--no-example")
	c.must(t, "wait", "--for=create", "node/board-1", "--timeout=60s")
	c.must(t, "wait", "--for=condition=Ready", "node/board-1", "--timeout=60s")
	c.must(t, "wait", "--for=create", "serviceaccount/default", "--timeout=60s")
	isolated(t, c)
	if !c.importBusybox(t) {
		t.Skip("no containerd runs here")
	}
	load := func(name string, layers ...[]lab.File) {
		t.Helper()
		archive := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(archive, lab.Archive(lab.OCI(ocispec.ImageConfig{}, nil, layers...), name), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := coracle("image", "import", "--node-dir", c.layout.Node("board-1"), archive); err != nil {
			t.Fatal(err, out)
		}
	}
	file := func(path, text string) []lab.File {
		return []lab.File{{Path: path, Mode: 0o644, Data: []byte(text + "\n")}}
	}
	load("example.org/two-layers:1", file("usr/share/lower", "of the lower layer"), file("upper", "of the upper layer"))
	load("example.org/one-layer:1", file("motd", "of the only layer"))
	// views are what is mounted of images for the board's sandboxes.
	views := func() (out []string) {
		raw, err := c.onNode("board-1", "cat", "/proc/self/mountinfo").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) > 4 && strings.Contains(f[4], "/image-volumes/") {
				out = append(out, f[4])
			}
		}
		return out
	}
	status := func(pod string) string {
		return c.must(t, "get", "pod", pod, "-o", "jsonpath={.status.phase} {.status.containerStatuses[?(@.name=='main')].restartCount} {.status.containerStatuses[?(@.name=='main')].containerID}")
	}

	c.apply(t, "default", imageReader)
	c.must(t, "wait", "--for=condition=Ready", "pod/reader", "--timeout=90s")
	const words = "of the lower layer\nof the upper layer\nof the lower layer\nof the lower layer\nof the only layer\n"
	says := func() error {
		out, err := c.kubectl("", "logs", "reader", "-c", "main")
		if err == nil && (!strings.HasPrefix(out, words) || strings.Count(out, "Read-only file system") != 3) {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	}
	eventually(t, 30*time.Second, says)
	first := views()
	if len(first) != 2 {
		t.Errorf("two images for two containers are mounted as %q", first)
	}

	// An agent that is killed leaves the pod as it is, and the next one makes a
	// container of the same sandbox with the same views.
	before := status("reader")
	c.kill(t, "board-1")
	eventually(t, 60*time.Second, func() error {
		out, err := c.kubectl("", "exec", "reader", "-c", "main", "--", "cat", "/two/upper")
		if err == nil && out != "of the upper layer\n" {
			err = fmt.Errorf("%q", out)
		}
		return err
	})
	if now := status("reader"); now != before {
		t.Errorf("the pod is %q, was %q", now, before)
	}
	_, _ = c.kubectl("", "exec", "reader", "-c", "main", "--", "kill", "1") // which ends itself, too
	eventually(t, 60*time.Second, func() error {
		if now := status("reader"); !strings.HasPrefix(now, "Running 1 ") {
			return fmt.Errorf("the pod is %s", now)
		}
		return says()
	})
	if now := views(); !slices.Equal(now, first) {
		t.Errorf("%q is mounted, was %q", now, first)
	}

	// What is missing is said, with its name.
	for pod, missing := range map[string]struct {
		image, policy, sub string
		words              []string
	}{
		"never":  {"example.org/none:1", "Never", "", []string{"ErrImageNeverPull", `volume "i": Container image "example.org/none:1" is not present with pull policy of Never`}},
		"pulled": {"127.0.0.1:1/none:1", "IfNotPresent", "", []string{"ImagePull", `volume "i": `, `127.0.0.1:1/none:1`}},
		"nosub":  {"example.org/two-layers:1", "Never", "nothing/here", []string{"CreateContainerError", "/i", "example.org/two-layers:1", "nothing/here"}},
	} {
		c.apply(t, "default", fmt.Sprintf(imageMissing, pod, missing.image, missing.policy, missing.sub))
		waits := c.shows(t, 60*time.Second, missing.words, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}")
		t.Logf("%s: %s", pod, waits)
	}
	// And once it is there the pod goes on.
	load("example.org/none:1", file("late", "but there"))
	eventually(t, 120*time.Second, func() error {
		if now := status("never"); !strings.HasPrefix(now, "Running 0 ") {
			return fmt.Errorf("the pod is %s", now)
		}
		return nil
	})
	if now := views(); len(now) < 3 {
		t.Errorf("%q is mounted", now)
	}

	// Pods that are deleted while the agent isn't there take their views with them.
	agent := c.pid(t, "board-1")
	if err := syscall.Kill(agent, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(agent, syscall.SIGCONT) })
	c.must(t, "delete", "pod", "--all", "--wait=false")
	c.kill(t, "board-1")
	c.must(t, "wait", "--for=delete", "pod", "--all", "--timeout=120s")
	snapshots := func() string {
		out, err := c.onNode("board-1", "ctr", "--address", filepath.Join(c.layout.Node("board-1"), "containerd", "containerd.sock"), "--namespace", "k8s.io", "snapshots", "list").CombinedOutput()
		if err != nil {
			t.Fatal(err, string(out))
		}
		return string(out)
	}
	eventually(t, 60*time.Second, func() error {
		if now := views(); len(now) > 0 {
			return fmt.Errorf("%q is still mounted", now)
		}
		if now := snapshots(); strings.Contains(now, "volume") {
			return fmt.Errorf("views are left:\n%s", now)
		}
		return nil
	})
}
