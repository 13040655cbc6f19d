package broker_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/broker"
	"github.com/coracle-edge/coracle/controlplane/broker/brokertest"
)

func embedded(t *testing.T, pki *brokertest.PKI, change func(*broker.EmbeddedConfig)) *broker.Embedded {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conf := broker.EmbeddedConfig{Listener: l, TLS: pki.Server()}
	if change != nil {
		change(&conf)
	}
	e, err := broker.NewEmbedded(conf)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEmbeddedConforms(t *testing.T) {
	brokertest.Run(t, func(t *testing.T) brokertest.Subject {
		pki := brokertest.NewPKI(t)
		e := embedded(t, pki, nil)
		return brokertest.Subject{PKI: pki, Addr: e.Addr().String(), Transport: e}
	})
}

func TestMosquittoConforms(t *testing.T) {
	brokertest.Run(t, func(t *testing.T) brokertest.Subject {
		pki := brokertest.NewPKI(t)
		m := brokertest.StartMosquitto(t, pki)
		e, err := broker.NewExternal(broker.ExternalConfig{URLs: []string{"mqtts://" + m.Addr}, TLS: pki.Client(fleet.HubUser)})
		if err != nil {
			t.Fatal(err)
		}
		return brokertest.Subject{PKI: pki, Addr: m.Addr, Transport: e}
	})
}

func TestNATSConforms(t *testing.T) {
	brokertest.Run(t, func(t *testing.T) brokertest.Subject {
		pki := brokertest.NewPKI(t)
		n := brokertest.StartNATS(t, pki, brokertest.Nodes()...)
		e, err := broker.NewExternal(broker.ExternalConfig{URLs: []string{"mqtts://" + n.Addr}, TLS: pki.Client(fleet.HubUser)})
		if err != nil {
			t.Fatal(err)
		}
		return brokertest.Subject{PKI: pki, Addr: n.Addr, Transport: e}
	})
}

func TestNATSRefuses(t *testing.T) {
	pki := brokertest.NewPKI(t)
	n := brokertest.StartNATS(t, pki, "good")
	e, err := broker.NewExternal(broker.ExternalConfig{URLs: []string{"mqtts://" + n.Addr}, TLS: pki.Client(fleet.HubUser)})
	if err != nil {
		t.Fatal(err)
	}
	s := brokertest.Start(t, brokertest.Subject{PKI: pki, Addr: n.Addr, Transport: e})
	connects := func(name string, want bool) {
		t.Helper()
		if got := s.Connects(name, name); got != want {
			t.Errorf("%s connects: %v, want %v", name, got, want)
		}
	}
	connects("system:node:good", true)
	connects("somebody", false)
	connects("system:node:later", false)
	n.Admit("later")
	connects("system:node:later", true)
	connects("system:node:good", true)
	for _, name := range []string{"a.b", "", "UPPER", "x\", permissions: {}"} {
		if conf, err := broker.NATSConf("127.0.0.1", 1, broker.NATSFiles{}, []string{name}); err == nil {
			t.Errorf("a configuration for node %q:\n%s", name, conf)
		}
	}
}

func TestEmbeddedRefuses(t *testing.T) {
	pki := brokertest.NewPKI(t)
	revoked := errors.New("revoked")
	active := true
	e := embedded(t, pki, func(c *broker.EmbeddedConfig) {
		c.Admit = func(_ context.Context, node string, cert *x509.Certificate) error {
			if node == "bad" {
				return revoked
			}
			return nil
		}
		c.Active = func() bool { return active }
	})
	s := brokertest.Start(t, brokertest.Subject{PKI: pki, Addr: e.Addr().String(), Transport: e})
	for _, c := range []struct {
		what, user, id string
		want           bool
	}{
		{"a node", "system:node:good", "system:node:good", true},
		{"a revoked node", "system:node:bad", "system:node:bad", false},
		{"a node with another's client id", "system:node:good", "system:node:other", false},
		{"a certificate that isn't a node's", "somebody", "somebody", false},
		{"the hub's certificate", fleet.HubUser, fleet.HubUser, false},
	} {
		if got := s.Connects(c.user, c.id); got != c.want {
			t.Errorf("%s connects: %v, want %v", c.what, got, c.want)
		}
	}
	active = false
	if s.Connects("system:node:good", "system:node:good") {
		t.Error("a node connects to a hub that isn't active")
	}
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string]string{
		"mqtts://h":       "mqtts://h:8883",
		"tls://h:1":       "mqtts://h:1",
		"ssl://[::1]":     "mqtts://[::1]:8883",
		"mqtt://h":        "",
		"tcp://h:1883":    "",
		"mqtts://":        "",
		"h:8883":          "",
		"mqtts://h:99999": "mqtts://h:99999",
	} {
		u, err := broker.ParseURL(in)
		if (err == nil) != (want != "") || (err == nil && u.String() != want) {
			t.Errorf("%q = %v, %v; want %q", in, u, err, want)
		}
	}
}
