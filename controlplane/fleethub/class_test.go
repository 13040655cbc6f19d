package fleethub

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

func TestBudgetOfANode(t *testing.T) {
	for text, want := range map[string]uint64{"": 0, "5Mi": 5 << 20, "100k": 100_000, "1": 1} {
		o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{fleet.AnnotationDataBudget: text}}}
		if got, ok := parseBudget(o); !ok || got != want {
			t.Errorf("%q: %d %v, want %d", text, got, ok, want)
		}
	}
	for _, text := range []string{"much", "-5Mi", "0", "5MB/day"} {
		o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{fleet.AnnotationDataBudget: text}}}
		if got, ok := parseBudget(o); ok {
			t.Errorf("%q: %d", text, got)
		}
	}
	if got, ok := parseBudget(&corev1.Node{}); !ok || got != 0 {
		t.Errorf("no annotation: %d %v", got, ok)
	}
}

func FuzzBudget(f *testing.F) {
	f.Add("5Mi")
	f.Fuzz(func(t *testing.T, text string) {
		o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{fleet.AnnotationDataBudget: text}}}
		if got, ok := parseBudget(o); ok && text != "" && int64(got) <= 0 {
			t.Errorf("%q: %d", text, got)
		}
	})
}

func TestWindowGrowsWithTheFleet(t *testing.T) {
	lan := fleet.DefaultClasses()["lan"]
	for nodes, want := range map[int]time.Duration{0: 2 * time.Second, 500: 2 * time.Second, 501: 4 * time.Second, 1000: 4 * time.Second, 5000: 32 * time.Second} {
		if got := window(lan, nodes); got != want {
			t.Errorf("%d nodes: %s, want %s", nodes, got, want)
		}
	}
	lan.Jitter = 0
	if got := window(lan, 0); got != 0 {
		t.Errorf("no jitter, no nodes: %s", got)
	}
}

func TestClassesOfAHub(t *testing.T) {
	c := Config{Keepalive: 12 * time.Second, WillGrace: time.Second}
	got, err := c.classes()
	if err != nil {
		t.Fatal(err)
	}
	for name, own := range fleet.DefaultClasses() {
		if k := got[name]; k.Keepalive != 12*time.Second || k.Retry > 8*time.Second || k.Grace != time.Second || k.Jitter != own.Jitter {
			t.Errorf("%s: %+v", name, k)
		}
	}
	if _, err := (&Config{Keepalive: time.Second}).classes(); err == nil {
		t.Error("a keepalive of one second was taken")
	}
	if _, err := (&Config{Classes: fleet.LinkClasses{"lte": got["lte"]}}).classes(); err == nil {
		t.Error("classes without the default one were taken")
	}
}

func TestTheLabelIsTheAdministrators(t *testing.T) {
	for _, x := range []struct{ label, own, want string }{{"", "lte", "lte"}, {"wifi", "lte", "wifi"}, {"", "lora", ""}, {"", "", ""}} {
		o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}}}
		if x.label != "" {
			o.Labels[fleet.LabelLinkClass] = x.label
		}
		if got := withClass(o, x.own).Labels[fleet.LabelLinkClass]; got != x.want {
			t.Errorf("label %q, the node says %q: %q, want %q", x.label, x.own, got, x.want)
		}
	}
}
