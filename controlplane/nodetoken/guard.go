package nodetoken

import (
	"crypto/ed25519"
	"fmt"
	"net/http"
	"strings"

	"k8s.io/apiserver/pkg/authentication/authenticator"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// Guard wraps an authenticator that takes client certificates: a node's certificate
// counts only while the node's record holds the same key and isn't revoked. A
// certificate alone would go on for a year after either ended.
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
