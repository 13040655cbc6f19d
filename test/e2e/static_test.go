package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
)

const staticWasm = `
apiVersion: v1
kind: Pod
metadata: {name: module, labels: {made: %s}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "registry.invalid/hello:static", imagePullPolicy: Never}]
`

// Static pods have mirrors in the API as a kubelet's have, which are shown there and
// rule nothing (upstream: test/e2e_node/mirror_pod_test.go).
func TestStaticPodsAndTheirMirrors(t *testing.T) {
	c := newCluster(t, "--no-example")
	b := newBoard(t)
	folder := t.TempDir()
	put := func(name, manifest string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(manifest), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("module.yaml", fmt.Sprintf(staticWasm, "first"))
	b.start(append(c.token(t, "static-1"), "--static-pods", folder)...)
	c.must(t, "wait", "--for=create", "node/static-1", "--timeout=60s")
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, lab.Archive(lab.CNCF(examples.HelloModule), "registry.invalid/hello:static"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := coracle("image", "import", file, "--node-dir", b.dir); err != nil {
		t.Fatal(err, out)
	}
	get := func(name, path string) string {
		out, _ := c.kubectl("", "get", "pod", name, "--ignore-not-found", "-o", "jsonpath="+path)
		return out
	}
	becomes := func(name, path, want string) {
		t.Helper()
		eventually(t, 90*time.Second, func() error {
			if got := get(name, path); got != want {
				return fmt.Errorf("%s of %s is %q, want %q\n%s", path, name, got, want, get(name, "{.status}"))
			}
			return nil
		})
	}
	becomes("module-static-1", "{.status.phase}", "Running")

	const facts = `{.metadata.annotations.kubernetes\.io/config\.hash} {.metadata.annotations.kubernetes\.io/config\.mirror} {.metadata.annotations.kubernetes\.io/config\.seen} ` +
		`{.metadata.annotations.kubernetes\.io/config\.source} {.metadata.ownerReferences[*].kind}/{.metadata.ownerReferences[*].name} {.metadata.ownerReferences[*].controller} {.metadata.uid} {.status.containerStatuses[0].containerID}`
	before := strings.Fields(get("module-static-1", facts))
	if len(before) != 8 || before[0] != before[1] || before[3] != "file" || before[4] != "Node/static-1" || before[5] != "true" || before[6] == before[0] {
		t.Fatalf("%q", before)
	}
	if _, err := time.Parse(time.RFC3339Nano, before[2]); err != nil {
		t.Error("config.seen: ", err)
	}

	// Whoever deletes a mirror, gently or not, gets another one; the pod runs on.
	for _, how := range [][]string{{"--wait=false"}, {"--grace-period=0", "--force", "--wait=false"}} {
		was := get("module-static-1", "{.metadata.uid}")
		c.must(t, append([]string{"delete", "pod", "module-static-1"}, how...)...)
		eventually(t, 60*time.Second, func() error {
			if now := get("module-static-1", "{.metadata.uid} {.status.phase}"); !strings.HasSuffix(now, " Running") || strings.HasPrefix(now, was) {
				return fmt.Errorf("after delete %s the mirror is %q, was %s", how, now, was)
			}
			return nil
		})
		if after := strings.Fields(get("module-static-1", facts)); len(after) != 8 || after[0] != before[0] || after[7] != before[7] {
			t.Errorf("after delete %s: %q, before %q", how, after, before)
		}
	}

	// Another manifest is another pod; what is no manifest changes nothing.
	put("module.yaml", fmt.Sprintf(staticWasm, "second"))
	becomes("module-static-1", "{.metadata.labels.made} {.status.phase}", "second Running")
	second := strings.Fields(get("module-static-1", facts))
	if len(second) != 8 || second[0] == before[0] || second[1] != second[0] || second[7] == before[7] {
		t.Errorf("%q, before %q", second, before)
	}
	put("module.yaml", "kind: Po")
	put("needy.yaml", strings.Replace(strings.Replace(fmt.Sprintf(staticWasm, "needy"), "name: module", "name: needy", 1), "spec:", "spec:\n  serviceAccountName: default", 1))
	eventually(t, 30*time.Second, func() error {
		raw, err := os.ReadFile(b.log)
		for _, words := range []string{"static pods may not reference serviceaccounts", filepath.Join(folder, "needy.yaml"), filepath.Join(folder, "module.yaml")} {
			if err == nil && !strings.Contains(string(raw), words) {
				err = fmt.Errorf("the agent doesn't say %q", words)
			}
		}
		return err
	})
	if now := strings.Fields(get("module-static-1", facts)); len(now) != 8 || now[7] != second[7] {
		t.Errorf("a broken manifest changed the pod: %q", now)
	}

	if err := os.Remove(filepath.Join(folder, "module.yaml")); err != nil {
		t.Fatal(err)
	}
	becomes("module-static-1", "{.metadata.name}", "")
	if get("needy-static-1", "{.metadata.name}") != "" {
		t.Error("a pod that needs the API has a mirror")
	}
}
