package main

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/streams"
	"github.com/coracle-edge/coracle/edgelet/tunnel"
)

// hostLogs is what /logs/ of the node's API shows.
const hostLogs = "/var/log/"

// podStreams serves exec, attach and the ports of this node's pods.
func (a *agent) podStreams() (*streams.Server, error) {
	c := streams.Config{Runtime: a.runtime, Idle: a.o.streamIdle, Logger: a.log,
		Pod: func(namespace, name, uid string) (*v1.Pod, error) {
			pod, err := a.pods.Pod(namespace, name, uid)
			if errors.Is(err, pods.ErrNoPod) {
				err = fmt.Errorf("%w: %w", streams.ErrNoPod, err)
			}
			return pod, err
		}}
	if a.shim != nil {
		c.InProcess = a.shim
	}
	return streams.New(c)
}

// tunnels serves the node's API and its pods' ports on streams to the control plane.
func (a *agent) tunnels(c tunnel.Config) (*tunnel.Tunnels, error) {
	s, err := a.podStreams()
	if err != nil {
		return nil, err
	}
	more := a.morePaths()
	maps.Copy(more, s.Paths())
	c.Streams, c.Count, c.Logger = a.o.streams, a.countStream, a.log
	c.Handler = a.nodeAPI(s, more)
	c.Dial = s.Dial(a.pods.PodsAt)
	return tunnel.New(c), nil
}

func (a *agent) nodeAPI(s *streams.Server, more map[string]http.Handler) http.Handler {
	return tunnel.NewAPI(tunnel.APIConfig{Pods: podLogs{a.pods}, Specs: a.pods.Specs, Running: s.Running, Config: a.configz,
		Healthy: a.looksAfterPods, LogsDir: hostLogs, Now: a.now, Logger: a.log, More: more})
}

// looksAfterPods is the kubelet's check "syncloop": that the pods were taken up,
// and that their manager answers.
func (a *agent) looksAfterPods() error {
	select {
	case <-a.pods.Ready():
	default:
		return errors.New("the container runtime hasn't answered yet, so no pod is looked after")
	}
	answered := make(chan struct{})
	go func() {
		a.pods.Pods()
		close(answered)
	}()
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	select {
	case <-answered:
		return nil
	case <-timer.C:
		return errors.New("the manager of pods hasn't answered for 2 s")
	}
}

// configz is what this node runs with, by the names of upstream's
// KubeletConfiguration where it has one for it.
func (a *agent) configz() any {
	endpoint := a.o.runtimeEndpoint
	if endpoint == "" && a.o.containerd != "" {
		endpoint = "unix://" + a.o.containerd
	}
	maxPods := a.node.Allocatable()[v1.ResourcePods]
	return map[string]any{
		"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
		"enableServer":  false, // nothing listens
		"staticPodPath": a.o.staticPods, "containerRuntimeEndpoint": endpoint, "maxPods": maxPods.Value(),
		"clusterDomain": a.o.clusterDomain, "clusterDNS": split(a.o.clusterDNS), "resolvConf": a.o.resolvConf,
		"cgroupRoot": a.o.cgroupRoot, "podPidsLimit": max(a.o.resources.podMaxPIDs, -1), "containerLogMaxSize": fmt.Sprint(a.o.logMaxSize), "containerLogMaxFiles": a.o.logMaxFiles,
		"streamingConnectionIdleTimeout": a.o.streamIdle.String(), "enableDebuggingHandlers": true, "enableSystemLogHandler": true,
	}
}
