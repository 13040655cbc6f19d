package fleet

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/url"
)

// maxAddresses bounds each list of [Addresses], maxAddress one of them, in bytes.
const (
	maxAddresses = 16
	maxAddress   = 256
)

// Hash tells whether a node knows these addresses, in this order: the first 8 bytes
// of SHA-256 over each list's number and each address with its length before it
// (uvarints).
func (a *Addresses) Hash() []byte {
	h := sha256.New()
	number := func(n int) { h.Write(binary.AppendUvarint(nil, uint64(n))) }
	for _, list := range [][]string{a.GetMqtt(), a.GetFleet(), a.GetApi()} {
		number(len(list))
		for _, address := range list {
			number(len(address))
			h.Write([]byte(address))
		}
	}
	return h.Sum(nil)[:8]
}

// Check returns ErrMalformed if these can't be addresses of a control plane: a node
// that took them would be lost.
func (a *Addresses) Check() error {
	for _, l := range []struct {
		what    string
		list    []string
		schemes []string
	}{
		{"broker", a.GetMqtt(), []string{"mqtts", "tls", "ssl"}},
		{"fleet endpoint", a.GetFleet(), []string{"https"}},
		{"API", a.GetApi(), []string{"https"}},
	} {
		if len(l.list) == 0 || len(l.list) > maxAddresses {
			return fmt.Errorf("%w: %d addresses of the %s, want 1 to %d", ErrMalformed, len(l.list), l.what, maxAddresses)
		}
		for _, text := range l.list {
			u, err := url.Parse(text)
			if err != nil || len(text) > maxAddress || u.Hostname() == "" || !has(l.schemes, u.Scheme) {
				return fmt.Errorf("%w: address %.64q of the %s, want %s://HOST:PORT", ErrMalformed, text, l.what, l.schemes[0])
			}
		}
	}
	return nil
}

func has(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
