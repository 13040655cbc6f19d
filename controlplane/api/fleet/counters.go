package fleet

import (
	"maps"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"
)

// Class of traffic, for counting. A message is of the class of its largest part,
// its bytes are of those of all its parts.
type Class int

const (
	ClassSession Class = iota // Hello, Welcome, Bye, Will, Rebirth, Adopt, Standing, Probe, Trust
	ClassOrder                // Order
	ClassAck                  // Ack, ReportAck, JournalAck, Resend
	ClassReport               // Report
	ClassJournal              // Journal
	ClassTunnel               // TunnelRequest, TunnelAnswer
	// ClassControl is what else the MQTT connection carries: keepalives, MQTT's
	// own packets and headers, TLS. It is derived: the socket less all above.
	ClassControl
	classes
)

func (c Class) String() string {
	return [...]string{"session", "order", "ack", "report", "journal", "tunnel", "control"}[c]
}

// Classes are all there are.
func Classes() []Class {
	out := make([]Class, classes)
	for i := range out {
		out[i] = Class(i)
	}
	return out
}

// Streams are the connections beside MQTT's, by purpose; tunnels have the
// purpose that their request says.
const (
	StreamObjects  = "objects"  // large objects
	StreamIdentity = "identity" // joining and renewal
	streamOther    = "other"    // what came after maxStreams
	maxStreams     = 16
)

// shares divides the n bytes of a message among the classes of its parts, by
// their sizes; most is the class with the largest.
func shares(msg proto.Message, n int) (bytes [ClassControl]int, most Class) {
	var sizes [ClassControl]int
	add := func(class Class, part proto.Message) {
		if part.ProtoReflect().IsValid() {
			sizes[class] += proto.Size(part) + 1
		}
	}
	switch m := msg.(type) {
	case *Up:
		add(ClassSession, m.GetHello())
		add(ClassAck, m.GetAck())
		add(ClassReport, m.GetReport())
		add(ClassJournal, m.GetJournal())
		add(ClassTunnel, m.GetTunnel())
		add(ClassSession, m.GetBye())
	case *Down:
		add(ClassSession, m.GetWelcome())
		add(ClassSession, m.GetAdopt())
		add(ClassOrder, m.GetOrder())
		add(ClassAck, m.GetReportAck())
		add(ClassAck, m.GetJournalAck())
		add(ClassTunnel, m.GetTunnel())
		add(ClassAck, m.GetResend())
		add(ClassSession, m.GetRebirth())
		add(ClassSession, m.GetStanding())
		add(ClassSession, m.GetProbe())
		add(ClassSession, m.GetTrust())
	}
	total := 0
	for class, size := range sizes {
		if total += size; size > sizes[most] {
			most = Class(class)
		}
	}
	rest := n
	for class, size := range sizes {
		if total > 0 {
			bytes[class] = n * size / total
			rest -= bytes[class]
		}
	}
	bytes[most] += rest
	return bytes, most
}

// Flow counts the bytes of something in both directions. The zero value is
// usable, also concurrently.
type Flow struct{ sent, received atomic.Int64 }

// Add counts bytes.
func (f *Flow) Add(sent, received int) {
	if sent > 0 {
		f.sent.Add(int64(sent))
	}
	if received > 0 {
		f.received.Add(int64(received))
	}
}

// Bytes that were counted.
func (f *Flow) Bytes() Bytes { return Bytes{f.sent.Load(), f.received.Load()} }

// Bytes in both directions, seen from who counted.
type Bytes struct {
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
}

// Total of both directions.
func (b Bytes) Total() int64 { return b.Sent + b.Received }

// Counters count what one side of the link sends and receives. The zero value is
// usable, also concurrently.
type Counters struct {
	// Socket counts the MQTT connection's bytes below TLS, Plain those above.
	Socket, Plain Flow

	messages [ClassControl]Flow // their payloads: envelopes
	numbers  [ClassControl]Flow
	control  [2]atomic.Int64 // as last said, because a counter never falls
	refused  atomic.Int64

	mu      sync.Mutex
	streams map[string]*Flow
}

