package hostile

import (
	"bufio"
	"bytes"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// FuzzReadPacket: whatever a client sends, what is passed on is what was read.
func FuzzReadPacket(f *testing.F) {
	f.Add(encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: "a/b", Payload: []byte("x")}))
	f.Add(encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: 7}))
	f.Add([]byte{0xc0, 0})
	f.Add([]byte{0x10, 0x0c, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 0})
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.NewReader(data)
		pk, raw, err := readPacket(bufio.NewReaderSize(in, 16))
		if err != nil {
			return
		}
		// The length may have been written in more bytes than it needs.
		body := raw[len(raw)-pk.FixedHeader.Remaining:]
		again, rest, err := readPacket(bufio.NewReader(bytes.NewReader(raw)))
		if raw[0] != data[0] || !bytes.Contains(data, body) || err != nil || !bytes.Equal(rest, raw) || again.TopicName != pk.TopicName {
			t.Errorf("read %x of %x", raw, data)
		}
	})
}
