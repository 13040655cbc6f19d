package fleethub

import (
	"bytes"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// bigObjects are the sealed forms of large Secrets under way: sealing is
// different each time, and a download that was cut must be resumed with the same
// bytes. Others are made again from the API's object.
type bigObjects struct {
	mu     sync.Mutex
	sealed map[string]sealedObject // by UID
}

type sealedObject struct {
	hash fleet.Hash
	raw  []byte
	at   time.Time
}

const (
	maxSealed  = 4 // per node
	sealedLife = 10 * time.Minute
)

func (b *bigObjects) put(uid string, hash fleet.Hash, raw []byte, secret bool) {
	if !secret {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sealed == nil {
		b.sealed = map[string]sealedObject{}
	}
	for uid, s := range b.sealed {
		if time.Since(s.at) > sealedLife || len(b.sealed) >= maxSealed {
			delete(b.sealed, uid)
		}
	}
	b.sealed[uid] = sealedObject{hash, raw, time.Now()}
}

func (b *bigObjects) get(uid string, hash fleet.Hash) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.sealed[uid]
	return s.raw, ok && s.hash == hash
}

// ObjectsHandler serves GET /v1/objects/HASH?uid=UID, with ranges, to a node that
// should have that object. nodeOf says which admitted node a request comes from,
// empty if none (controlplane/join has NodeFrom); nil takes the common name of the
// connection's verified certificate.
func (h *Hub) ObjectsHandler(nodeOf func(*http.Request) string) http.Handler {
	if nodeOf == nil {
		nodeOf = nodeOfCertificate
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := nodeOf(r)
		if name == "" {
			http.Error(w, "a node's certificate is needed", http.StatusUnauthorized)
			return
		}
		if _, err := h.c.Keys(r.Context(), name); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		h.serveObject(w, r, name)
	})
}

func nodeOfCertificate(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return ""
	}
	name, _ := fleet.NodeOfUser(r.TLS.VerifiedChains[0][0].Subject.CommonName)
	return name
}

// serveObject serves one object to a node that is known to be name.
func (h *Hub) serveObject(w http.ResponseWriter, r *http.Request, name string) {
	hash := strings.TrimPrefix(r.URL.Path, "/v1/objects/")
	uid := r.URL.Query().Get("uid")
	n := h.find(name)
	if n == nil {
		http.Error(w, "this node has no objects", http.StatusNotFound)
		return
	}
	n.mu.Lock()
	order := n.fetchable[uid]
	n.mu.Unlock()
	if order == nil || order.hash.String() != hash {
		http.Error(w, "this node has no such object", http.StatusNotFound)
		return
	}
	raw, ok := n.big.get(uid, order.hash)
	if !ok {
		var err error
		if order.kind == "Secret" {
			http.Error(w, "this Secret has changed or its time is over", http.StatusNotFound)
			return
		}
		if raw, err = h.encoder.raw(*order); err != nil {
			h.log.Error("object can't be served", "node", name, "error", err)
			http.Error(w, "object can't be encoded", http.StatusInternalServerError)
			return
		}
	}
	flow := func(sent int) {
		h.counters.Stream(fleet.StreamObjects).Add(sent, 0)
		n.counters.Stream(fleet.StreamObjects).Add(sent, 0)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", `"`+hash+`"`)
	http.ServeContent(countedResponse{w, flow}, r, "", time.Time{}, bytes.NewReader(raw))
}

// countedResponse tells the bytes of the body: a download that was resumed sends
// less than the object.
type countedResponse struct {
	http.ResponseWriter
	count func(sent int)
}

func (c countedResponse) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.count(n)
	return n, err
}
