package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
)

const busyboxImage = "localhost:5443/busybox:1"

const nativePod = `apiVersion: v1
kind: Pod
metadata: {name: native}
spec:
  restartPolicy: Never
  initContainers:
  - {name: first, image: "` + busyboxImage + `", command: [sh, -c, "echo prepared > /work/file; hostname"], volumeMounts: [{name: work, mountPath: /work}]}
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sh, -c, 'cat /work/file; cat /etc/hosts | tail -1; echo "I am $(NAME)"; echo goodbye > /dev/termination-log; exit 3']
    env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    volumeMounts: [{name: work, mountPath: /work, readOnly: true}]
  volumes: [{name: work, emptyDir: {}}]
`

const mixedPod = `apiVersion: v1
kind: Pod
metadata: {name: mixed}
spec:
  containers:
  - {name: wasm, image: "` + examples.HelloImage + `"}
  - {name: oci, image: "` + busyboxImage + `", command: [sh, -c, "echo both; sleep 3600"]}
  terminationGracePeriodSeconds: 2
`

// Each kind alone ran above and below; here both share one sandbox.
func TestPodsOfEachKindAndOfBoth(t *testing.T) {
	lab.NeedNamespaces(t)
	c := lab.StartContainerd(t, "")
	m := newMachine(t, "--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir())
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.importArchive(lab.Archive(lab.Busybox(t), busyboxImage), busyboxImage)

	m.put("native", nativePod)
	m.phase("native", "Failed")
	log := m.podLog("native", "main")
	for _, want := range []string{"prepared", "native-board", "I am native-board"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	m.put("hello", helloPod)
	m.phase("hello", "Running")
	m.put("mixed", mixedPod)
	start := time.Now()
	m.phase("mixed", "Running")
	t.Logf("mixed pod running after %v", time.Since(start))
	m.eventually("both logs", func() error {
		a, b := m.podLog("mixed", "wasm"), m.podLog("mixed", "oci")
		if !strings.Contains(a, "Hello from WebAssembly") || !strings.Contains(b, "both") {
			return fmt.Errorf("%q and %q", a, b)
		}
		return nil
	})
	for _, name := range []string{"native", "mixed", "hello"} {
		m.remove(name)
	}
	m.eventually("the end", func() error {
		if s, err := m.status(); err != nil || len(s.Pods) != 0 {
			return fmt.Errorf("%+v, %v", s, err)
		}
		return nil
	})
	if len(m.runners()) != 0 {
		t.Error("runners stay")
	}
	if left, err := lab.MountsBelow(m.dir + "/pods"); err != nil || len(left) != 0 {
		t.Errorf("mounts stay: %v, %v", left, err)
	}
}
