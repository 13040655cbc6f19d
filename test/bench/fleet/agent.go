package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/budget"
	"github.com/coracle-edge/coracle/edgelet/identity"
	"github.com/coracle-edge/coracle/edgelet/link"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// agent is edgelet without what runs pods: its identity, state and link are the
// real ones, and what they are told is what the pods' part would say.
type agent struct {
	p     *pasture
	name  string
	store *state.Store
	link  *link.Link

	mu      sync.Mutex
	held    map[string]bool // pods that "run", by UID
	ever    map[string]bool // pods that ran once
	socket  net.Conn        // the last to the broker
	problem string
}

// newAgent joins with line and opens the state file.
func newAgent(ctx context.Context, p *pasture, dir string, line enrollment.Line) (*agent, error) {
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("FLEET_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", line.Node)
	}
	n := &agent{p: p, name: line.Node, held: map[string]bool{}, ever: map[string]bool{}}
	var id *identity.Identity
	var err error
	n.store, err = state.Open(filepath.Join(dir, "state.db"), state.Options{Logger: log, Unseal: func(uid string, h fleet.Hash, sealed []byte) ([]byte, error) {
		return fleet.Unseal(id.SealingKey, n.name, uid, h, sealed)
	}})
	if err != nil {
		return nil, err
	}
	id, err = identity.Join(ctx, identity.JoinOptions{Options: identity.Options{Dir: filepath.Join(dir, "identity"), Floor: n.store, Logger: log}, Line: line})
	if err != nil {
		return nil, err
	}
	var known []ed25519.PublicKey
	if key, err := id.HubKey(); err == nil {
		known = append(known, key)
	}
	n.link, err = link.New(link.Config{
		NodeName: n.name, Brokers: func() []string { return id.Cluster().MQTT },
		TLS: id.ClientTLS(enrollment.MQTTServerName), Key: id.SigningKey, Trust: link.NewTrust(id.VerifyHub, known...), State: n.store,
		ObjectsTLS: id.ClientTLS(enrollment.FleetServerName), FleetURLs: id.FleetURLs, Budget: budget.New(n.store, nil),
		Addresses: id.Addresses, Learn: id.Learn,
		Features: []string{"Sidecars", "StaticPods", "Wasm"}, AgentVersion: "bench", BootID: []byte(n.name), Logger: log, Dial: n.dial,
	})
	return n, err
}

// dial reaches the broker unless the cable is cut.
func (n *agent) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if n.p.cut.Load() {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	c, err := (&net.Dialer{Timeout: 20 * time.Second, KeepAlive: -1}).DialContext(ctx, network, address)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.socket = c
	return c, err
}

// pull ends the connection to the broker, as if the other side had.
func (n *agent) pull() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if tcp, ok := n.socket.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
		_ = tcp.CloseRead()
	}
}

func (n *agent) run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() {
		for {
			n.follow()
			select {
			case <-ctx.Done():
				return
			case <-n.store.Changed():
			}
		}
	})
	if err := n.link.Run(ctx); err != nil {
		n.fail(err)
	}
	group.Wait()
}

func (n *agent) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.problem = err.Error()
}

// follow does with what is ordered what edgelet/pods does: what is new runs, what
// is being deleted ends and is gone, and so is what isn't ordered any more.
func (n *agent) follow() {
	pods, err := n.store.Desired(state.KindPod)
	if err != nil {
		n.fail(err)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	ordered := map[string]bool{}
	for _, o := range pods {
		ordered[o.UID] = true
		pod, err := kubeobj.Pod(o.Raw)
		if err != nil {
			n.problem = err.Error()
			continue
		}
		switch {
		case pod.DeletionTimestamp != nil:
			if n.held[o.UID] {
				delete(n.held, o.UID)
				n.p.counts.ended.Add(1)
			}
			n.says(pod, corev1.PodSucceeded, true)
		case !n.held[o.UID]:
			if n.ever[o.UID] {
				n.p.counts.restarted.Add(1)
			}
			n.held[o.UID], n.ever[o.UID] = true, true
			n.p.counts.started.Add(1)
			n.says(pod, corev1.PodRunning, false)
		}
	}
	for uid := range n.held {
		if !ordered[uid] {
			delete(n.held, uid)
			n.p.counts.stopped.Add(1)
		}
	}
}

// says reports a pod; n.mu is held.
func (n *agent) says(pod *corev1.Pod, phase corev1.PodPhase, gone bool) {
	status := podStatus(pod, phase)
	raw, err := status.Marshal()
	if err == nil {
		err = n.store.PutPodStatus(string(pod.UID), state.PodReport{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Status: raw, Gone: gone})
	}
	if err == nil && !gone {
		err = n.store.Journal(state.Entry{Kind: state.EntryEvent, ObjectKind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID),
			Type: corev1.EventTypeNormal, Reason: "Started", Message: "Started container main", Component: "kubelet", Count: 1})
	}
	if err != nil {
		n.problem = err.Error()
	}
}

