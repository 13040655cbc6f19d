package fleethub

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// metrics makes Prometheus' samples of what the hub counts, when it is asked.
type metrics struct {
	h *Hub

	bytes, messages, socket, streams       *prometheus.Desc
	nodes, sessions, foreign, epoch, queue *prometheus.Desc
	hellos, changes, sent, acks, rebirths  *prometheus.Desc
	verdicts, journal, dropped, classes    *prometheus.Desc
}

// Metrics is to be registered once with whoever serves /metrics. There is no
// sample per node: see Nodes.
func (h *Hub) Metrics() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("coracle_fleet_"+name, help, labels, nil)
	}
	return &metrics{
		h:        h,
		bytes:    desc("bytes_total", "Bytes of the link to the nodes by class of traffic. control is keepalives, MQTT's own and, with the embedded broker, TLS; the other classes are messages' payloads.", "class", "direction"),
		messages: desc("messages_total", "Messages by class of traffic.", "class", "direction"),
		socket:   desc("socket_bytes_total", "Bytes on the sockets of the MQTT connections, TLS included; with an external broker of the hub's own connection.", "direction"),
		streams:  desc("stream_bytes_total", "Bytes beside MQTT, above TLS, by purpose: tunnels, large objects.", "purpose", "direction"),
		nodes:    desc("nodes", "Nodes by presence.", "presence"),
		classes:  desc("nodes_by_link_class", "Nodes with a session by link class.", "class"),
		sessions: desc("sessions", "Sessions that nodes have confirmed."),
		foreign:  desc("foreign_nodes", "Nodes that are there and belong to another incarnation of the cluster."),
		epoch:    desc("epoch", "The hub's epoch."),
		queue:    desc("queue_length", "Nodes with something to do, and things to write into the API.", "queue"),
		hellos:   desc("hellos_total", "Sessions that were opened."),
		changes:  desc("presence_changes_total", "Nodes that came and went.", "to"),
		sent:     desc("orders_total", "Orders that were sent.", "repeated"),
		acks:     desc("order_acks_total", "Nodes' answers to orders; all but applied and duplicate are failures.", "status"),
		rebirths: desc("rebirths_total", "Nodes that were asked for a Hello.", "because"),
		verdicts: desc("reports_total", "Reports by what became of them.", "verdict"),
		journal:  desc("journal_entries_total", "Journal entries by what became of them.", "result"),
		dropped:  desc("messages_dropped_total", "Messages that went nowhere.", "reason"),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.bytes, m.messages, m.socket, m.streams, m.nodes, m.classes, m.sessions, m.foreign, m.epoch, m.queue,
		m.hellos, m.changes, m.sent, m.acks, m.rebirths, m.verdicts, m.journal, m.dropped} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, value int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	gauge := func(d *prometheus.Desc, value int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	both := func(d *prometheus.Desc, b fleet.Bytes, labels ...string) {
		counter(d, b.Sent, append(labels[:len(labels):len(labels)], "sent")...)
		counter(d, b.Received, append(labels[:len(labels):len(labels)], "received")...)
	}
	h, s := m.h, &m.h.stats
	t := h.counters.Snapshot()
	for class, b := range t.Classes {
		both(m.bytes, b, class)
	}
	for class, b := range t.Messages {
		both(m.messages, b, class)
	}
	both(m.socket, t.Socket)
	for purpose, b := range t.Streams {
		both(m.streams, b, purpose)
	}
	m.count(gauge)
	gauge(m.queue, h.work.Len(), "orders")
	gauge(m.queue, h.writes.Len(), "writes")
	counter(m.hellos, s.hellos.Load())
	counter(m.changes, s.came.Load(), "present")
	counter(m.changes, s.went.Load(), "away")
	counter(m.sent, s.ordersSent.Load(), "false")
	counter(m.sent, s.ordersRepeated.Load(), "true")
	counter(m.rebirths, s.rebirths.Load(), "unknown-session")
	counter(m.rebirths, s.retold.Load(), "settings")
	for i := range s.acks {
		counter(m.acks, s.acks[i].Load(), ackName(i))
	}
	for i := range s.verdicts {
		if i == int(fleet.Verdict_VERDICT_UNKNOWN) {
			continue // never given
		}
		counter(m.verdicts, s.verdicts[i].Load(), verdictName(i))
	}
	for i := range s.journal {
		counter(m.journal, s.journal[i].Load(), entry(i).String())
	}
	for i := range s.dropped {
		counter(m.dropped, s.dropped[i].Load(), drop(i).String())
	}
}

// count says how many nodes there are of each kind.
func (m *metrics) count(gauge func(*prometheus.Desc, int, ...string)) {
	h := m.h
	presence, classes := map[Presence]int{}, map[string]int{}
	sessions, foreign := 0, 0
	h.mu.Lock()
	for _, n := range h.nodes {
		presence[Presence(n.presence.Load())]++
		if n.confirmed.Load() {
			sessions++
			classes[n.class()]++
		}
		if n.foreign.Load() != nil {
			foreign++
		}
	}
	h.mu.Unlock()
	for _, p := range []Presence{Present, Away, Unsure} {
		gauge(m.nodes, presence[p], p.String())
	}
	for name := range h.classes {
		gauge(m.classes, classes[name], name)
	}
	gauge(m.sessions, sessions)
	gauge(m.foreign, foreign)
	if h.live.Load() {
		gauge(m.epoch, int(h.reign.Number))
	}
}
