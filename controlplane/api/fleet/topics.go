package fleet

import (
	"fmt"
	"strings"
)

// Topics are coracle/1/system:node:NAME/{up,down,will}. The middle is the common
// name of the node's certificate as it stands there, so that one pattern
// is the whole ACL of any broker that knows a client's certificate: see [Allowed].
const (
	topicPrefix = "coracle/1/"
	// NodeUserPrefix precedes the node's name in the common name of its
	// certificate.
	NodeUserPrefix = "system:node:"
	// HubUser is the common name of the hub's certificate.
	HubUser = "system:coracle:hub"
	// QoS of every message. What it doesn't deliver is sent again.
	QoS = 1
)

// Direction is the last part of a topic, and part of what is signed.
type Direction string

const (
	DirUp   Direction = "up"   // node to hub
	DirDown Direction = "down" // hub to node
	DirWill Direction = "will" // broker for the node, to the hub
)

// Topic of one node.
func Topic(node string, d Direction) string {
	return topicPrefix + NodeUserPrefix + node + "/" + string(d)
}

// TopicFilter of all nodes, for the hub.
func TopicFilter(d Direction) string { return topicPrefix + "+/" + string(d) }

// ParseTopic reads a topic.
func ParseTopic(topic string) (node string, d Direction, err error) {
	rest, ok := strings.CutPrefix(topic, topicPrefix+NodeUserPrefix)
	if ok {
		node, last, found := strings.Cut(rest, "/")
		d := Direction(last)
		if found && ValidNodeName(node) && (d == DirUp || d == DirDown || d == DirWill) {
			return node, d, nil
		}
	}
	return "", "", fmt.Errorf("%w: topic %q, want coracle/1/system:node:NAME/{up,down,will}", ErrMalformed, topic)
}

// NodeOfUser is the node's name in a certificate's common name.
func NodeOfUser(user string) (string, bool) {
	node, ok := strings.CutPrefix(user, NodeUserPrefix)
	return node, ok && ValidNodeName(node)
}

// ValidNodeName is true for a DNS-1123 subdomain, as the API server demands of a
// Node.
func ValidNodeName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for _, label := range strings.Split(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

// Allowed is the whole ACL: a node publishes to its own up and will and
// subscribes to its own down, the hub publishes to every down and subscribes to
// every up and will; filter is a topic or, for reading, a filter.
func Allowed(user, filter string, write bool) bool {
	if user == HubUser {
		if write {
			_, d, err := ParseTopic(filter)
			return err == nil && d == DirDown
		}
		return filter == TopicFilter(DirUp) || filter == TopicFilter(DirWill) || isTopic(filter, DirUp, DirWill)
	}
	node, ok := NodeOfUser(user)
	if !ok {
		return false
	}
	if write {
		return filter == Topic(node, DirUp) || filter == Topic(node, DirWill)
	}
	return filter == Topic(node, DirDown)
}

func isTopic(topic string, want ...Direction) bool {
	_, d, err := ParseTopic(topic)
	if err != nil {
		return false
	}
	for _, w := range want {
		if d == w {
			return true
		}
	}
	return false
}
