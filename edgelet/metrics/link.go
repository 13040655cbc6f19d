package metrics

import (
	"maps"
	"slices"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Traffic writes what a node has sent and received.
func Traffic(p *Page, t fleet.Traffic) {
	both := func(name string, b fleet.Bytes, labels ...string) {
		p.Sample(name, float64(b.Sent), append(labels[:len(labels):len(labels)], "direction", "sent")...)
		p.Sample(name, float64(b.Received), append(labels[:len(labels):len(labels)], "direction", "received")...)
	}
	p.Counter("coracle_link_bytes_total", "Bytes of the MQTT connection by class of traffic: the payloads of messages, and control for all else, keepalives, MQTT's own and TLS.")
	for _, class := range slices.Sorted(maps.Keys(t.Classes)) {
		both("coracle_link_bytes_total", t.Classes[class], "class", class)
	}
	p.Counter("coracle_link_messages_total", "Messages by class of traffic.")
	for _, class := range slices.Sorted(maps.Keys(t.Messages)) {
		both("coracle_link_messages_total", t.Messages[class], "class", class)
	}
	p.Counter("coracle_link_connection_bytes_total", "Bytes of the MQTT connection on the socket, and above TLS.")
	both("coracle_link_connection_bytes_total", t.Socket, "layer", "socket")
	both("coracle_link_connection_bytes_total", t.Plain, "layer", "mqtt")
	p.Counter("coracle_link_stream_bytes_total", "Bytes on the sockets of connections beside MQTT, by purpose: tunnels, large objects, the node's identity.")
	for _, purpose := range slices.Sorted(maps.Keys(t.Streams)) {
		both("coracle_link_stream_bytes_total", t.Streams[purpose], "purpose", purpose)
	}
	p.Counter("coracle_link_refused_messages_total", "Messages that were not obeyed: forged, malformed, seen before, of another session.")
	p.Sample("coracle_link_refused_messages_total", float64(t.Refused))
}
