package fleet

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"
)

const (
	// compressFrom is the payload size below which zstd doesn't pay.
	compressFrom = 200
	// window is enough for every message and keeps a board's memory small.
	window = 64 << 10
)

// Codec wraps messages into signed envelopes and back. Its compressors and
// decompressors (some 300 KiB) are there while they are needed, so that a node
// with nothing to say has none. Safe for concurrent use.
type Codec struct {
	encoders, decoders sync.Pool // of *zstd.Encoder, *zstd.Decoder
}

// NewCodec returns a Codec.
func NewCodec() *Codec { return &Codec{} }

// KeyID names a public key in an envelope.
func KeyID(key ed25519.PublicKey) []byte {
	sum := sha256.Sum256(key)
	return sum[:8]
}

// SigningInput is what is signed: "coracle-fleet-v1", the direction and the
// node's name, each followed by a zero byte, then the envelope's version and
// encoding (one byte each) and its payload as it travels. Who verifies takes
// direction and node from the topic, so nothing can be sent on to another node
// or back.
func SigningInput(d Direction, node string, version uint32, encoding Encoding, payload []byte) []byte {
	in := make([]byte, 0, len(payload)+len(node)+32)
	in = append(in, "coracle-fleet-v1\x00"...)
	in = append(in, d...)
	in = append(in, 0)
	in = append(in, node...)
	in = append(in, 0, byte(version), byte(encoding))
	return append(in, payload...)
}

// Encode signs msg for node in direction d. chain, if any, is sent along.
func (c *Codec) Encode(d Direction, node string, key ed25519.PrivateKey, msg proto.Message, chain [][]byte) ([]byte, error) {
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("message to %s/%s: %w", node, d, err)
	}
	if len(payload) > MaxDecoded {
		return nil, fmt.Errorf("message to %s/%s of %d bytes: %w", node, d, len(payload), ErrTooLarge)
	}
	encoding := Encoding_NONE
	if len(payload) >= compressFrom {
		small, err := c.compress(payload)
		if err != nil {
			return nil, err
		}
		if len(small) < len(payload)*19/20 {
			payload, encoding = small, Encoding_ZSTD
		}
	}
	env := &Envelope{
		Version:   EnvelopeVersion,
		Encoding:  encoding,
		Payload:   payload,
		KeyId:     KeyID(key.Public().(ed25519.PublicKey)),
		Signature: ed25519.Sign(key, SigningInput(d, node, EnvelopeVersion, encoding, payload)),
		Chain:     chain,
	}
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(env)
	if err != nil {
		return nil, fmt.Errorf("envelope to %s/%s: %w", node, d, err)
	}
	if len(out) > MaxMessage {
		return nil, fmt.Errorf("message to %s/%s of %d bytes on the wire: %w", node, d, len(out), ErrTooLarge)
	}
	return out, nil
}

// KeyFunc returns the public key with this id, or [ErrUnknownKey]. chain is what
// came with the envelope and isn't verified yet.
type KeyFunc func(keyID []byte, chain [][]byte) (ed25519.PublicKey, error)

// Decode verifies the envelope and reads its payload into msg. Nothing of the
// payload is looked at before the signature was found good.
func (c *Codec) Decode(d Direction, node string, data []byte, keys KeyFunc, msg proto.Message) error {
	if len(data) > MaxMessage {
		return fmt.Errorf("message from %s/%s of %d bytes: %w", node, d, len(data), ErrTooLarge)
	}
	var env Envelope
	if err := proto.Unmarshal(data, &env); err != nil {
		return fmt.Errorf("%w: envelope from %s/%s: %v", ErrMalformed, node, d, err)
	}
	if env.Version != EnvelopeVersion || (env.Encoding != Encoding_NONE && env.Encoding != Encoding_ZSTD) {
		return fmt.Errorf("%w: envelope from %s/%s has version %d, encoding %d", ErrUnsupported, node, d, env.Version, env.Encoding)
	}
	key, err := keys(env.KeyId, env.Chain)
	if err != nil {
		return fmt.Errorf("envelope from %s/%s: %w", node, d, err)
	}
	if len(key) != ed25519.PublicKeySize || len(env.Signature) != ed25519.SignatureSize ||
		!ed25519.Verify(key, SigningInput(d, node, env.Version, env.Encoding, env.Payload), env.Signature) {
		return fmt.Errorf("%w: envelope from %s/%s", ErrSignature, node, d)
	}
	payload := env.Payload
	if env.Encoding == Encoding_ZSTD {
		if payload, err = c.decompress(payload); err != nil {
			return fmt.Errorf("envelope from %s/%s: %w", node, d, err)
		}
	}
	if err := proto.Unmarshal(payload, msg); err != nil {
		return fmt.Errorf("%w: payload from %s/%s: %v", ErrMalformed, node, d, err)
	}
	return nil
}

func (c *Codec) compress(b []byte) ([]byte, error) {
	enc, _ := c.encoders.Get().(*zstd.Encoder)
	if enc == nil {
		var err error
		enc, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
		if err != nil {
			return nil, fmt.Errorf("fleet: zstd: %w", err)
		}
	}
	defer c.encoders.Put(enc)
	return enc.EncodeAll(b, make([]byte, 0, len(b)/2)), nil
}

func (c *Codec) decompress(b []byte) ([]byte, error) {
	dec, _ := c.decoders.Get().(*zstd.Decoder)
	if dec == nil {
		var err error
		dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(MaxDecoded), zstd.WithDecoderMaxWindow(MaxDecoded))
		if err != nil {
			return nil, fmt.Errorf("fleet: zstd: %w", err)
		}
	}
	defer c.decoders.Put(dec)
	out, err := dec.DecodeAll(b, nil)
	if err != nil {
		if err == zstd.ErrDecoderSizeExceeded || err == zstd.ErrWindowSizeExceeded {
			return nil, fmt.Errorf("%w: more than %d bytes after decompression", ErrTooLarge, MaxDecoded)
		}
		return nil, fmt.Errorf("%w: zstd: %v", ErrMalformed, err)
	}
	if len(out) > MaxDecoded {
		return nil, fmt.Errorf("%w: %d bytes after decompression", ErrTooLarge, len(out))
	}
	return out, nil
}
