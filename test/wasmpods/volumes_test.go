package wasmpods

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (b *bed) configMap(name string, data map[string]string) {
	b.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	if _, err := cluster.client.CoreV1().ConfigMaps(b.ns).Create(b.Context(), cm, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
}

func (b *bed) secret(name string, data map[string]string) {
	b.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data}
	if _, err := cluster.client.CoreV1().Secrets(b.ns).Create(b.Context(), s, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
}

func TestEnvironment(t *testing.T) {
	b := newBed(t)
	b.configMap("cm", map[string]string{"colour": "red", "SIZE": "9"})
	b.secret("sec", map[string]string{"key": "hush"})
	b.pod("env", `
restartPolicy: Never
containers:
- resources: {limits: {memory: 32Mi}, requests: {cpu: 10m}}
  envFrom: [{configMapRef: {name: cm}, prefix: CM_}]
  env:
  - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['colour']"}}}
  - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
  - {name: COLOUR, valueFrom: {configMapKeyRef: {name: cm, key: colour}}}
  - {name: SECRET, valueFrom: {secretKeyRef: {name: sec, key: key}}}
  - {name: NOTHING, valueFrom: {secretKeyRef: {name: none, key: key, optional: true}}}
  - {name: BOTH, value: "$(NAME)-$(COLOUR)-$$(NAME)"}
  args: [env, NAME, --, env, LABEL, --, env, IP, --, env, NODE, --, env, MEMORY, --, env, COLOUR, --, env, SECRET, --, env, NOTHING, --, env, BOTH, --, env, CM_SIZE, --, env, FROM_IMAGE, --, args, "$(NAME)"]
`)
	p := b.phase("env", corev1.PodSucceeded)
	want := "NAME=env\nLABEL=blue\nIP=" + p.Status.PodIP + "\nNODE=board-1\nMEMORY=32\nCOLOUR=red\nSECRET=hush\nNOTHING=(unset)\nBOTH=env-red-$(NAME)\nCM_SIZE=9\nFROM_IMAGE=yes\nenv\n"
	if out := b.logs("env", "c0"); out != want {
		t.Errorf("%q, not %q", out, want)
	}
	b.pod("missing", `{containers: [{args: [sleep], env: [{name: X, valueFrom: {secretKeyRef: {name: absent, key: k}}}]}]}`)
	b.become("missing", "waits for the secret and names it", func(p *corev1.Pod) bool {
		return waits(p, "c0", "CreateContainerConfigError") && strings.Contains(status(p, "c0").State.Waiting.Message, "absent")
	})
	b.secret("absent", map[string]string{"k": "v"})
	b.phase("missing", corev1.PodRunning)
}

func TestVolumesOfEachKind(t *testing.T) {
	b := newBed(t)
	b.configMap("cm", map[string]string{"colour": "red", "size": "9"})
	b.secret("sec", map[string]string{"key": "hush"})
	host := filepath.Join(cluster.layout.Root, "host-"+b.ns)
	if err := errors.Join(os.Mkdir(host, 0o777), os.Chmod(host, 0o777)); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "here"), []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.pod("all", `
restartPolicy: Never
volumes:
- {name: empty, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
- {name: cm, configMap: {name: cm, items: [{key: colour, path: deep/colour}]}}
- {name: cms, configMap: {name: cm}}
- {name: sec, secret: {secretName: sec}}
- {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: mem, resourceFieldRef: {containerName: c0, resource: limits.memory, divisor: 1Mi}}]}}
- {name: host, hostPath: {path: `+host+`, type: Directory}}
- name: projected
  projected:
    sources:
    - {secret: {name: sec}}
    - {configMap: {name: cm}}
    - {serviceAccountToken: {path: token, expirationSeconds: 7200}}
    - {downwardAPI: {items: [{path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}}
containers:
- resources: {limits: {memory: 32Mi}}
  env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
  volumeMounts:
  - {name: empty, mountPath: /empty}
  - {name: empty, mountPath: /mine, subPathExpr: of-$(POD)}
  - {name: memory, mountPath: /memory}
  - {name: cm, mountPath: /cm}
  - {name: cms, mountPath: /etc/colour, subPath: colour}
  - {name: sec, mountPath: /sec, readOnly: true}
  - {name: down, mountPath: /down}
  - {name: host, mountPath: /host}
  - {name: projected, mountPath: /projected}
  args: [write, /mine/x, mine, --, cat, /empty/of-all/x, --, write, /memory/x, memory, --, cat, /memory/x, --, cat, /cm/deep/colour, --, say, "", --,
    cat, /etc/colour, --, say, "", --, cat, /usr/share/motd, --, cat, /sec/key, --, say, "", --, cat, /down/labels, --, say, "", --, cat, /down/mem, --, say, "", --,
    cat, /host/here, --, write, /host/there, of the guest, --, cat, /projected/key, --, say, "", --, cat, /projected/size, --, say, "", --, cat, /projected/note, --, say, "", --, cat, /projected/token, --, say, "", --,
    cat, /var/run/secrets/kubernetes.io/serviceaccount/namespace, --, say, ""]
`)
	b.phase("all", corev1.PodSucceeded)
	lines := strings.Split(b.logs("all", "c0"), "\n")
	want := []string{"mine", "memory", "red", "red", "from the image", "hush", `app="all"`, `colour="blue"`, "32", "of the host", "hush", "9", "a note", "TOKEN", b.ns, ""}
	if len(lines) != len(want) {
		t.Fatalf("%d lines, not %d: %q", len(lines), len(want), lines)
	}
	for i, w := range want {
		if w == "TOKEN" {
			if strings.Count(lines[i], ".") != 2 || !strings.HasPrefix(lines[i], "ey") {
				t.Errorf("the token is %q", lines[i])
			}
		} else if lines[i] != w {
			t.Errorf("line %d is %q, not %q", i, lines[i], w)
		}
	}
	if raw, err := os.ReadFile(filepath.Join(host, "there")); err != nil || string(raw) != "of the guest\n" {
		t.Errorf("%q %v", raw, err)
	}
}

