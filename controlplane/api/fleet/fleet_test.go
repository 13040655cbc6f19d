package fleet

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "write the golden fixtures anew: only for messages that are new")

func testKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)) }

func keyFunc(key ed25519.PrivateKey) KeyFunc {
	public := key.Public().(ed25519.PublicKey)
	return func(id []byte, _ [][]byte) (ed25519.PublicKey, error) {
		if !bytes.Equal(id, KeyID(public)) {
			return nil, ErrUnknownKey
		}
		return public, nil
	}
}

// samples has one message of each kind with every field set.
func samples() map[string]struct {
	d   Direction
	msg proto.Message
} {
	type m = struct {
		d   Direction
		msg proto.Message
	}
	session := &Session{Store: []byte("store678"), Boot: 3, Conn: 2, Hello: 1}
	grant := &Grant{Epoch: 7, Hub: []byte("hub45678"), Number: 5}
	version := &Version{Incarnation: []byte("incarnation-0123"), Epoch: 7, Counter: 42, Hub: []byte("hub45678"), Revision: 123456}
	stamp := &Stamp{Store: []byte("store678"), Boot: 3, Seq: 99}
	hash := HashObject([]byte("k8s\x00pod"))
	up := func(u *Up) m { u.Session, u.Seq, u.Grant = session, 9, grant; return m{DirUp, u} }
	down := func(d *Down) m { d.Session, d.Seq, d.Grant = session, 9, grant; return m{DirDown, d} }
	return map[string]m{
		"hello": {DirUp, &Up{Session: session, Seq: 1, Hello: &Hello{Version: version, Digest: hash[:], RunningComplete: true,
			Running:  []*RunningPod{{Uid: "uid-1", Stamp: stamp}, {Uid: "uid-2", Stamp: stamp, Mirror: true, Gone: true, Namespace: "ns", Name: "n"}},
			Features: []string{"wasm"}, BootId: []byte("boot"), Keepalive: 60, KnownKeys: [][]byte{[]byte("key45678")}, AgentVersion: "v0", LinkClass: "lte", Protocol: 1}}},
		"ack": up(&Up{Ack: &Ack{Version: version, Status: AckStatus_MISMATCH, Current: version, Digest: hash[:],
			Want: []*Want{{Uid: "uid-1"}, {Uid: "uid-2", Have: hash[:]}}, Message: "why", Failed: []string{"uid-3"}}}),
		"report": up(&Up{Report: &Report{
			Pods: []*PodReport{{Uid: "uid-1", Namespace: "ns", Name: "n", Stamp: stamp, Status: []byte{10, 7, 'R', 'u', 'n', 'n', 'i', 'n', 'g'}, Gone: true, Mirror: []byte("pod"),
				Trace: []*Offset{{Step: "node-stored", Offset: 12345}}, Elapsed: 99999}},
			Node: &NodeReport{Stamp: stamp, Node: []byte("node")}}}),
		"journal": up(&Up{Journal: &Journal{
			Entries: []*JournalEntry{{Boot: 3, Seq: 4, Kind: "event", Wall: 5, Uptime: 6, ObjectKind: "Pod", Namespace: "ns", Name: "n", Uid: "u", FieldPath: "spec.containers{c}",
				Type: "Warning", Reason: "BackOff", Message: "m", Count: 2, Data: []byte("d"), Component: "kubelet"}},
			Gaps: []*Gap{{Boot: 2, From: 1, To: 3}}}}),
		"tunnel-answer": up(&Up{Tunnel: &TunnelAnswer{Id: "id", Error: "no"}}),
		"bye":           up(&Up{Bye: &Bye{Reason: "maintenance", BackIn: 60}}),
		"will":          {DirWill, &Will{Session: session}},
		"welcome":       down(&Down{Welcome: &Welcome{Version: version, InSync: true, Keepalive: 60, ReconnectJitter: 2000, Time: 1e18, Protocol: 1, ObjectsUrl: "https://h:1"}}),
		"welcome-link": down(&Down{Welcome: &Welcome{Version: version, Keepalive: 900, ReconnectJitter: 20000, Protocol: 1,
			Link: &LinkSettings{Class: "satellite", Slots: 20, Slot: 7, RetryMax: 480, Gather: 2000, DataBudget: 5 << 20}}}),
		"welcome-addresses": down(&Down{Welcome: &Welcome{Version: version, Protocol: 1, Addresses: &Addresses{
			Mqtt: []string{"mqtts://a:8883", "mqtts://b:8883"}, Fleet: []string{"https://a:6444", "https://b:6444"}, Api: []string{"https://a:6443", "https://b:6443"}}}}),
		"hello-addresses": {DirUp, &Up{Session: session, Seq: 1, Hello: &Hello{Version: version, Digest: hash[:], RunningComplete: true, Protocol: 1, Addresses: []byte("hash5678")}}},
		"adopt":           down(&Down{Adopt: &Adopt{From: []byte("other"), To: version}}),
		"order-delta":     down(&Down{Order: &Order{Version: version, Base: hash[:], Digest: hash[:], Removes: []string{"uid-9"}, Synced: true, Expires: 1e9, Upserts: []*Object{{Kind: "Pod", Namespace: "ns", Name: "n", Uid: "uid-1", Hash: hash[:], Raw: []byte("k8s\x00pod")}, {Kind: "Secret", Namespace: "ns", Name: "s", Uid: "uid-2", Hash: hash[:], Sealed: []byte("sealed")}, {Kind: "ConfigMap", Namespace: "ns", Name: "c", Uid: "uid-3", Hash: hash[:], Size: 1 << 20}}}}),
		"order-list":      down(&Down{Order: &Order{Version: version, List: true, Synced: true, Digest: hash[:], Entries: []*Entry{{Uid: "uid-1", Hash: hash[:]}}}}),
		"acks":            down(&Down{ReportAck: &ReportAck{Verdicts: []*ReportVerdict{{Uid: "uid-1", Stamp: stamp, Verdict: Verdict_OBSOLETE, Message: "m"}}}, JournalAck: &JournalAck{Boot: 3, Seq: 4}}),
		"tunnel-request":  down(&Down{Tunnel: &TunnelRequest{Id: "id", Purpose: "10250", Url: "https://h:1/v1/tunnel/id"}}),
		"resend":          down(&Down{Resend: &Resend{Uids: []string{"uid-1"}, All: true, Node: true}}),
		"rebirth":         {DirDown, &Down{Rebirth: &Rebirth{Version: version, Jitter: 500}}},
		"order-part":      down(&Down{Order: &Order{Version: version, Base: hash[:], Digest: hash[:], Synced: true, More: true, Upserts: []*Object{{Kind: "Pod", Namespace: "ns", Name: "n", Uid: "uid-1", Hash: hash[:], Raw: []byte("k8s\x00pod")}}}}),
		"hello-board":     {DirUp, &Up{Session: session, Seq: 1, Hello: &Hello{Version: version, BootId: []byte("boot"), Board: "serial 100000003d1b8c47, 192.168.1.7", Trust: []byte("trust678")}}},
		"trust":           down(&Down{Trust: &Trust{Id: []byte("trust678"), Jitter: 2000}}),
		"removed":         down(&Down{Standing: &Standing{State: StandingState_REMOVED, Message: "why", Since: 1e9}}),
		"refused":         {DirDown, &Down{Session: session, Standing: &Standing{State: StandingState_CLONED, Message: "why", Since: 1e9}}},
		"probe":           {DirDown, &Down{Session: session, Grant: grant, Probe: &Probe{BootId: []byte("boot")}}},
	}
}

