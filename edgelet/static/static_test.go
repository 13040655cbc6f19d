package static

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

const hello = `apiVersion: v1
kind: Pod
metadata:
  name: hello
spec:
  containers:
  - name: main
    image: registry.local/hello:1
    resources:
      limits: {memory: 16Mi}
`

func TestDecodeMakesAPodAsAKubeletDoes(t *testing.T) {
	pod, err := Decode([]byte(hello), "/etc/pods/hello.yaml", "Board-1")
	if err != nil {
		t.Fatal(err)
	}
	c := pod.Spec.Containers[0]
	if pod.Name != "hello-board-1" || pod.Namespace != "default" || pod.Spec.NodeName != "Board-1" || len(pod.UID) != 32 ||
		pod.Annotations[AnnotationHash] != string(pod.UID) || pod.Annotations[AnnotationSource] != "file" ||
		pod.Spec.RestartPolicy != v1.RestartPolicyAlways || *pod.Spec.TerminationGracePeriodSeconds != 30 ||
		c.ImagePullPolicy != v1.PullIfNotPresent || c.TerminationMessagePath != "/dev/termination-log" {
		t.Errorf("%+v", pod)
	}
	if q := c.Resources.Requests["memory"]; q.String() != "16Mi" {
		t.Errorf("requests default to limits: %v", c.Resources)
	}
	again, _ := Decode([]byte(hello), "/etc/pods/hello.yaml", "Board-1")
	elsewhere, _ := Decode([]byte(hello), "/etc/pods/hello.yaml", "Board-2")
	changed, _ := Decode([]byte(strings.Replace(hello, "hello:1", "hello:2", 1)), "/etc/pods/hello.yaml", "Board-1")
	if again.UID != pod.UID || elsewhere.UID == pod.UID || changed.UID == pod.UID {
		t.Error("the UID is not the hash of file, node and content")
	}
}

