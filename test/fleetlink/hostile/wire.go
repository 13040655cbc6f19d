package hostile

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

const maxPacket = 2*fleet.MaxMessage + 4096

// readPacket reads one packet and its bytes. Only those that the proxy looks into
// are decoded.
func readPacket(in *bufio.Reader) (pk packets.Packet, raw []byte, err error) {
	pk.ProtocolVersion = 4
	first, err := in.ReadByte()
	if err != nil {
		return pk, nil, err
	}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, nil, err
	}
	if pk.FixedHeader.Remaining, _, err = packets.DecodeLength(in); err != nil {
		return pk, nil, err
	}
	if pk.FixedHeader.Remaining > maxPacket {
		return pk, nil, fmt.Errorf("packet of %d bytes: %w", pk.FixedHeader.Remaining, packets.ErrPacketTooLarge)
	}
	body := make([]byte, pk.FixedHeader.Remaining)
	if _, err := io.ReadFull(in, body); err != nil {
		return pk, nil, err
	}
	var head bytes.Buffer
	pk.FixedHeader.Encode(&head)
	raw = append(head.Bytes(), body...)
	raw[0] = first
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	}
	return pk, raw, err
}

// encode is a PUBLISH or PUBACK of MQTT 3.1.1.
func encode(pk packets.Packet) []byte {
	pk.ProtocolVersion = 4
	var out bytes.Buffer
	var err error
	if pk.FixedHeader.Type == packets.Puback {
		err = pk.PubackEncode(&out)
	} else {
		err = pk.PublishEncode(&out)
	}
	if err != nil {
		panic(err) // of a buffer in memory, with fields of ours
	}
	return out.Bytes()
}

// leg is one of a hop's two connections, with what waits to be written to it.
type leg struct {
	conn  net.Conn
	mu    sync.Mutex
	queue []outgoing // by due
	more  chan struct{}
	done  chan struct{}
	once  sync.Once
}

type outgoing struct {
	raw []byte
	due time.Time
}

func newLeg(conn net.Conn) *leg {
	return &leg{conn: conn, more: make(chan struct{}, 1), done: make(chan struct{})}
}

func (l *leg) close() {
	l.once.Do(func() {
		close(l.done)
		_ = l.conn.Close()
	})
}

// send has raw written after so long, in order with what is due at the same time.
func (l *leg) send(raw []byte, after time.Duration) {
	o := outgoing{raw, time.Now().Add(after)}
	l.mu.Lock()
	if len(l.queue) < maxQueued {
		at, _ := slices.BinarySearchFunc(l.queue, o, func(have, o outgoing) int {
			if have.due.After(o.due) {
				return 1
			}
			return -1
		})
		l.queue = slices.Insert(l.queue, at, o)
	}
	l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// write writes what is due until the leg is closed; failed is called when it
// can't.
func (l *leg) write(failed func()) {
	defer failed()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		l.mu.Lock()
		var ready []outgoing
		now, wait := time.Now(), time.Hour
		n := 0
		for n < len(l.queue) && !l.queue[n].due.After(now) {
			n++
		}
		ready, l.queue = slices.Clone(l.queue[:n]), l.queue[n:]
		if len(l.queue) > 0 {
			wait = l.queue[0].due.Sub(now)
		}
		l.mu.Unlock()
		for _, o := range ready {
			_ = l.conn.SetWriteDeadline(time.Now().Add(patience))
			if _, err := l.conn.Write(o.raw); err != nil {
				return
			}
		}
		timer.Reset(wait)
		select {
		case <-l.more:
		case <-timer.C:
		case <-l.done:
			return
		}
	}
}
