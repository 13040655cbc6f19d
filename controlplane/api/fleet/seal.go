package fleet

import (
	"crypto/ecdh"
	"crypto/hpke"
	"fmt"
)

// Sealing is HPKE base mode (RFC 9180) with DHKEM(X25519, HKDF-SHA256),
// HKDF-SHA256 and ChaCha20-Poly1305, which is fast on boards without AES
// instructions.

// SealKEM is the KEM of a node's sealing key: use it to make, read and write
// keys.
func SealKEM() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// Seal encrypts raw so that only the node with this public key (32 bytes) can
// read it, as the content of the object with this UID and hash.
func Seal(publicKey []byte, node, uid string, hash Hash, raw []byte) ([]byte, error) {
	pk, err := SealKEM().NewPublicKey(publicKey)
	if err != nil {
		return nil, fmt.Errorf("sealing key of node %s: %w", node, err)
	}
	return hpke.Seal(pk, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), sealInfo(node, uid, hash), raw)
}

// Unseal reverses [Seal].
func Unseal(key hpke.PrivateKey, node, uid string, hash Hash, sealed []byte) ([]byte, error) {
	raw, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), sealInfo(node, uid, hash), sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: %s of node %s: %v", ErrSealed, uid, node, err)
	}
	return raw, nil
}

func sealInfo(node, uid string, hash Hash) []byte {
	info := []byte("coracle-seal-v1\x00" + node + "\x00" + uid + "\x00")
	return append(info, hash[:]...)
}
