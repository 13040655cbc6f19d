package nodetoken

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// Guard wraps an authenticator that takes client certificates: a node's certificate
// counts only while the node's record holds the same key and the node is one of
// the cluster's. A certificate alone would go on for a year after either ended.
func Guard(certificates authenticator.Request, records Records) authenticator.Request {
	return authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		response, ok, err := certificates.AuthenticateRequest(r)
		if err != nil || !ok || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			return response, ok, err
		}
		cert := r.TLS.PeerCertificates[0]
		node, isNode := strings.CutPrefix(response.User.GetName(), enrollment.NodeUserPrefix)
		// A front proxy speaks for others: then the certificate is the proxy's.
		if !isNode || cert.Subject.CommonName != response.User.GetName() {
			return response, ok, nil
		}
		record, err := records.Admitted(r.Context(), node)
		if err != nil {
			return nil, false, fmt.Errorf("certificate of node %q: %w", node, err)
		}
		if key, isEd25519 := cert.PublicKey.(ed25519.PublicKey); !isEd25519 || !record.SigningKey.Equal(key) {
			return nil, false, fmt.Errorf("certificate of node %q: %w", node, enrollment.ErrNodeKey)
		}
		return response, true, nil
	})
}

// Bound wraps all authentication. A token that the cluster itself signed for a pod
// ends with its node's identity, too: whoever holds a node can ask for such
// tokens, for as long as the node may, and keep them. What was let in is noted in
// connections, so that it can be ended with the node.
func Bound(all authenticator.Request, records Records, connections *Connections) authenticator.Request {
	return authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		response, ok, err := all.AuthenticateRequest(r)
		if err != nil || !ok {
			return response, ok, err
		}
		node := nodeOf(response.User)
		if node == "" {
			return response, true, nil
		}
		// Noted first: whoever is refused between the two has his connection ended.
		connections.note(r.RemoteAddr, node)
		// A node that isn't ours has no record.
		if _, err := records.Admitted(r.Context(), node); err != nil && !errors.Is(err, enrollment.ErrNodeUnknown) {
			return nil, false, fmt.Errorf("%s of node %q: %w", response.User.GetName(), node, err)
		}
		return response, true, nil
	})
}

// nodeOf is the node that u is, or that its pod is bound to; empty if none.
func nodeOf(u user.Info) string {
	if node, ok := strings.CutPrefix(u.GetName(), enrollment.NodeUserPrefix); ok {
		return node
	}
	if !strings.HasPrefix(u.GetName(), serviceaccount.ServiceAccountUsernamePrefix) {
		return ""
	}
	if names := u.GetExtra()[serviceaccount.NodeNameKey]; len(names) == 1 {
		return names[0]
	}
	return ""
}
