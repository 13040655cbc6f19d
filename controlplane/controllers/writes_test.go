package controllers_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The tests of this file come last: they look at what those before left behind.

// Nothing happens on a cluster that runs a workload and has one node away, so nothing is written: the revision of etcd
// stands still.
func TestIdleClusterWritesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	c := shared
	own := c.namespace(t)
	nodes := c.nodes(t, 3, nil)
	_, err := c.client.AppsV1().Deployments(own).Create(t.Context(), deploymentOf("web", "one", 3), metav1.CreateOptions{})
	must(t, err)
	eventually(t, "rollout", func() error { return c.rolledOut(t, own, "web") })
	c.boards.leave(t, nodes[0])
	eventually(t, "earlier tests' namespaces are gone", func() error {
		list, err := c.client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
		must(t, err)
		for _, ns := range list.Items {
			if strings.HasPrefix(ns.Name, "t-") && ns.Name != own {
				return fmt.Errorf("namespace %s: %+v", ns.Name, ns.Status)
			}
		}
		return nil
	})
	time.Sleep(5 * time.Second)
	revision := func() string {
		list, err := c.client.CoreV1().ConfigMaps("kube-system").List(t.Context(), metav1.ListOptions{})
		must(t, err)
		return list.ResourceVersion
	}
	before := revision()
	time.Sleep(40 * time.Second)
	if after := revision(); after != before {
		t.Errorf("the revision of etcd went from %s to %s in 40 idle seconds", before, after)
	}
}

// No controller ended, panicked, or was refused what it does.
func TestNoControllerFailed(t *testing.T) {
	for _, text := range []string{"controller failed", "panic", "forbidden: User"} {
		for _, line := range shared.log.with(text) {
			t.Errorf("%s", line)
		}
	}
}
