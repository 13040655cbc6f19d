package join

import (
	"crypto/x509"
	"fmt"
	"net/http"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// Relay takes the streams of other control planes to nodes that only this one
// reaches; controlplane/tunnel is one. The caller is authenticated.
type Relay interface {
	ServeRelay(w http.ResponseWriter, r *http.Request, node string)
}

// relay lets in the API servers of the cluster, by the certificate that they show
// to nodes, too.
func (s *Server) relay(w http.ResponseWriter, r *http.Request) {
	if err := s.apiServer(r); err != nil {
		s.refuse(w, r, err)
		return
	}
	node := r.PathValue("node")
	if err := enrollment.CheckNodeName(node); err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", enrollment.ErrBadRequest, err))
		return
	}
	s.cfg.Relay.ServeRelay(w, r, node)
}

func (s *Server) apiServer(r *http.Request) error {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return fmt.Errorf("%w: an API server's certificate is needed", enrollment.ErrProof)
	}
	cert := r.TLS.PeerCertificates[0]
	if _, err := cert.Verify(x509.VerifyOptions{Roots: s.cfg.Authority.RootPool(), CurrentTime: s.cfg.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("%w: certificate of %q: %w", enrollment.ErrProof, cert.Subject.CommonName, err)
	}
	if cert.Subject.CommonName != enrollment.KubeletClientName {
		return fmt.Errorf("%w: certificate of %q isn't an API server's", enrollment.ErrProof, cert.Subject.CommonName)
	}
	return nil
}