// lacks says what keeps the node from being in step with want; empty if nothing.
func (n *agent) lacks(want []string) string {
	if s := n.link.Status(); !s.Live {
		return fmt.Sprintf("not welcomed, %s", s.LastError)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.problem != "" {
		return n.problem
	}
	if len(n.held) != len(want) || slices.ContainsFunc(want, func(uid string) bool { return !n.held[uid] }) {
		return fmt.Sprintf("%d pods, not the right %d", len(n.held), len(want))
	}
	for _, r := range n.store.Reports() {
		if !r.Acked {
			return "report of " + r.UID + " not answered for"
		}
	}
	return ""
}

func podStatus(pod *corev1.Pod, phase corev1.PodPhase) corev1.PodStatus {
	now := metav1.Now()
	running := phase == corev1.PodRunning
	status := corev1.PodStatus{Phase: phase, HostIP: "192.0.2.1", PodIP: "10.128.3.4", PodIPs: []corev1.PodIP{{IP: "10.128.3.4"}}, StartTime: &now, QOSClass: corev1.PodQOSBestEffort}
	ready := corev1.ConditionFalse
	if running {
		ready = corev1.ConditionTrue
	}
	for kind, value := range map[corev1.PodConditionType]corev1.ConditionStatus{
		corev1.PodInitialized: corev1.ConditionTrue, corev1.PodScheduled: corev1.ConditionTrue, corev1.PodReady: ready, corev1.ContainersReady: ready,
	} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: value, LastTransitionTime: now})
	}
	for _, c := range pod.Spec.Containers {
		s := corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: c.Image + "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			ContainerID: "coracle://" + string(pod.UID), Ready: running, Started: &running}
		if running {
			s.State.Running = &corev1.ContainerStateRunning{StartedAt: now}
		} else {
			s.State.Terminated = &corev1.ContainerStateTerminated{StartedAt: now, FinishedAt: now, Reason: "Completed"}
		}
		status.ContainerStatuses = append(status.ContainerStatuses, s)
	}
	return status
}

// register says what the node is, in about as many bytes as a board does.
func (n *agent) register() error {
	now := metav1.Now()
	resources := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("948Mi"),
		corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceEphemeralStorage: resource.MustParse("29Gi"),
	}
	node := corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: map[string]string{
			corev1.LabelHostname: n.name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "arm64", "coracle.dev/board": "raspberry-pi-3-b"}},
		Status: corev1.NodeStatus{
			Capacity: resources, Allocatable: resources, Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeHostName, Address: n.name}},
			NodeInfo: corev1.NodeSystemInfo{MachineID: n.name, BootID: n.name, KernelVersion: "6.12.47-rpi", OSImage: "Debian GNU/Linux 12 (bookworm)",
				ContainerRuntimeVersion: "coracle://1.0.0", KubeletVersion: "v1.36.3", OperatingSystem: "linux", Architecture: "arm64"},
		},
	}
	for kind, value := range map[corev1.NodeConditionType]corev1.ConditionStatus{
		corev1.NodeReady: corev1.ConditionTrue, corev1.NodeMemoryPressure: corev1.ConditionFalse,
		corev1.NodeDiskPressure: corev1.ConditionFalse, corev1.NodePIDPressure: corev1.ConditionFalse,
	} {
		node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: kind, Status: value, Reason: "Bench", LastHeartbeatTime: now, LastTransitionTime: now})
	}
	raw, err := node.Marshal()
	if err != nil {
		return err
	}
	return n.store.PutNodeReport(raw)
}
