package pods

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits that libc sets to a resolv.conf, as a kubelet applies them.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
	maxSearchName  = 253 // of one; glibc 2.28 aborts on longer ones
)

// reasonDNS is of an event about a pod whose resolver configuration was cut.
const reasonDNS = "DNSConfigForming"

// dns is the pod's resolver configuration: the node's, or the cluster's if
// there is one on this node, with what the pod adds. cut says what of it libc would
// not take, in a kubelet's words (upstream: pkg/kubelet/network/dns/dns.go).
func (m *Manager) dns(pod *v1.Pod) (c *runtimeapi.DNSConfig, cut []string, err error) {
	policy := pod.Spec.DNSPolicy
	if policy == v1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = v1.DNSDefault
	}
	if policy == v1.DNSClusterFirstWithHostNet {
		policy = v1.DNSClusterFirst
	}
	node, err := readResolvConf(m.cfg.ResolvConf)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the node's resolver configuration: %w", err)
	}
	c = &runtimeapi.DNSConfig{}
	switch {
	case policy == v1.DNSNone:
	case policy == v1.DNSClusterFirst && len(m.cfg.ClusterDNS) > 0:
		domain := m.cfg.ClusterDomain
		c.Servers = slices.Clone(m.cfg.ClusterDNS)
		c.Searches = append([]string{pod.Namespace + ".svc." + domain, "svc." + domain, domain}, node.Searches...)
		c.Options = []string{"ndots:5"}
	default:
		c = node
	}
	if d := pod.Spec.DNSConfig; d != nil {
		c.Servers = unique(append(c.Servers, d.Nameservers...))
		c.Searches = unique(append(c.Searches, d.Searches...))
		for _, o := range d.Options {
			c.Options = slices.DeleteFunc(c.Options, func(have string) bool {
				name, _, _ := strings.Cut(have, ":")
				return name == o.Name
			})
			if o.Value != nil && *o.Value != "" {
				c.Options = append(c.Options, o.Name+":"+*o.Value)
			} else {
				c.Options = append(c.Options, o.Name)
			}
		}
	}
	if len(c.Servers) > maxNameservers {
		c.Servers = c.Servers[:maxNameservers]
		cut = append(cut, "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: "+strings.Join(c.Servers, " "))
	}
	had := len(c.Searches)
	c.Searches = c.Searches[:min(had, maxSearches)]
	c.Searches = slices.DeleteFunc(c.Searches, func(name string) bool { return len(name) > maxSearchName })
	for len(strings.Join(c.Searches, " ")) > maxSearchChars {
		c.Searches = c.Searches[:len(c.Searches)-1]
	}
	if len(c.Searches) < had {
		cut = append(cut, "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: "+strings.Join(c.Searches, " "))
	}
	return c, cut, nil
}

// checkResolvConf says what of the node's own configuration pods can't have, in a
// kubelet's words; empty: nothing.
func (m *Manager) checkResolvConf() string {
	file := m.cfg.ResolvConf
	c, err := readResolvConf(file)
	if err != nil {
		return err.Error()
	}
	most := maxSearches
	if m.cfg.ClusterDomain != "" {
		most -= 3 // the cluster's own
	}
	switch {
	case len(c.Searches) > most:
		return fmt.Sprintf("Resolv.conf file '%s' contains search line consisting of more than %d domains!", file, most)
	case slices.ContainsFunc(c.Searches, func(name string) bool { return len(name) > maxSearchName }):
		return fmt.Sprintf("Resolv.conf file %q contains a search path which length is more than allowed %d chars!", file, maxSearchName)
	case len(strings.Join(c.Searches, " ")) > maxSearchChars:
		return fmt.Sprintf("Resolv.conf file '%s' contains search line which length is more than allowed %d chars!", file, maxSearchChars)
	}
	return ""
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func readResolvConf(path string) (*runtimeapi.DNSConfig, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return &runtimeapi.DNSConfig{}, nil // a board without names still runs pods
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseResolvConf(f)
}

func parseResolvConf(r io.Reader) (*runtimeapi.DNSConfig, error) {
	c := &runtimeapi.DNSConfig{}
	s := bufio.NewScanner(io.LimitReader(r, 1<<20))
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			c.Servers = append(c.Servers, fields[1])
		case "search": // the last one counts
			c.Searches = nil
			for _, d := range fields[1:] {
				if d = strings.TrimSuffix(d, "."); d != "" {
					c.Searches = append(c.Searches, d)
				}
			}
		case "options":
			c.Options = append(c.Options, fields[1:]...)
		}
	}
	return c, s.Err()
}
