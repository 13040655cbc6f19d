package fleethub

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

func TestLeasesAreTrue(t *testing.T) {
	begun := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	said := begun.Add(-time.Hour)
	indexer := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	put := func(name string, ours bool, ready corev1.ConditionStatus) {
		o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: ready, LastHeartbeatTime: metav1.NewTime(said)}}}}
		if ours {
			o.Annotations = map[string]string{AnnotationReport: "ab/1/1"}
		}
		_ = indexer.Add(o)
	}
	put("present", true, corev1.ConditionTrue)
	put("expected", true, corev1.ConditionTrue)
	put("away-for-long", true, corev1.ConditionUnknown)
	put("went", true, corev1.ConditionUnknown)
	put("stock-kubelet", false, corev1.ConditionTrue)
	h := &Hub{nodeLister: corelisters.NewNodeLister(indexer), classes: fleet.DefaultClasses(), nodes: map[string]*node{}, started: begun,
		c: Config{Now: func() time.Time { return begun.Add(time.Minute) }}}
	if _, known := h.NodeLeases(); known {
		t.Error("a hub that hasn't begun knows leases")
	}
	h.live.Store(true)
	for _, x := range []struct {
		name     string
		presence Presence
		heard    time.Time
		here     bool
	}{
		{"present", Present, begun.Add(10 * time.Second), true},
		{"expected", Unsure, time.Time{}, false},
		{"away-for-long", Away, time.Time{}, false},
		{"went", Away, begun.Add(5 * time.Second), false},
		{"stock-kubelet", Away, time.Time{}, false},
	} {
		n := h.get(x.name)
		n.presence.Store(int32(x.presence))
		n.confirmed.Store(x.here)
		if !x.heard.IsZero() {
			n.heard.Store(x.heard.UnixNano())
		}
	}
	h.get("present").keepalive.Store(int64(4 * time.Minute))
	leases, known := h.NodeLeases()
	got := map[string]NodeLease{}
	for _, l := range leases {
		got[l.Node] = l
	}
	if !known || len(got) != 4 {
		t.Fatalf("%v, %d leases: %v", known, len(got), got)
	}
	for name, want := range map[string]time.Time{
		"present":       begun.Add(time.Minute), // this transport can't tell, so while the connection stands
		"expected":      begun,                  // the hub before would have called it away
		"away-for-long": said,
		"went":          begun.Add(5 * time.Second),
	} {
		if !got[name].Renewed.Equal(want) {
			t.Errorf("%s: renewed at %s, want %s", name, got[name].Renewed, want)
		}
	}
	if got["present"].Duration != 6*time.Minute || got["went"].Duration != 45*time.Second {
		t.Errorf("durations %s and %s", got["present"].Duration, got["went"].Duration)
	}
	h.c.Transport = deaf{at: begun.Add(20 * time.Second)}
	leases, _ = h.NodeLeases()
	for _, l := range leases {
		if l.Node == "present" && !l.Renewed.Equal(begun.Add(20*time.Second)) {
			t.Errorf("renewed at %s though the broker last heard it at %s", l.Renewed, begun.Add(20*time.Second))
		}
	}
}

// deaf is a transport that last heard everybody at one time.
type deaf struct {
	Transport
	at time.Time
}

func (d deaf) Heard(string) (time.Time, bool) { return d.at, true }
