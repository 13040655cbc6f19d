package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
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

// openListeners takes the ports of the flags; where they are in use and others
// are allowed, the ports of the last run, because nodes and kubeconfigs know
// those, and only then any.
func openListeners(o options) (*listeners, error) {
	l := &listeners{hosts: o.reachable()}
	ports, err := readPorts(o.dataDir)
	if err != nil {
		return nil, err
	}
	listen := func(o options, port int, flag string) (net.Listener, error) {
		l, err := listen(o, ports.wanted(flag, port, o.portFallback), flag)
		if err == nil {
			ports[flag] = l.Addr().(*net.TCPAddr).Port
		}
		return l, err
	}
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
	if err := ports.write(o.dataDir); err != nil {
		l.close()
		return nil, err
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

// ports are those of the last run, by flag. They outlive the process: a control
// plane that came back on other ports would be lost to its nodes.
type ports map[string]int

func portsFile(dataDir string) string { return filepath.Join(dataDir, "ports.json") }

func readPorts(dataDir string) (ports, error) {
	p := ports{}
	raw, err := os.ReadFile(portsFile(dataDir))
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &p)
	}
	if err != nil {
		return nil, fmt.Errorf("ports of the last run, %s: %w; remove the file to choose them anew", portsFile(dataDir), err)
	}
	return p, nil
}

// wanted is the port to try first.
func (p ports) wanted(flag string, port int, fallback bool) int {
	if last := p[flag]; fallback && last != 0 {
		return last
	}
	return port
}

func (p ports) write(dataDir string) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if last, err := os.ReadFile(portsFile(dataDir)); err == nil && string(last) == string(raw) {
		return nil
	}
	return durable.WriteFile(portsFile(dataDir), raw, 0o600)
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
