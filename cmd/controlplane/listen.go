package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"

	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/coracle-edge/coracle/internal/durable"
)

// runFile is what run/controlplane.json says of a running control plane.
type runFile struct {
	API   string `json:"api"`
	MQTT  string `json:"mqtt"`
	Fleet string `json:"fleet"`
	PID   int    `json:"pid"`
}

// listeners are what is listened on, and how nodes and clients reach it.
type listeners struct {
	api, mqtt, fleet net.Listener // mqtt is nil if the broker is external
	run              runFile
	hosts            []string // names and addresses of this machine
}

func openListeners(o options) (*listeners, error) {
	l := &listeners{hosts: o.reachable()}
	var err error
	if l.api, err = listen(o, o.securePort, "secure-port"); err != nil {
		return nil, err
	}
	if l.fleet, err = listen(o, o.fleetPort, "fleet-port"); err != nil {
		l.close()
		return nil, err
	}
	if o.mqttURL == "" {
		if l.mqtt, err = listen(o, o.mqttPort, "mqtt-port"); err != nil {
			l.close()
			return nil, err
		}
	}
	l.run = runFile{API: localURL("https", l.api), Fleet: localURL("https", l.fleet), MQTT: o.mqttURL, PID: os.Getpid()}
	if l.mqtt != nil {
		l.run.MQTT = localURL("tls", l.mqtt)
	}
	return l, nil
}

func (l *listeners) close() {
	for _, c := range []net.Listener{l.api, l.mqtt, l.fleet} {
		if c != nil {
			c.Close()
		}
	}
}

// urls are where nodes reach listener, in the order in which to try them.
func (l *listeners) urls(scheme string, listener net.Listener) []string {
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	var out []string
	for _, host := range l.hosts {
		out = append(out, scheme+"://"+net.JoinHostPort(host, port))
	}
	return out
}

// listen takes the wanted port or, if it is in use and the flag allows it, any other.
func listen(o options, port int, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(o.bindAddress, strconv.Itoa(port)))
	if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	if !o.portFallback {
		return nil, fmt.Errorf("port %d of %s is in use: end what uses it, choose another by --%s, or give --port-fallback: %w", port, o.bindAddress, flag, err)
	}
	return net.Listen("tcp", net.JoinHostPort(o.bindAddress, "0"))
}

// localURL is where this machine itself reaches a listener.
func localURL(scheme string, l net.Listener) string {
	host, port, _ := net.SplitHostPort(l.Addr().String())
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

// reachable are the names and addresses of this machine, those that the
// operator gave first.
func (o options) reachable() []string {
	hosts := slices.Clone(o.hosts)
	if o.advertise != "" {
		hosts = append(hosts, o.advertise)
	}
	ip := net.ParseIP(o.bindAddress)
	switch {
	case ip == nil || !ip.IsUnspecified():
		hosts = append(hosts, o.bindAddress)
	default:
		if own, err := utilnet.ResolveBindAddress(ip); err == nil {
			hosts = append(hosts, own.String())
		}
		if name, err := os.Hostname(); err == nil {
			hosts = append(hosts, name)
		}
		hosts = append(hosts, "127.0.0.1")
	}
	var once []string
	for _, h := range hosts {
		if !slices.Contains(once, h) {
			once = append(once, h)
		}
	}
	return once
}

func writeRunFile(path string, f runFile) error {
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