func TestVolumesThatRefuse(t *testing.T) {
	b := newBed(t)
	b.secret("sec", map[string]string{"key": "hush"})
	b.pod("ro", `
restartPolicy: Never
volumes: [{name: empty, emptyDir: {}}, {name: sec, secret: {secretName: sec}}]
containers:
- {args: [write, /v/x, x], volumeMounts: [{name: empty, mountPath: /v, readOnly: true}]}
- {args: [write, /s/x, x], volumeMounts: [{name: sec, mountPath: /s}]}
- {args: [write, /x, x], securityContext: {readOnlyRootFilesystem: true}}
- {args: [cat, /v/../../../../etc/shadow], volumeMounts: [{name: empty, mountPath: /v}]}
`)
	p := b.phase("ro", corev1.PodFailed)
	for _, c := range []string{"c0", "c1", "c2", "c3"} {
		if e := ended(p, c); e == nil || e.ExitCode != 1 {
			t.Errorf("%s: %+v", c, e)
		}
	}
	b.pod("nocm", `{volumes: [{name: v, configMap: {name: absent}}], containers: [{args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}]}`)
	b.become("nocm", "waits", func(p *corev1.Pod) bool { return waits(p, "c0", "ContainerCreating") })
	b.configMap("absent", nil)
	b.phase("nocm", corev1.PodRunning)
	b.pod("nohost", `{volumes: [{name: v, hostPath: {path: /nothing/here, type: Directory}}], containers: [{args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}]}`)
	b.become("nohost", "waits", func(p *corev1.Pod) bool { return waits(p, "c0", "ContainerCreating") })
}

func TestUpdatesOfVolumes(t *testing.T) {
	b := newBed(t)
	b.configMap("cm", map[string]string{"a": "one", "b": "one"})
	b.secret("sec", map[string]string{"k": "old"})
	b.pod("watch", `
volumes: [{name: cm, configMap: {name: cm}}, {name: sec, secret: {secretName: sec}}, {name: down, downwardAPI: {items: [{path: l, fieldRef: {fieldPath: metadata.labels}}]}}]
containers:
- {args: [watch, /cm/a], volumeMounts: [{name: cm, mountPath: /cm}]}
- {args: [watch, /sec/k], volumeMounts: [{name: sec, mountPath: /sec}]}
- {args: [watch, /down/l], volumeMounts: [{name: down, mountPath: /down}]}
- {args: [watch, /cm/b], volumeMounts: [{name: cm, mountPath: /cm}]}
`)
	b.logs("watch", "c0", "one")
	b.logs("watch", "c1", "old")
	b.logs("watch", "c2", "blue")
	b.logs("watch", "c3", "one")
	b.kubectl("patch", "configmap", "cm", "--type=merge", "-p", `{"data": {"a": "two", "b": null}}`)
	b.kubectl("patch", "secret", "sec", "--type=merge", "-p", `{"stringData": {"k": "new"}}`)
	b.kubectl("label", "pod", "watch", "--overwrite", "colour=green")
	b.logs("watch", "c0", "one", "two")
	b.logs("watch", "c1", "old", "new")
	b.logs("watch", "c2", "blue", "green")
	b.logs("watch", "c3", "one", "none")
}
