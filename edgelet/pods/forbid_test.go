package pods

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

func TestSysctls(t *testing.T) {
	unsafe := []string{"net.core.*", "kernel.msgmax"}
	if err := CheckSysctls(unsafe); err != nil {
		t.Fatal(err)
	}
	if err := CheckSysctls([]string{"vm.swappiness"}); err == nil {
		t.Error("what is no namespace's own was let through")
	}
	for _, c := range []struct {
		name             string
		hostNet, hostIPC bool
		want             string
	}{
		{"kernel.shm_rmid_forced", false, false, ""},
		{"net/ipv4/tcp_syncookies", false, false, ""},
		{"net.core.somaxconn", false, false, ""},
		{"kernel.msgmax", false, false, ""},
		{"kernel.msgmnb", false, false, `"kernel.msgmnb" not allowlisted`},
		{"vm.swappiness", false, false, `"vm.swappiness" not allowlisted`},
		{"net.core.somaxconn", true, false, `"net.core.somaxconn" not allowed with host Net enabled`},
		{"kernel.shm_rmid_forced", false, true, `"kernel.shm_rmid_forced" not allowed with host IPC enabled`},
	} {
		err := checkSysctl(c.name, unsafe, c.hostNet, c.hostIPC)
		if got := ""; err != nil && err.Error() != c.want || err == nil && got != c.want {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestForbiddenPodsFail(t *testing.T) {
	on(t, func(b *board) {
		pod := testPod("a")
		pod.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: "vm.swappiness", Value: "1"}}}
		armored := testPod("b")
		armored.Spec.Containers[0].SecurityContext = &v1.SecurityContext{AppArmorProfile: &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault}}
		b.m.cfg.appArmorEnabled = b.dir + "/nothing"
		b.store.put(pod)
		b.store.put(armored)
		b.settle(time.Second)
		if s := b.store.status("uid-a"); s.Phase != v1.PodFailed || s.Reason != "SysctlForbidden" || !strings.Contains(s.Message, `forbidden sysctl: "vm.swappiness" not allowlisted`) {
			t.Errorf("%+v", s)
		}
		if _, err := b.m.Log("default", "a", "", "main", false); err == nil || errors.Is(err, ErrNoContainer) ||
			err.Error() != `container "main" in pod "a" is not available: Pod was rejected: forbidden sysctl: "vm.swappiness" not allowlisted` {
			t.Errorf("its log: %v", err)
		}
		if s := b.store.status("uid-b"); s.Phase != v1.PodFailed || s.Reason != "AppArmor" || !strings.Contains(s.Message, "Cannot enforce AppArmor: AppArmor is not enabled on the host") {
			t.Errorf("%+v", s)
		}
		if err := os.WriteFile(b.dir+"/nothing", []byte("Y\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		armored.UID, armored.Name = "uid-c", "c"
		b.store.put(armored)
		b.settle(time.Second)
		if s := b.store.status("uid-c"); s.Phase != v1.PodRunning {
			t.Errorf("with AppArmor: %+v", s)
		}
	})
}

// A pod of the API doesn't pass for one of the node's own by saying so.
func TestOnlyTheNodeSaysWhatIsItsOwn(t *testing.T) {
	on(t, func(b *board) {
		b.stop()
		var sources []string
		b.more = func(c *Config) {
			c.Gates = []Gate{func(pod *v1.Pod) (string, string) {
				sources = append(sources, pod.Annotations["kubernetes.io/config.source"])
				return "", ""
			}}
		}
		b.boot()
		claims := func(p *v1.Pod) { p.Annotations = map[string]string{"kubernetes.io/config.source": "file"} }
		b.store.put(testPod("a", claims))
		b.settle(time.Second)
		raw, err := kubeobj.EncodePod(testPod("b", claims))
		if err != nil {
			t.Fatal(err)
		}
		b.m.SetStatic([]Object{{Namespace: "default", Name: "b", UID: "uid-b", Hash: "1", Raw: raw, Static: true}})
		b.settle(time.Second)
		if strings.Join(sources, " ") != "api file" {
			t.Errorf("%q", sources)
		}
	})
}

func TestSeccompOfTheNode(t *testing.T) {
	of := func(name string) (*runtimeapi.LinuxContainerSecurityContext, error) {
		pod := testPod("a")
		pod.Spec.Containers[0].SecurityContext = &v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: &name}}
		return securityContext(pod, &pod.Spec.Containers[0], images.Image{}, "/profiles")
	}
	if sc, err := of("sub/audit.json"); err != nil || sc.Seccomp.LocalhostRef != "/profiles/sub/audit.json" {
		t.Error(sc, err)
	}
	for _, name := range []string{"", "../shadow", "/etc/shadow"} {
		if sc, err := of(name); err == nil {
			t.Errorf("%q became %v", name, sc.Seccomp)
		}
	}
}

// Hooks over HTTP verify no certificate, and https to a server of http falls back.
func TestHTTPHooks(t *testing.T) {
	asked := make(chan string, 10)
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.UserAgent() + " " + r.URL.Path })
	plain, secure := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer plain.Close()
	defer secure.Close()
	b := newBoard(t)
	m, err := New(Config{Runtime: b.rt, Store: b.store, Images: images.New(images.Config{Service: b.rt}), Volumes: testVolumes(b), Node: fakeNode{}, LogsDir: b.dir})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorker(m, "default", "a", "uid-a")
	w.pod = testPod("a")
	port := func(s *httptest.Server) intstr.IntOrString {
		return intstr.FromString(s.URL[strings.LastIndexByte(s.URL, ':')+1:])
	}
	for name, a := range map[string]*v1.HTTPGetAction{
		"http":           {Path: "one", Port: port(plain)},
		"https":          {Path: "/two", Scheme: v1.URISchemeHTTPS, Port: port(secure)},
		"https for http": {Path: "/three", Scheme: v1.URISchemeHTTPS, Port: port(plain)},
	} {
		if err := w.runHook(t.Context(), "c1", &w.pod.Spec.Containers[0], &v1.LifecycleHandler{HTTPGet: a}, []string{"127.0.0.1"}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := <-asked; !strings.HasPrefix(got, "kube-lifecycle/1.36 /") {
			t.Errorf("%s: %s", name, got)
		}
	}
	if !b.store.said("request to HTTPS lifecycle hook 127.0.0.1") {
		t.Error("the fallback was not told")
	}
	err = w.runHook(t.Context(), "c1", &w.pod.Spec.Containers[0], &v1.LifecycleHandler{HTTPGet: &v1.HTTPGetAction{Path: "/x", Port: intstr.FromString("web")}}, nil)
	if err == nil || !strings.Contains(err.Error(), `HTTP lifecycle hook (/x) for Container "main" in Pod "a_default(uid-a)" failed - error: `) {
		t.Error(err)
	}
}

// A hook that never ends holds up nobody but its container, and its pod's end
// ends it.
func TestPostStartHookThatHangs(t *testing.T) {
	on(t, func(b *board) {
		pod := testPod("a")
		pod.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"sleep"}}}}
		b.rt.Hang("ExecSync", true)
		b.m.slots[1] = make(chan struct{}, 1)
		b.store.put(pod)
		b.settle(time.Hour)
		b.store.put(testPod("b"))
		b.settle(time.Second)
		if len(b.rt.Running("uid-b")) != 1 {
			t.Error("another pod waits for the hook")
		}
		b.store.put(deleted(pod, 5))
		b.settle(10 * time.Second)
		if !b.store.gone("uid-a") {
			t.Error("the pod can't be ended")
		}
	})
}
