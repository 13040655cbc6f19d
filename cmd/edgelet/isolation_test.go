package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/test/lab"
)

const escapeImage = "localhost:5443/escape:1"

// thiefPod has a folder of the host, of which the administrator lets it have just
// that. %[1]s is its name, %[2]s the folder, %[3]s the container, %[4]s a subPath.
const thiefPod = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    %[3]s
    volumeMounts: [{name: data, mountPath: /data%[4]s}]
  volumes: [{name: data, hostPath: {path: "%[2]s", type: Directory}}]
`

// ownerPod keeps something in a volume of its own.
const ownerPod = `apiVersion: v1
kind: Pod
metadata: {name: owner}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "` + busyboxImage + `", command: [sh, -c, "echo SECRET > /own/secret; chmod 644 /own/secret; sleep 3600"], volumeMounts: [{name: own, mountPath: /own}]}
  volumes: [{name: own, emptyDir: {}}]
`

// From within a volume neither a Wasm container nor an OCI one reaches what lies
// beside it: the agent's state and keys, another pod's volumes, its own cgroup and
// limits, the socket of the agent or of containerd.
// Links that lead there are refused as subPaths, too.
func TestPodsDoNotReachBeyondTheirVolumes(t *testing.T) {
	lab.NeedNamespaces(t)
	escape, err := os.ReadFile("../../wasmruntime/testdata/escape.wasm")
	if err != nil {
		t.Fatal(err)
	}
	c := lab.StartContainerd(t, "")
	m := newMachine(t, "--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir())
	m.start()
	m.importImage(escape, escapeImage)
	m.importArchive(lab.Archive(lab.Busybox(t), busyboxImage), busyboxImage)
	m.put("owner", ownerPod)
	m.phase("owner", "Running")
	var owned string
	m.eventually("the other pod's secret", func() error {
		found, _ := filepath.Glob(filepath.Join(m.dir, "pods", "*", "volumes", "kubernetes.io~empty-dir", "own", "secret"))
		if len(found) != 1 {
			return fmt.Errorf("%v", found)
		}
		owned = found[0]
		return nil
	})

	host := filepath.Join(m.dir, "host")
	data := filepath.Join(host, "data")
	key := filepath.Join(m.dir, "identity", "secret")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(key, "SECRET")
	write(filepath.Join(host, "secret"), "SECRET")
	write(filepath.Join(data, "inner"), "inner")
	if err := os.Chmod(data, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{m.dir, host} { // what keeps pods out is not that they may not pass
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	links := map[string]string{"hostlink": "../secret", "abslink": key, "dirlink": filepath.Dir(owned), "within": "inner", "sub": "inner",
		"state": filepath.Join(m.dir, "state.db"), "pods": filepath.Join(m.dir, "pods"), "cgroup": "/sys/fs/cgroup", "up": ".."}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(data, name)); err != nil {
			t.Fatal(err)
		}
	}

	m.put("wasm", fmt.Sprintf(thiefPod, "wasm", data, `image: "`+escapeImage+`"`, ""))
	m.phase("wasm", "Succeeded")
	if log := m.podLog("wasm", "main"); strings.Contains(log, "ESCAPED") || !strings.Contains(log, "inside: works") {
		t.Errorf("the Wasm container:\n%s", log)
	}
	script := `for f in hostlink abslink dirlink/secret state pods/*/volumes/*/*/secret up/secret ../secret ../../secret; do cat /data/$f; done 2>&1; ` +
		`cat /proc/1/root/data/../secret /proc/self/cwd/../secret 2>&1; ` +
		`for f in $(find /sys/fs/cgroup -name cgroup.procs); do echo $$ > $f && echo MOVED $f; done 2>/dev/null; ` +
		`for g in $(find /sys/fs/cgroup -name cpu.cfs_quota_us -o -name memory.limit_in_bytes -o -name pids.max -o -name cpu.max -o -name memory.max); do echo 9999999999 > $g && echo LIMIT $g; done 2>/dev/null; ` +
		`find / -path /proc -prune -o -type s -exec echo SOCKET {} \; 2>/dev/null; cat /data/inner`
	m.put("oci", fmt.Sprintf(thiefPod, "oci", data, `image: "`+busyboxImage+`"`+"\n    command: [sh, -c, '"+script+"']", ""))
	m.phase("oci", "Succeeded")
	if log := m.podLog("oci", "main"); strings.Contains(log, "SECRET") || strings.Contains(log, "MOVED") ||
		strings.Contains(log, "LIMIT") || strings.Contains(log, "SOCKET") || !strings.Contains(log, "inner") {
		t.Errorf("the OCI container:\n%s", log)
	}

	for kind, container := range map[string]string{"wasm": `image: "` + escapeImage + `"`, "oci": `image: "` + busyboxImage + `"` + "\n    command: [cat, /data/secret, /data]"} {
		for _, link := range []string{"hostlink", "abslink", "dirlink", "state", "pods", "cgroup", "up"} {
			name := kind + "-" + link
			m.put(name, fmt.Sprintf(thiefPod, name, data, container, ", subPath: "+link))
		}
		for _, link := range []string{"hostlink", "abslink", "dirlink", "state", "pods", "cgroup", "up"} {
			m.eventually("refusal of subPath "+link, func() error {
				const want = `failed to prepare subPath for volumeMount \"data\" of container \"main\"`
				if !strings.Contains(m.log.String(), want) {
					return fmt.Errorf("the log lacks %s", want)
				}
				s, err := m.status()
				if err != nil {
					return err
				}
				for _, p := range s.Pods {
					if p.Name == kind+"-"+link+"-board" && p.Phase == "Pending" {
						return nil
					}
				}
				return fmt.Errorf("%+v", s.Pods)
			})
			if log := m.podLog(kind+"-"+link, "main"); log != "" {
				t.Errorf("%s with subPath %s ran: %s", kind, link, log)
			}
			m.remove(kind + "-" + link)
		}
	}
	if got, err := os.ReadFile(key); err != nil || string(got) != "SECRET" {
		t.Errorf("the agent's key is %q, %v", got, err)
	}
}
