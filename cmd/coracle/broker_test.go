package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/broker"
	"github.com/coracle-edge/coracle/controlplane/broker/brokertest"
	"github.com/coracle-edge/coracle/controlplane/pki"
)

// TestBrokerNATSAsWritten: nats-server carries the link of a hub and a node with
// certificates of the cluster's own, on nothing but what the command wrote.
func TestBrokerNATSAsWritten(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, port := l.Addr().String(), l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	dir, pkiDir := filepath.Join(t.TempDir(), "nats"), filepath.Join(t.TempDir(), "pki")
	write := func(nodes string) (string, error) {
		cmd := brokerCommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs([]string{"nats", dir, "--pki-dir", pkiDir, "--listen", "127.0.0.1", "--port", fmt.Sprint(port), "--node", nodes})
		err := cmd.Execute()
		return out.String(), err
	}
	out, err := write("board-a,board-b")
	conf := filepath.Join(dir, "nats.conf")
	if err != nil || !strings.Contains(out, "nats-server -c "+conf) || !strings.Contains(out, fmt.Sprintf("--mqtt-url=mqtts://127.0.0.1:%d", port)) {
		t.Fatal(err, out)
	}
	brokertest.ServeNATS(t, conf, addr).Start()

	authority, err := pki.Open(pki.Options{Dir: pkiDir})
	if err != nil {
		t.Fatal(err)
	}
	hub, err := authority.Hub()
	if err != nil {
		t.Fatal(err)
	}
	external, err := broker.NewExternal(broker.ExternalConfig{URLs: []string{"mqtts://" + addr}, TLS: &tls.Config{
		Certificates: []tls.Certificate{*hub.Current()}, RootCAs: authority.RootPool(), MinVersion: tls.VersionTLS13}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	up, said, done := make(chan bool, 16), make(chan string, 16), make(chan error, 1)
	go func() {
		done <- external.Run(ctx, func(node string, d fleet.Direction, payload []byte) {
			said <- fmt.Sprintf("%s/%s: %s", node, d, payload)
		}, func(isUp bool) { up <- isUp })
	}()
	await(t, up, true)

	heard := make(chan string, 16)
	a, err := nodeClient(t, authority, addr, "board-a", func(payload string) { heard <- payload })
	if err != nil {
		t.Fatal(err)
	}
	a.Publish(fleet.Topic("board-a", fleet.DirUp), fleet.QoS, false, "hello").WaitTimeout(5 * time.Second)
	await(t, said, "board-a/up: hello")
	if err := external.Publish("board-a", []byte("welcome")); err != nil {
		t.Fatal(err)
	}
	await(t, heard, "welcome")
	a.Disconnect(100)
	if _, err := nodeClient(t, authority, addr, "board-c", nil); err == nil {
		t.Error("a node that isn't named got a connection")
	}
	if out, err := write("board.a"); err == nil || !strings.Contains(err.Error(), `"board.a"`) {
		t.Errorf("a name with a dot: %v, %s", err, out)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// nodeClient connects as a node of the cluster and listens.
func nodeClient(t *testing.T, authority *pki.Authority, addr, name string, hear func(string)) (paho.Client, error) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := authority.IssueNode(name, public)
	if err != nil {
		t.Fatal(err)
	}
	o := paho.NewClientOptions().AddBroker("ssl://" + addr).SetClientID(fleet.NodeUserPrefix + name).
		SetProtocolVersion(4).SetCleanSession(true).SetAutoReconnect(false).SetConnectTimeout(5 * time.Second)
	o.SetTLSConfig(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs: authority.RootPool(), ServerName: enrollment.MQTTServerName, MinVersion: tls.VersionTLS13})
	c := paho.NewClient(o)
	token := c.Connect()
	if !token.WaitTimeout(10 * time.Second) {
		return nil, fmt.Errorf("no CONNACK")
	}
	if token.Error() != nil {
		return nil, token.Error()
	}
	token = c.Subscribe(fleet.Topic(name, fleet.DirDown), fleet.QoS, func(_ paho.Client, m paho.Message) { hear(string(m.Payload())) })
	token.WaitTimeout(5 * time.Second)
	return c, token.Error()
}

func await[T comparable](t *testing.T, from <-chan T, want T) {
	t.Helper()
	select {
	case got := <-from:
		if got != want {
			t.Fatalf("%v, want %v", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no %v", want)
	}
}
