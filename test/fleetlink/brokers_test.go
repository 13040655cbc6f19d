package fleetlink

import (
	"fmt"
	"testing"

	"github.com/coracle-edge/coracle/controlplane/broker/brokertest"
)

// brokerKind is a make of broker.
type brokerKind string

const (
	embedded  brokerKind = "embedded"
	mosquitto brokerKind = "mosquitto"
	nats      brokerKind = "nats"
)

var (
	kinds    = []brokerKind{embedded, mosquitto, nats}
	external = []brokerKind{mosquitto, nats}
)

// each runs a test over every make of broker, or those named.
func each(t *testing.T, run func(t *testing.T, c *cluster), over ...brokerKind) {
	t.Parallel()
	if len(over) == 0 {
		over = kinds
	}
	for _, kind := range over {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			run(t, newCluster(t, kind))
		})
	}
}

// outside is a broker that the hub is a client of.
type outside interface {
	Kill()
	Start()
}

func (c *cluster) startBroker(kind brokerKind) {
	c.t.Helper()
	switch kind {
	case embedded:
		c.addr = fmt.Sprintf("127.0.0.1:%d", brokertest.FreePort(c.t))
	case mosquitto:
		m := brokertest.StartMosquitto(c.t, c.pki)
		c.broker, c.addr = m, m.Addr
	case nats:
		// A reload while a first client has the server make its streams holds
		// everybody up: the usual names are admitted from the start.
		n := brokertest.StartNATS(c.t, c.pki, "board-a", "board-b", "board-c", "board-0", "board-1", "board-2", "board-3")
		c.broker, c.addr = n, n.Addr
	default:
		c.t.Fatalf("no broker %q", kind)
	}
}
