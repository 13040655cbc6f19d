package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/evict"
	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/node"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/pods/podstate"
	"github.com/coracle-edge/coracle/edgelet/state"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// roomyNode is what pods ask of their node.
type roomyNode struct{}

func (roomyNode) Name() string               { return "board" }
func (roomyNode) Labels() map[string]string  { return nil }
func (roomyNode) MemoryCapacity() int64      { return 1 << 30 }
func (roomyNode) DeclaredFeatures() []string { return nil }
func (roomyNode) HostIPs() []string          { return []string{"192.0.2.7"} }
func (roomyNode) Allocatable() v1.ResourceList {
	return v1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("1Gi"), "pods": resource.MustParse("5")}
}

// A runtime that doesn't end what it is told to end, or keeps what it is told to
// remove, is told of as by a kubelet.
func TestWhatTheRuntimeDoesNotDoIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		st, err := state.Open(filepath.Join(dir, "state.db"), state.Options{})
		if err != nil {
			t.Fatal(err)
		}
		rt := fakecri.New()
		rt.AddImage("wasm:1", "wasm")
		rt.Plan("short", fakecri.Plan{RunFor: time.Second})
		a := &agent{log: slog.New(slog.DiscardHandler), state: st}
		a.events = node.NewRecorder(a.putNodeEvent, a.log)
		store := podstate.New(st)
		a.pods, err = pods.New(pods.Config{Runtime: rt, Store: store, Images: images.New(images.Config{Service: rt}), Node: roomyNode{},
			Volumes: volumes.New(volumes.Config{Dir: dir + "/pods", Objects: store}), LogsDir: dir + "/logs", ResolvConf: dir + "/none", Log: a.log})
		if err != nil {
			t.Fatal(err)
		}
		a.pods.SetStatic(nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- a.pods.Run(ctx) }()
		var order []*fleet.Object
		for name, policy := range map[string]v1.RestartPolicy{"long": v1.RestartPolicyAlways, "short": v1.RestartPolicyNever} {
			raw, err := kubeobj.EncodePod(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "n", UID: types.UID(name)},
				Spec: v1.PodSpec{NodeName: "board", RestartPolicy: policy, Containers: []v1.Container{{Name: name, Image: "wasm:1", ImagePullPolicy: v1.PullNever}}}})
			if err != nil {
				t.Fatal(err)
			}
			hash := fleet.HashObject(raw)
			order = append(order, &fleet.Object{Kind: "Pod", Namespace: "n", Name: name, Uid: name, Hash: hash[:], Raw: raw})
		}
		if err := st.Apply(fleet.OrderVersion{Incarnation: "i", Epoch: 1, Counter: 1}, order, nil, time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		told := func(object, reason, message string) {
			t.Helper()
			list, err := st.JournalTail(100)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				if e.GetReason() == reason && e.GetName() == object && e.GetType() == v1.EventTypeWarning && e.GetMessage() == message {
					return
				}
			}
			t.Errorf("no event %s of %q: %v", reason, object, list)
		}

		rt.Hang("StopContainer", true)
		short, end := context.WithTimeout(ctx, 10*time.Second)
		defer end()
		if err := (evictPods{a}).End(short, "long", evict.Verdict{Reason: "Evicted", Message: "for want of room"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a pod that can't be ended: %v", err)
		}
		told("long", "ExceededGracePeriod", "Container runtime did not kill the pod within specified grace period.")

		rt.Hang("RemovePodSandbox", true)
		rt.Hang("RemoveContainer", true)
		if err := (collector{a}).DeleteDeadContainers(ctx); err == nil {
			t.Error("what is dead was removed")
		}
		told("", "ContainerGCFailed", "removing dead containers: context deadline exceeded")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
}
