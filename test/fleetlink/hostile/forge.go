package hostile

import (
	"crypto/ed25519"
	"math/rand/v2"

	"google.golang.org/protobuf/proto"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Forged marks what a [Forger] makes up: nothing that a node has or the API says
// may ever contain it.
const Forged = "forged"

// Forger makes messages that lack only the right signature: it reads what goes
// by, as every broker can, and changes it to do harm.
type Forger struct {
	// Keys are the true signers' public keys: node is its name in what comes from
	// it, empty for the hub.
	Keys func(node string) ed25519.PublicKey
	// Evil is the forger's own key.
	Evil  ed25519.PrivateKey
	codec *fleet.Codec
}

// NewForger returns one with a key of its own.
func NewForger(keys func(node string) ed25519.PublicKey, seed uint64) *Forger {
	raw := make([]byte, ed25519.SeedSize)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range raw {
		raw[i] = byte(r.Uint32())
	}
	return &Forger{Keys: keys, Evil: ed25519.NewKeyFromSeed(raw), codec: fleet.NewCodec()}
}

// forge makes a message for the topic of m out of it.
func (f *Forger) forge(m message, r *rand.Rand) []byte {
	noise := func() []byte {
		out := make([]byte, r.IntN(300))
		for i := range out {
			out[i] = byte(r.Uint32())
		}
		return out
	}
	node, d, ok := direction(m.topic)
	if !ok {
		return noise()
	}
	signer := f.Keys("")
	var msg proto.Message = &fleet.Down{}
	switch d {
	case fleet.DirUp:
		msg, signer = &fleet.Up{}, f.Keys(node)
	case fleet.DirWill:
		msg, signer = &fleet.Will{}, f.Keys(node)
	}
	trusting := func([]byte, [][]byte) (ed25519.PublicKey, error) { return signer, nil }
	if f.codec.Decode(d, node, m.payload, trusting, msg) != nil {
		return noise()
	}
	switch msg := msg.(type) {
	case *fleet.Down:
		tamperDown(msg, r)
	case *fleet.Up:
		tamperUp(msg, r)
	}
	evil, err := f.codec.Encode(d, node, f.Evil, msg, nil)
	if err != nil {
		return noise()
	}
	var env, genuine fleet.Envelope
	if proto.Unmarshal(evil, &env) != nil || proto.Unmarshal(m.payload, &genuine) != nil {
		return noise()
	}
	switch r.IntN(4) {
	case 0:
		return noise()
	case 1: // a key of its own, openly
	case 2: // in another's name
		env.KeyId = genuine.KeyId
	case 3: // with a true signature, of something else
		env.KeyId, env.Signature, env.Chain = genuine.KeyId, genuine.Signature, genuine.Chain
	}
	out, err := proto.Marshal(&env)
	if err != nil {
		return noise()
	}
	return out
}

// tamperDown makes an order of it that would be obeyed: of the running session,
// synced, newer than all.
func tamperDown(d *fleet.Down, r *rand.Rand) {
	version := d.GetOrder().GetVersion()
	if version == nil {
		version = d.GetWelcome().GetVersion()
	}
	if version == nil {
		version = &fleet.Version{Epoch: d.GetGrant().GetEpoch(), Hub: d.GetGrant().GetHub()}
	}
	version = proto.CloneOf(version)
	version.Counter += 1 + uint64(r.IntN(5))
	d.Seq += 1 + uint64(r.IntN(5))
	switch r.IntN(4) {
	case 0: // stop everything
		d.Order = &fleet.Order{Version: version, List: true, Synced: true}
	case 1: // run something
		raw := []byte(Forged)
		hash := fleet.HashObject(raw)
		d.Order = &fleet.Order{Version: version, Base: d.GetOrder().GetBase(), Synced: true, More: true,
			Upserts: []*fleet.Object{{Kind: "Pod", Namespace: "default", Name: Forged, Uid: Forged, Hash: hash[:], Raw: raw}}}
	case 2: // take the node over
		to := proto.CloneOf(version)
		to.Incarnation = []byte("forged-forged-fo")
		d.Adopt = &fleet.Adopt{From: version.GetIncarnation(), To: to}
	case 3: // say that nothing needs to be sent any more
		d.JournalAck = &fleet.JournalAck{Boot: 1 << 40, Seq: 1 << 40}
	}
}

// tamperUp makes it say what would delete pods and history.
func tamperUp(u *fleet.Up, r *rand.Rand) {
	u.Seq += 1 + uint64(r.IntN(5))
	stamp := &fleet.Stamp{Store: u.GetSession().GetStore(), Boot: u.GetSession().GetBoot() + 1, Seq: 1 << 30}
	if u.Hello != nil {
		u.Hello.Version.Epoch++ // the hub would believe that it was deposed
		u.Session.Hello++
		return
	}
	for _, p := range u.GetReport().GetPods() {
		p.Stamp, p.Gone, p.Status = stamp, true, []byte{26, 6, 'f', 'o', 'r', 'g', 'e', 'd'} // message
	}
	u.Journal = &fleet.Journal{Entries: []*fleet.JournalEntry{{Boot: stamp.Boot, Seq: stamp.Seq, Kind: "event", Namespace: "default", Name: Forged, ObjectKind: "Pod", Reason: Forged, Message: Forged, Type: "Normal"}}}
	if u.Report == nil {
		u.Report = &fleet.Report{Pods: []*fleet.PodReport{{Uid: Forged, Namespace: "default", Name: Forged, Stamp: stamp, Mirror: []byte(Forged)}}}
	}
}