// Sent counts a message of n bytes, as it travels, once and to the classes of
// its parts.
func (c *Counters) Sent(msg proto.Message, n int) {
	bytes, most := shares(msg, n)
	for class, b := range bytes {
		c.messages[class].Add(b, 0)
	}
	c.numbers[most].Add(1, 0)
}

// Received counts a message of n bytes, as Sent does.
func (c *Counters) Received(msg proto.Message, n int) {
	bytes, most := shares(msg, n)
	for class, b := range bytes {
		c.messages[class].Add(0, b)
	}
	c.numbers[most].Add(0, 1)
}

// Refused counts a message that was dropped: forged, replayed, malformed.
func (c *Counters) Refused() { c.refused.Add(1) }

// RefusedCount is how many messages were dropped.
func (c *Counters) RefusedCount() int64 { return c.refused.Load() }

// Stream returns the flow of a purpose. There are at most maxStreams: the
// purposes are the other side's words.
func (c *Counters) Stream(purpose string) *Flow {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.streams[purpose]
	if f != nil {
		return f
	}
	if c.streams == nil {
		c.streams = map[string]*Flow{}
	}
	if len(c.streams) >= maxStreams {
		purpose = streamOther
		if f = c.streams[purpose]; f != nil {
			return f
		}
	}
	f = &Flow{}
	c.streams[purpose] = f
	return f
}

// Of returns what was counted of a class: messages (none of ClassControl) and
// their bytes.
func (c *Counters) Of(class Class) (messages, bytes Bytes) {
	if class < ClassControl {
		return c.numbers[class].Bytes(), c.messages[class].Bytes()
	}
	var said Bytes
	for i := range c.messages {
		b := c.messages[i].Bytes()
		said.Sent, said.Received = said.Sent+b.Sent, said.Received+b.Received
	}
	all := c.Socket.Bytes()
	return Bytes{}, Bytes{rise(&c.control[0], all.Sent-said.Sent), rise(&c.control[1], all.Received-said.Received)}
}

// rise returns the larger of n and what was said before: a message is counted
// before it is on the socket.
func rise(last *atomic.Int64, n int64) int64 {
	for {
		before := last.Load()
		if n <= before {
			return before
		}
		if last.CompareAndSwap(before, n) {
			return n
		}
	}
}

// Traffic is a snapshot of Counters.
type Traffic struct {
	// Classes of the MQTT connection; together they are Socket.
	Classes  map[string]Bytes `json:"classes"`
	Messages map[string]Bytes `json:"messages"` // how many
	Socket   Bytes            `json:"socket"`   // below TLS; zero where this side has no socket of its own
	Plain    Bytes            `json:"plain"`    // above TLS
	Streams  map[string]Bytes `json:"streams,omitempty"`
	Refused  int64            `json:"refused"`
}

// Snapshot of the counters.
func (c *Counters) Snapshot() Traffic {
	t := Traffic{Classes: map[string]Bytes{}, Messages: map[string]Bytes{}, Streams: map[string]Bytes{},
		Plain: c.Plain.Bytes(), Refused: c.RefusedCount()}
	for _, class := range Classes() {
		messages, bytes := c.Of(class)
		t.Classes[class.String()] = bytes
		if class != ClassControl {
			t.Messages[class.String()] = messages
		}
	}
	t.Socket = c.Socket.Bytes()
	c.mu.Lock()
	streams := maps.Clone(c.streams)
	c.mu.Unlock()
	for purpose, f := range streams {
		t.Streams[purpose] = f.Bytes()
	}
	return t
}

// Meter returns conn with its bytes told to count.
func Meter(conn net.Conn, count func(sent, received int)) net.Conn {
	return &metered{conn, count}
}

type metered struct {
	net.Conn
	count func(sent, received int)
}

func (m *metered) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	m.count(0, n)
	return n, err
}

func (m *metered) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.count(n, 0)
	return n, err
}
