package fleet

import (
	"fmt"
	"io"
	"sync/atomic"
)

// Class of traffic, for counting.
type Class int

const (
	ClassSession Class = iota // Hello, Welcome, Bye, Will, Rebirth, Adopt, Standing, Probe, Trust
	ClassOrder                // Order
	ClassAck                  // Ack, ReportAck, JournalAck, Resend
	ClassReport               // Report
	ClassJournal              // Journal
	ClassTunnel               // TunnelRequest, TunnelAnswer
	ClassObject               // large objects over HTTPS
	ClassSocket               // all bytes on the socket, with TLS and MQTT
	classes
)

func (c Class) String() string {
	return [...]string{"session", "order", "ack", "report", "journal", "tunnel", "object", "socket"}[c]
}

// ClassOf is the class to which a message is counted: its heaviest part's.
func ClassOf(msg any) Class {
	switch m := msg.(type) {
	case *Up:
		switch {
		case m.GetHello() != nil, m.GetBye() != nil:
			return ClassSession
		case m.GetReport() != nil:
			return ClassReport
		case m.GetJournal() != nil:
			return ClassJournal
		case m.GetTunnel() != nil:
			return ClassTunnel
		}
		return ClassAck
	case *Down:
		switch {
		case m.GetOrder() != nil:
			return ClassOrder
		case m.GetWelcome() != nil, m.GetRebirth() != nil, m.GetAdopt() != nil, m.GetStanding() != nil, m.GetProbe() != nil, m.GetTrust() != nil:
			return ClassSession
		case m.GetTunnel() != nil:
			return ClassTunnel
		}
		return ClassAck
	}
	return ClassSession
}

// Counters count messages and bytes per class and direction. The zero value is
// usable, also concurrently.
type Counters struct {
	sent, received [classes]struct{ messages, bytes atomic.Int64 }
	refused        atomic.Int64
}

// Sent counts a message of n bytes.
func (c *Counters) Sent(class Class, n int) {
	c.sent[class].messages.Add(1)
	c.sent[class].bytes.Add(int64(n))
}

// Received counts a message of n bytes.
func (c *Counters) Received(class Class, n int) {
	c.received[class].messages.Add(1)
	c.received[class].bytes.Add(int64(n))
}

// Refused counts a message that was dropped: forged, replayed, malformed.
func (c *Counters) Refused() { c.refused.Add(1) }

// Count is a snapshot.
type Count struct{ Messages, Bytes int64 }

// Of returns what was counted of a class.
func (c *Counters) Of(class Class) (sent, received Count) {
	s, r := &c.sent[class], &c.received[class]
	return Count{s.messages.Load(), s.bytes.Load()}, Count{r.messages.Load(), r.bytes.Load()}
}

// RefusedCount is how many messages were dropped.
func (c *Counters) RefusedCount() int64 { return c.refused.Load() }

// WriteMetrics writes the counters in Prometheus' text format.
func (c *Counters) WriteMetrics(w io.Writer) error {
	if _, err := fmt.Fprint(w, "# TYPE coracle_fleet_bytes_total counter\n# TYPE coracle_fleet_messages_total counter\n# TYPE coracle_fleet_refused_total counter\n"); err != nil {
		return err
	}
	for class := range classes {
		s, r := c.Of(class)
		for _, x := range []struct {
			d string
			Count
		}{{"sent", s}, {"received", r}} {
			if _, err := fmt.Fprintf(w, "coracle_fleet_bytes_total{class=%q,direction=%q} %d\n", class, x.d, x.Bytes); err != nil {
				return err
			}
			if class == ClassSocket {
				continue
			}
			if _, err := fmt.Fprintf(w, "coracle_fleet_messages_total{class=%q,direction=%q} %d\n", class, x.d, x.Messages); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "coracle_fleet_refused_total %d\n", c.RefusedCount())
	return err
}
