package join

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
)

// join grants a certificate to the board that holds a token, or that joined
// before with the same key: a lost answer is repeated, whatever became of the token.
func (s *Server) join(ctx context.Context, body []byte, proven func([]byte) error) (enrollment.Grant, error) {
	request, err := parseJoin(body)
	if err != nil {
		return enrollment.Grant{}, err
	}
	if err := proven(request.SigningKey); err != nil {
		return enrollment.Grant{}, err
	}
	key := ed25519.PublicKey(request.SigningKey)
	record, err := s.records.Get(ctx, request.Node)
	switch {
	case err == nil && record.SigningKey.Equal(key):
		return s.grant(ctx, record)
	case err == nil:
		return s.joinAnew(ctx, request, &record)
	case noderecord.Unknown(err):
		return s.joinAnew(ctx, request, nil)
	}
	return enrollment.Grant{}, err
}

// joinAnew takes a key in, by its token. former is the record of that name, of another key.
func (s *Server) joinAnew(ctx context.Context, request enrollment.JoinRequest, former *noderecord.Record) (enrollment.Grant, error) {
	tok, err := s.takeToken(ctx, request, former)
	if err != nil {
		return enrollment.Grant{}, err
	}
	id, _, _ := enrollment.SplitToken(request.Token)
	record := noderecord.Record{
		Node: request.Node, SigningKey: request.SigningKey, SealingKey: request.SealingKey, KEM: request.KEM,
		TokenID: id, JoinedAt: s.cfg.Now(),
	}
	if former == nil {
		err = s.records.Create(ctx, record)
		if apierrors.IsAlreadyExists(err) {
			// Someone was faster: the same board's other attempt, or another board.
			record, err = s.records.Get(ctx, request.Node)
			if err == nil && !record.SigningKey.Equal(ed25519.PublicKey(request.SigningKey)) {
				err = takenError(record)
			}
		}
	} else {
		record, err = s.records.Update(ctx, request.Node, func(r *noderecord.Record) error {
			if !tok.replace {
				return takenError(*r)
			}
			r.Replace(request.SigningKey, request.SealingKey, request.KEM, id, s.cfg.Now())
			return nil
		})
	}
	if err != nil {
		return enrollment.Grant{}, err
	}
	s.cfg.Logger.Info("node joined", "node", request.Node, "key", enrollment.Fingerprint(request.SigningKey), "token", id, "replaces", former != nil)
	return s.grant(ctx, record)
}

// takeToken binds the token to the request's key, or says why not.
func (s *Server) takeToken(ctx context.Context, request enrollment.JoinRequest, former *noderecord.Record) (token, error) {
	fingerprint := enrollment.Fingerprint(request.SigningKey)
	for {
		tok, err := findToken(ctx, s.cfg.Client, request.Token)
		if err != nil {
			return token{}, err
		}
		if tok.usedBy != "" && tok.usedBy != fingerprint {
			return token{}, fmt.Errorf("%w: at %s, by the key %.16s; each board needs a line of its own: `coracle token create NODE`",
				enrollment.ErrTokenUsed, tok.usedAt, tok.usedBy)
		}
		if tok.node != request.Node {
			return token{}, fmt.Errorf("%w: it is for %q, this board calls itself %q; make a line with `coracle token create %s`",
				enrollment.ErrTokenNode, tok.node, request.Node, request.Node)
		}
		if now := s.cfg.Now(); tok.usedBy == "" && now.After(tok.expires) {
			return token{}, fmt.Errorf("%w: at %s, and here it is %s; make a new line with `coracle token create %s`",
				enrollment.ErrTokenExpired, tok.expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339), request.Node)
		}
		if former != nil && !tok.replace {
			return token{}, takenError(*former)
		}
		// A replaced key must not come back with its old token.
		if former != nil && tok.usedBy == fingerprint && contains(former.Former, fingerprint) {
			return token{}, fmt.Errorf("%w: %q was taken over by the key %.16s", enrollment.ErrNodeKey, request.Node, enrollment.Fingerprint(former.SigningKey))
		}
		if tok.usedBy == fingerprint {
			return tok, nil
		}
		err = tok.bind(ctx, s.cfg.Client, fingerprint, s.cfg.Now())
		if err == nil {
			return tok, nil
		}
		// On a conflict another request used the token in between: look again who.
		if !apierrors.IsConflict(err) || ctx.Err() != nil {
			return token{}, fmt.Errorf("bind join token: %w", err)
		}
	}
}