// TestGoldenEnvelopes: what an earlier version wrote is read for ever, and what
// is small enough not to be compressed is written as it was.
func TestGoldenEnvelopes(t *testing.T) {
	c := NewCodec()
	for name, s := range samples() {
		path := filepath.Join("testdata", name+".hex")
		now, err := c.Encode(s.d, "board-a", testKey(), s.msg, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := os.Stat(path); *update && os.IsNotExist(err) {
			if err := os.WriteFile(path, []byte(hex.EncodeToString(now)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%s: %v (go test -update writes new ones)", name, err)
			continue
		}
		golden, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		got := s.msg.ProtoReflect().New().Interface()
		if err := c.Decode(s.d, "board-a", golden, keyFunc(testKey()), got); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !proto.Equal(got, s.msg) {
			t.Errorf("%s reads as\n%v\nwant\n%v", name, got, s.msg)
		}
		var env Envelope
		_ = proto.Unmarshal(golden, &env)
		if env.Encoding == Encoding_NONE && !bytes.Equal(now, golden) {
			t.Errorf("%s is written otherwise:\n%x\nwas\n%x", name, now, golden)
		}
	}
}

func TestEnvelopeRefusals(t *testing.T) {
	c := NewCodec()
	msg := &Up{Seq: 1, Bye: &Bye{Reason: strings.Repeat("long ", 100)}}
	good, err := c.Encode(DirUp, "board-a", testKey(), msg, nil)
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*Envelope)) []byte {
		var e Envelope
		_ = proto.Unmarshal(good, &e)
		f(&e)
		b, _ := proto.Marshal(&e)
		return b
	}
	_, other, _ := ed25519.GenerateKey(rand.Reader)
	foreign, _ := c.Encode(DirUp, "board-a", other, msg, nil)
	for _, x := range []struct {
		what string
		d    Direction
		node string
		data []byte
		want error
	}{
		{"as sent", DirUp, "board-a", good, nil},
		{"sent back", DirDown, "board-a", good, ErrSignature},
		{"as a will", DirWill, "board-a", good, ErrSignature},
		{"in another's name", DirUp, "board-b", good, ErrSignature},
		{"of an unknown key", DirUp, "board-a", foreign, ErrUnknownKey},
		{"with another payload", DirUp, "board-a", change(func(e *Envelope) { e.Payload[len(e.Payload)-1] ^= 1 }), ErrSignature},
		{"with another encoding", DirUp, "board-a", change(func(e *Envelope) { e.Encoding = Encoding_NONE }), ErrSignature},
		{"without signature", DirUp, "board-a", change(func(e *Envelope) { e.Signature = nil }), ErrSignature},
		{"of a later version", DirUp, "board-a", change(func(e *Envelope) { e.Version = 2 }), ErrUnsupported},
		{"with an unknown encoding", DirUp, "board-a", change(func(e *Envelope) { e.Encoding = 9 }), ErrUnsupported},
		{"cut", DirUp, "board-a", good[:len(good)-3], ErrMalformed},
		{"not an envelope", DirUp, "board-a", []byte("hello"), ErrMalformed},
		{"too large", DirUp, "board-a", make([]byte, MaxMessage+1), ErrTooLarge},
		{"a bomb", DirUp, "board-a", bomb(t, 100<<20), ErrTooLarge},
		{"a small bomb", DirUp, "board-a", bomb(t, MaxDecoded+1), ErrTooLarge},
	} {
		var got Up
		if err := c.Decode(x.d, x.node, x.data, keyFunc(testKey()), &got); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", x.what, err, x.want)
		}
	}
}