func TestWhatIsNoPodIsNamed(t *testing.T) {
	for name, c := range map[string]struct{ in, says string }{
		"typo":     {strings.Replace(hello, "containers:", "container:", 1), "container"},
		"kind":     {strings.Replace(hello, "kind: Pod", "kind: Deployment", 1), "Deployment"},
		"no name":  {strings.Replace(hello, "name: hello", "namespace: x", 1), "metadata.name"},
		"no image": {strings.Replace(hello, "image: registry.local/hello:1", "tty: true", 1), "image: required"},
		"escape":   {strings.Replace(hello, "name: hello", "name: ../../x", 1), "must not contain"},
		"mount":    {hello + "    volumeMounts: [{name: v, mountPath: /x}]\n", `volume "v"`},
		"yaml":     {"{", "yaml"},
		"twice":    {"kind: Pod\nkind: Pod\n", "kind"},
		"account":  {strings.Replace(hello, "spec:", "spec:\n  serviceAccountName: robot", 1), "static pods may not reference serviceaccounts"},
		"pull":     {strings.Replace(hello, "spec:", "spec:\n  imagePullSecrets: [{name: a}]", 1), "static pods may not reference secrets"},
		"env":      {hello + "    env: [{name: A, valueFrom: {configMapKeyRef: {name: a, key: b}}}]\n", "static pods may not reference configmaps"},
		"env from": {hello + "    envFrom: [{secretRef: {name: a}}]\n", "static pods may not reference secrets"},
		"volume":   {strings.Replace(hello, "spec:", "spec:\n  volumes: [{name: v, secret: {secretName: a}}]", 1), "static pods may not reference secrets (via secret volumes)"},
		"token":    {strings.Replace(hello, "spec:", "spec:\n  volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]", 1), "static pods may not reference serviceaccounts (via projected volumes)"},
		"claim":    {strings.Replace(hello, "spec:", "spec:\n  volumes: [{name: v, persistentVolumeClaim: {claimName: a}}]", 1), "static pods may not reference persistentvolumeclaims"},
		"quantity": {strings.Replace(hello, "16Mi", "lots", 1), "quantit"},
	} {
		if _, err := Decode([]byte(c.in), "f", "n"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestFolderIsFollowed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pods")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sets := make(chan []pods.Object, 8)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	f := &Folder{Path: dir, NodeName: "n", Set: func(p []pods.Object) { sets <- p }}
	go func() { done <- f.Run(ctx) }()
	next := func() []pods.Object {
		select {
		case p := <-sets:
			return p
		case <-time.After(10 * time.Second):
			t.Fatal("nothing seen")
			return nil
		}
	}
	if p := next(); len(p) != 0 {
		t.Fatal(p)
	}
	path := filepath.Join(dir, "hello.yaml")
	os.WriteFile(path, []byte(hello), 0o644)
	first := next()
	if len(first) != 1 || !first[0].Static || first[0].Name != "hello-n" {
		t.Fatalf("%+v", first)
	}
	if pod, err := kubeobj.Pod(first[0].Raw); err != nil || pod.Spec.Containers[0].Name != "main" {
		t.Error(err)
	}
	// A slip of the editor changes nothing.
	os.WriteFile(path, []byte("kind: Po"), 0o644)
	select {
	case p := <-sets:
		t.Errorf("a broken file changed the pods: %+v", p)
	case <-time.After(400 * time.Millisecond):
	}
	os.WriteFile(path+".tmp", []byte(strings.Replace(hello, "hello:1", "hello:2", 1)), 0o644)
	os.Rename(path+".tmp", path)
	for p := next(); len(p) != 1 || p[0].UID == first[0].UID; p = next() {
	}
	os.Remove(path)
	if p := next(); len(p) != 0 {
		t.Errorf("%+v", p)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// When a pod was seen is dated once, and a file in place of a folder is one pod.
func TestOneFileIsAFolderOfOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(path, []byte(hello), 0o644); err != nil {
		t.Fatal(err)
	}
	sets := make(chan []pods.Object, 8)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	clock := time.Unix(1e9, 0).UTC()
	f := &Folder{Path: path, NodeName: "n", Set: func(p []pods.Object) { sets <- p }, Reread: 10 * time.Millisecond,
		Now: func() time.Time { clock = clock.Add(time.Hour); return clock }}
	go func() { done <- f.Run(ctx) }()
	next := func() *v1.Pod {
		t.Helper()
		select {
		case p := <-sets:
			if len(p) != 1 {
				t.Fatalf("%d pods", len(p))
			}
			pod, err := kubeobj.Pod(p[0].Raw)
			if err != nil {
				t.Fatal(err)
			}
			return pod
		case <-time.After(10 * time.Second):
			t.Fatal("nothing seen")
			return nil
		}
	}
	first := next()
	if first.Annotations[AnnotationSeen] != "2001-09-09T02:46:40Z" {
		t.Errorf("%v", first.Annotations)
	}
	// It is read again and again, which changes nothing; another one in its place does.
	select {
	case p := <-sets:
		t.Errorf("set again: %v", p)
	case <-time.After(100 * time.Millisecond):
	}
	if err := os.WriteFile(path+".new", []byte(strings.Replace(hello, "hello:1", "hello:2", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if second := next(); second.UID == first.UID || second.Annotations[AnnotationSeen] == first.Annotations[AnnotationSeen] {
		t.Errorf("%v", second.Annotations)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(hello))
	f.Add([]byte(`{"kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"b","image":"c"}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		pod, err := Decode(data, "f", "n")
		if err != nil {
			return
		}
		if strings.ContainsAny(pod.Name+pod.Namespace+string(pod.UID), "/\x00") || len(pod.Spec.Containers) == 0 {
			t.Fatalf("accepted %+v", pod.ObjectMeta)
		}
		if raw, err := kubeobj.EncodePod(pod); err == nil {
			if _, err := kubeobj.Pod(raw); err != nil {
				t.Fatal(err)
			}
		}
	})
}
