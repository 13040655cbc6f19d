package broker

import (
	"fmt"
	"strings"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// NATSFiles names what nats-server needs.
type NATSFiles struct {
	CA, Cert, Key string // of the listener; CA also verifies clients
	Store         string // folder of JetStream, which MQTT needs
}

// NATSConf is a configuration of nats-server (2.12.6 or later: earlier ones let
// every MQTT client read and forge below $MQTT) that serves the fleet link and
// nothing else.
//
// NATS knows no pattern with the user's name in it: who isn't named here is
// refused, so the file is to be written again, and the server to reload it, when
// a node joins. It doesn't hold a client to its name as client id either: a
// node can end another one's connection, but neither speak for it nor hear it.
func NATSConf(address string, port int, files NATSFiles, nodes []string) (string, error) {
	var users strings.Builder
	user := func(subject string, publish, subscribe []string) {
		fmt.Fprintf(&users, "    {user: %q, allowed_connection_types: [\"MQTT\"], permissions: {\n      publish: {allow: [%s]}\n      subscribe: {allow: [%s]}\n    }}\n",
			subject, quoted(publish), quoted(subscribe))
	}
	user("CN="+fleet.HubUser, []string{natsSubject(fleet.TopicFilter(fleet.DirDown))},
		[]string{natsSubject(fleet.TopicFilter(fleet.DirUp)), natsSubject(fleet.TopicFilter(fleet.DirWill))})
	for _, node := range nodes {
		if !fleet.ValidNodeName(node) {
			return "", fmt.Errorf("node %q: not a name that a Node can have", node)
		}
		if strings.Contains(node, ".") {
			return "", fmt.Errorf("node %q: NATS takes no MQTT client id with a dot in it; nodes of such a name need another broker", node)
		}
		user("CN="+fleet.NodeUserPrefix+node+",O="+nodeOrganization,
			[]string{natsSubject(fleet.Topic(node, fleet.DirUp)), natsSubject(fleet.Topic(node, fleet.DirWill))},
			[]string{natsSubject(fleet.Topic(node, fleet.DirDown))})
	}
	secure := fmt.Sprintf(`tls {
    ca_file: %q
    cert_file: %q
    key_file: %q
    verify_and_map: true
    min_version: "1.3"
    timeout: %d
  }`, files.CA, files.Cert, files.Key, int(firstPacket.Seconds()))
	return fmt.Sprintf(`# Coracle's fleet link
server_name: coracle-fleet
max_payload: %d
write_deadline: "10s"

# Its own protocol is of no use here: any port of loopback, and nobody may speak it.
listen: "127.0.0.1:-1"
  %s

mqtt {
  listen: "%s:%d"
  consumer_memory_storage: true
  reject_qos2_publish: true
  %s
}

# MQTT with QoS 1 goes through streams. Nothing stays in them: sessions are clean.
jetstream {
  store_dir: %q
  max_memory_store: 256MB
  max_file_store: 1GB
}

authorization {
  users = [
%s  ]
}
`, maxPacket, secure, address, port, secure, files.Store, users.String()), nil
}

// nodeOrganization is the O in the subject of a node's certificate.
const nodeOrganization = "system:nodes"

// natsSubject is the subject that NATS takes for a topic or filter without dots.
func natsSubject(topic string) string {
	return strings.NewReplacer("/", ".", "+", "*").Replace(topic)
}

func quoted(texts []string) string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = fmt.Sprintf("%q", t)
	}
	return strings.Join(out, ", ")
}
