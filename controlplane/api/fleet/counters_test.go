package fleet

import (
	"fmt"
	"net"
	"testing"
)

func TestClassesAddUpToTheSocket(t *testing.T) {
	var c Counters
	c.Sent(&Up{Report: &Report{}}, 300) // counted before it is on the socket
	if _, b := c.Of(ClassControl); b != (Bytes{}) {
		t.Errorf("control %v before anything was sent", b)
	}
	c.Socket.Add(390, 0)
	c.Plain.Add(368, 0)
	c.Socket.Add(0, 24)
	c.Received(&Down{Order: &Order{}}, 0)
	if _, b := c.Of(ClassControl); b != (Bytes{90, 24}) {
		t.Errorf("control %v", b)
	}
	c.Sent(&Up{Ack: &Ack{}}, 100)
	if _, b := c.Of(ClassControl); b != (Bytes{90, 24}) {
		t.Errorf("control fell to %v", b)
	}
	c.Socket.Add(122, 0)
	s := c.Snapshot()
	var sum Bytes
	for _, b := range s.Classes {
		sum.Sent, sum.Received = sum.Sent+b.Sent, sum.Received+b.Received
	}
	if sum != s.Socket || s.Socket != (Bytes{512, 24}) || s.Plain.Sent != 368 || s.Messages["report"] != (Bytes{1, 0}) || s.Messages["order"] != (Bytes{0, 1}) {
		t.Errorf("sum %v of %+v", sum, s)
	}
}

func TestAMessageIsOfTheClassesOfItsParts(t *testing.T) {
	var c Counters
	big := make([]byte, 300)
	c.Sent(&Up{Ack: &Ack{Digest: big[:100]}, Report: &Report{Node: &NodeReport{Node: big}}, Journal: &Journal{Entries: []*JournalEntry{{Data: big[:200]}}}}, 1000)
	c.Received(&Down{Welcome: &Welcome{ObjectsUrl: "u"}, Order: &Order{Digest: big}}, 700)
	s := c.Snapshot()
	var sum Bytes
	for _, b := range s.Classes {
		sum.Sent, sum.Received = sum.Sent+b.Sent, sum.Received+b.Received
	}
	if sum != (Bytes{1000, 700}) {
		t.Errorf("%+v of 1000 and 700 bytes", sum)
	}
	for class, between := range map[string][2]int64{"ack": {150, 180}, "report": {480, 520}, "journal": {310, 350}} {
		if b := s.Classes[class].Sent; b < between[0] || b > between[1] {
			t.Errorf("%s: %d bytes, want %v", class, b, between)
		}
	}
	if s.Classes["order"].Received < 650 || s.Classes["session"].Received == 0 {
		t.Errorf("%v", s.Classes)
	}
	if s.Messages["report"] != (Bytes{1, 0}) || s.Messages["order"] != (Bytes{0, 1}) || s.Messages["journal"] != (Bytes{}) {
		t.Errorf("messages %v", s.Messages)
	}
	c.Received(&Will{}, 50)
	if b := c.Snapshot().Messages["session"]; b != (Bytes{0, 1}) {
		t.Errorf("a will: %v", b)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	var c Counters
	for i := range 1000 {
		c.Stream(fmt.Sprint("purpose-", i)).Add(1, 2)
	}
	s := c.Snapshot()
	var sum int64
	for _, b := range s.Streams {
		sum += b.Total()
	}
	if len(s.Streams) > maxStreams+1 || sum != 3000 || s.Streams["purpose-0"] != (Bytes{1, 2}) || s.Streams[streamOther].Sent < 900 {
		t.Errorf("%d streams, %d bytes: %v", len(s.Streams), sum, s.Streams)
	}
}

func TestMeterCountsBothDirections(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	var f Flow
	m := Meter(a, f.Add)
	go func() { _, _ = b.Write([]byte("hello")) }()
	buf := make([]byte, 10)
	if n, err := m.Read(buf); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	go func() { _, _ = b.Read(buf) }()
	if _, err := m.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	if f.Bytes() != (Bytes{3, 5}) {
		t.Errorf("%v", f.Bytes())
	}
}