// bomb is signed by who may sign, and tiny, and unpacks to n bytes.
func bomb(t *testing.T, n int) []byte {
	t.Helper()
	enc, _ := zstd.NewWriter(nil)
	payload := enc.EncodeAll(make([]byte, n), nil)
	env := &Envelope{Version: 1, Encoding: Encoding_ZSTD, Payload: payload, KeyId: KeyID(testKey().Public().(ed25519.PublicKey)),
		Signature: ed25519.Sign(testKey(), SigningInput(DirUp, "board-a", 1, Encoding_ZSTD, payload))}
	b, err := proto.Marshal(env)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEncodeRefusesWhatDoesNotFit(t *testing.T) {
	noise := make([]byte, MaxMessage)
	_, _ = rand.Read(noise)
	if _, err := NewCodec().Encode(DirUp, "n", testKey(), &Up{Report: &Report{Node: &NodeReport{Node: noise}}}, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("64 KiB of noise: %v", err)
	}
	// The worst that senders put into one message fits.
	if _, err := NewCodec().Encode(DirUp, "n", testKey(), &Up{Report: &Report{Node: &NodeReport{Node: noise[:MaxReportBytes+8<<10]}}}, nil); err != nil {
		t.Errorf("%d bytes: %v", MaxReportBytes, err)
	}
}

func TestCompare(t *testing.T) {
	have := OrderVersion{Incarnation: "A", Epoch: 5, Counter: 10, Hub: "h5", Revision: 1000}
	for _, x := range []struct {
		what string
		have OrderVersion
		got  OrderVersion
		want Relation
	}{
		{"the first order ever", OrderVersion{}, have, Newer},
		{"the next", have, OrderVersion{"A", 5, 11, "h5", 1001}, Newer},
		{"the next, of an older revision", have, OrderVersion{"A", 5, 11, "h5", 999}, Newer},
		{"the same", have, have, Same},
		{"the one before", have, OrderVersion{"A", 5, 9, "h5", 990}, Older},
		{"a later epoch", have, OrderVersion{"A", 6, 1, "h6", 1001}, Newer},
		{"a deposed hub", have, OrderVersion{"A", 4, 99, "h4", 1001}, Older},
		{"another cluster", have, OrderVersion{"B", 6, 99, "h6", 2000}, Foreign},
		{"the same epoch under another hub", have, OrderVersion{"A", 5, 99, "x5", 2000}, Foreign},
		{"a later epoch of a restored etcd", have, OrderVersion{"A", 6, 1, "h6", 900}, Foreign},
		{"a later epoch of unknown revision", have, OrderVersion{"A", 6, 1, "h6", 0}, Newer},
	} {
		if got := Compare(x.have, x.got); got != x.want {
			t.Errorf("%s: %v, want %v", x.what, got, x.want)
		}
	}
}

func TestDigestIsOfTheSet(t *testing.T) {
	a := Set{"u1": HashObject([]byte("1")), "u2": HashObject([]byte("2"))}
	b := Set{"u2": HashObject([]byte("2")), "u1": HashObject([]byte("1"))}
	if a.Digest() != b.Digest() {
		t.Error("equal sets differ")
	}
	seen := map[Hash]bool{a.Digest(): true, Set{}.Digest(): true}
	for _, s := range []Set{{"u1": a["u1"]}, {"u1": a["u2"], "u2": a["u1"]}, {"u1u2": a["u1"]}, {"u": a["u1"], "1u2": a["u2"]}} {
		if seen[s.Digest()] {
			t.Errorf("another set has the same digest: %v", s)
		}
		seen[s.Digest()] = true
	}
	// Pinned: both sides of every version must agree.
	if got := a.Digest().String(); got != pinned {
		t.Errorf("digest %s, was %s", got, pinned)
	}
}

const pinned = "ff2bc175dc9b7b9077310ac92b873a011f884854117a1b6543465b4f7f4bd8dd"

func TestSealIsForOneNodeAndOneObject(t *testing.T) {
	key, err := SealKEM().GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	raw := []byte("secret")
	h := HashSecret([]byte("key"), raw)
	sealed, err := Seal(key.PublicKey().Bytes(), "board-a", "uid", h, raw)
	if err != nil || bytes.Contains(sealed, raw) {
		t.Fatalf("%x, %v", sealed, err)
	}
	if got, err := Unseal(key, "board-a", "uid", h, sealed); err != nil || !bytes.Equal(got, raw) {
		t.Fatalf("%q, %v", got, err)
	}
	for _, x := range []struct {
		node, uid string
		h         Hash
	}{{"board-b", "uid", h}, {"board-a", "other", h}, {"board-a", "uid", Hash{}}} {
		if _, err := Unseal(key, x.node, x.uid, x.h, sealed); !errors.Is(err, ErrSealed) {
			t.Errorf("%+v: %v", x, err)
		}
	}
	if HashSecret([]byte("other"), raw) == h {
		t.Error("a Secret's hash doesn't depend on the key")
	}
}

func TestTopicsAndACL(t *testing.T) {
	for _, x := range []struct {
		user, topic string
		write, want bool
	}{
		{"system:node:a", "coracle/1/system:node:a/up", true, true},
		{"system:node:a", "coracle/1/system:node:a/will", true, true},
		{"system:node:a", "coracle/1/system:node:a/down", false, true},
		{"system:node:a", "coracle/1/system:node:a/down", true, false},
		{"system:node:a", "coracle/1/system:node:a/up", false, false},
		{"system:node:a", "coracle/1/system:node:b/up", true, false},
		{"system:node:a", "coracle/1/system:node:b/down", false, false},
		{"system:node:a", "coracle/1/+/down", false, false},
		{"system:node:a", "#", false, false},
		{"system:node:", "coracle/1/system:node:/up", true, false},
		{"system:node:+", "coracle/1/system:node:+/down", false, false},
		{"system:node:A", "coracle/1/system:node:A/up", true, false},
		{HubUser, "coracle/1/system:node:a/down", true, true},
		{HubUser, "coracle/1/+/up", false, true},
		{HubUser, "coracle/1/+/will", false, true},
		{HubUser, "coracle/1/system:node:a/up", false, true},
		{HubUser, "coracle/1/system:node:a/up", true, false},
		{HubUser, "#", false, false},
		{"", "coracle/1/system:node:a/up", true, false},
		{"admin", "coracle/1/system:node:a/down", true, false},
	} {
		if got := Allowed(x.user, x.topic, x.write); got != x.want {
			t.Errorf("%q, %q, write %v: %v", x.user, x.topic, x.write, got)
		}
	}
	for _, node := range []string{"a", "board-a", "a.b-c.d9"} {
		for _, d := range []Direction{DirUp, DirDown, DirWill} {
			if n, got, err := ParseTopic(Topic(node, d)); err != nil || n != node || got != d {
				t.Errorf("%s/%s: %q %q %v", node, d, n, got, err)
			}
		}
	}
}

func TestStampText(t *testing.T) {
	s := StampID{"\x01store", 3, 4}
	if got, err := ParseStamp(s.String()); err != nil || got != s {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "//", "zz/1/2", "01/1", "01/1/2/3", "01/-1/2", "01/ 1/2", "01/1/2 "} {
		if s, err := ParseStamp(bad); err == nil {
			t.Errorf("%q reads as %v", bad, s)
		}
	}
}

func FuzzDecode(f *testing.F) {
	c := NewCodec()
	for _, s := range samples() {
		b, _ := c.Encode(s.d, "board-a", testKey(), s.msg, nil)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var u Up
		if err := c.Decode(DirUp, "board-a", data, keyFunc(testKey()), &u); err == nil && len(data) > MaxMessage {
			t.Error("too large")
		}
		// And with everything signed, so that what is behind the signature is reached.
		for _, encoding := range []Encoding{Encoding_NONE, Encoding_ZSTD} {
			env := &Envelope{Version: 1, Encoding: encoding, Payload: data, KeyId: KeyID(testKey().Public().(ed25519.PublicKey)),
				Signature: ed25519.Sign(testKey(), SigningInput(DirDown, "board-a", 1, encoding, data))}
			b, _ := proto.Marshal(env)
			var d Down
			_ = c.Decode(DirDown, "board-a", b, keyFunc(testKey()), &d)
			_, _ = SetFrom(d.GetOrder().GetEntries())
			Compare(VersionFrom(d.GetOrder().GetVersion()), VersionFrom(d.GetWelcome().GetVersion()))
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add("coracle/1/system:node:a/up")
	f.Add("0102/3/4")
	f.Fuzz(func(t *testing.T, s string) {
		if node, d, err := ParseTopic(s); err == nil && Topic(node, d) != s {
			t.Errorf("topic %q", s)
		}
		if stamp, err := ParseStamp(s); err == nil && stamp.String() != s {
			t.Errorf("stamp %q", s)
		}
		if Allowed(s, "coracle/1/system:node:a/down", false) && s != "system:node:a" {
			t.Errorf("user %q reads another's", s)
		}
	})
}