// renew grants a certificate to whoever holds the key on record, also after the
// old certificate expired.
func (s *Server) renew(ctx context.Context, body []byte, proven func([]byte) error) (enrollment.Grant, error) {
	request, err := parseRenew(body)
	if err != nil {
		return enrollment.Grant{}, err
	}
	if err := proven(request.SigningKey); err != nil {
		return enrollment.Grant{}, err
	}
	record, err := s.records.Get(ctx, request.Node)
	if noderecord.Unknown(err) {
		return enrollment.Grant{}, fmt.Errorf("%w; it was removed: join again with a line from `coracle token create %s`", err, request.Node)
	}
	if err != nil {
		return enrollment.Grant{}, err
	}
	if !record.SigningKey.Equal(ed25519.PublicKey(request.SigningKey)) {
		return enrollment.Grant{}, fmt.Errorf("%w: %q joined with the key %.16s at %s; this board has to join under another name, or again with `coracle token create --replace %s`",
			enrollment.ErrNodeKey, request.Node, enrollment.Fingerprint(record.SigningKey), record.JoinedAt.UTC().Format(time.RFC3339), request.Node)
	}
	return s.grant(ctx, record)
}

// grant answers with the certificate on record, or a new one when that is past
// two thirds of its life. So asking often costs no writes.
func (s *Server) grant(ctx context.Context, record noderecord.Record) (enrollment.Grant, error) {
	if err := record.Refused(); err != nil {
		return enrollment.Grant{}, err
	}
	if !s.fresh(record) {
		der, err := s.cfg.Authority.IssueNode(record.Node, record.SigningKey)
		if err != nil {
			return enrollment.Grant{}, err
		}
		record, err = s.records.Update(ctx, record.Node, func(r *noderecord.Record) error {
			if !r.SigningKey.Equal(record.SigningKey) {
				return fmt.Errorf("%w: %q, just now", enrollment.ErrNodeKey, r.Node)
			}
			if err := r.Refused(); err != nil {
				return err
			}
			r.Certificate = der
			return nil
		})
		if err != nil {
			return enrollment.Grant{}, err
		}
		s.cfg.Logger.Info("node certificate issued", "node", record.Node)
	}
	cluster := s.cfg.Cluster()
	cluster.ID = s.cfg.Authority.ClusterID()
	cluster.Hub = s.cfg.Hub.Current().Certificate[0]
	g := enrollment.Grant{Node: record.Node, Chain: [][]byte{record.Certificate}, Cluster: cluster}
	if s.cfg.Authority.Settling() {
		// Whoever still knows the former root only follows it to that.
		g.Chain = s.cfg.Authority.Chain(record.Certificate)
	}
	for _, root := range s.cfg.Authority.Roots() {
		g.Roots = append(g.Roots, root.Raw)
	}
	return g, nil
}

func (s *Server) fresh(record noderecord.Record) bool {
	cert, err := x509.ParseCertificate(record.Certificate)
	if err != nil {
		return false
	}
	node, err := s.cfg.Authority.VerifyNode(cert)
	return err == nil && node == record.Node && record.SigningKey.Equal(cert.PublicKey) && s.cfg.Authority.SignedByActive(cert.Raw) &&
		s.cfg.Now().Before(enrollment.RenewAt(cert.NotBefore, cert.NotAfter))
}

func parseJoin(body []byte) (enrollment.JoinRequest, error) {
	var r enrollment.JoinRequest
	if err := decode(body, &r); err != nil {
		return r, err
	}
	if err := enrollment.CheckNodeName(r.Node); err != nil {
		return r, fmt.Errorf("%w: %w", enrollment.ErrBadRequest, err)
	}
	if err := checkSealingKey(r.KEM, r.SealingKey); err != nil {
		return r, fmt.Errorf("%w: sealing key: %w", enrollment.ErrBadRequest, err)
	}
	return r, nil
}

func parseRenew(body []byte) (enrollment.RenewRequest, error) {
	var r enrollment.RenewRequest
	if err := decode(body, &r); err != nil {
		return r, err
	}
	if err := enrollment.CheckNodeName(r.Node); err != nil {
		return r, fmt.Errorf("%w: %w", enrollment.ErrBadRequest, err)
	}
	return r, nil
}

// checkSealingKey refuses a key that no secret could be sealed to.
func checkSealingKey(kem uint16, key []byte) error {
	if want := hpke.DHKEM(ecdh.X25519()); kem != want.ID() {
		return fmt.Errorf("KEM %#04x isn't known here, want %#04x", kem, want.ID())
	}
	public, err := ecdh.X25519().NewPublicKey(key)
	if err != nil {
		return err
	}
	if _, err := hpke.NewDHKEMPublicKey(public); err != nil {
		return errors.New("not an X25519 key")
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
