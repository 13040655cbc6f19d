package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/bench/reference"
	"github.com/coracle-edge/coracle/test/lab"
)

// upstreamNode is a node of upstream's whose agents' bytes are counted, with our
// crishim as its runtime.
type upstreamNode struct {
	reference.Node
	bin  string
	pods int

	agents map[string]*forwarder
}

func (n *upstreamNode) start(ctx context.Context) error {
	n.agents = map[string]*forwarder{}
	n.Runtime = n.crishim
	n.Via = func(agent, api string) (string, error) {
		f, err := forward(reference.Address+":0", api)
		if err != nil {
			return "", err
		}
		n.agents[agent] = f
		return f.l.Addr().String(), nil
	}
	if err := n.Start(ctx); err != nil {
		return err
	}
	return n.run(ctx)
}

// crishim is the runtime because no other is sure to be there: the kubelet's talk
// with its API server doesn't depend on it.
func (n *upstreamNode) crishim(ctx context.Context) (string, error) {
	if err := n.Begin(nil, filepath.Join(n.bin, "crishim"), "--listen", "unix://"+n.File("cri.sock"), "--admin", n.File("admin.sock"), "--state-dir", n.File("crishim"),
		"--runner", filepath.Join(n.bin, "wasmrunner"), "--cni-conf-dir", n.File("none"), "--pod-network", "host", "--registry-hosts", n.File("none")); err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.File("admin.sock"))
	}}}
	archive := lab.Archive(lab.CNCF(examples.HelloModule), examples.HelloImage)
	return n.File("cri.sock"), reference.Until(ctx, 30*time.Second, "crishim takes an image", func() error {
		resp, err := client.Post("http://crishim/v1/images/import?ref="+examples.HelloImage, "application/x-tar", bytes.NewReader(archive))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

// run has the node run its pods.
func (n *upstreamNode) run(ctx context.Context) error {
	if _, err := n.Client.CoreV1().ConfigMaps("default").Create(ctx, settingsMap(), metav1.CreateOptions{}); err != nil {
		return err
	}
	for i := range n.pods {
		pod := hello(fmt.Sprintf("ordinary-%d", i))
		// A kubelet makes a pod anew, for ever, that has no address of its own, and
		// without network plugins there is none.
		pod.Spec.NodeName, pod.Spec.HostNetwork = reference.Name, true
		if _, err := n.Client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return reference.Until(ctx, 3*time.Minute, "all pods run", func() error { return n.check(ctx) })
}

// check that all pods run, and that the node's agent is there.
func (n *upstreamNode) check(ctx context.Context) error {
	list, err := n.Client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	running := 0
	for _, p := range list.Items {
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		running++
		for _, c := range p.Status.ContainerStatuses {
			if c.RestartCount > 0 {
				return fmt.Errorf("pod %s was restarted %d times: this is not idle", p.Name, c.RestartCount)
			}
		}
	}
	if running != n.pods {
		return fmt.Errorf("%d of %d pods run", running, n.pods)
	}
	return n.Alive(ctx)
}

// stop ends all, the pods first.
func (n *upstreamNode) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = n.RemovePods(ctx)
	_ = reference.Until(ctx, 30*time.Second, "the pods are gone", func() error {
		if runners, _ := filepath.Glob(n.File("crishim/*/*/state.json")); len(runners) > 0 {
			return fmt.Errorf("%d are there", len(runners))
		}
		return nil
	})
	n.Stop()
	for _, f := range n.agents {
		f.stop()
	}
}
