package nodetoken

import (
	"context"
	"errors"
	"sync/atomic"

	"k8s.io/apiserver/pkg/authentication/authenticator"

	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
)

// ErrNotStarted is returned when nodes can't be told from strangers yet.
var ErrNotStarted = errors.New("node records can't be read yet; try again in a moment")

// Deferred is a token authenticator, and Records for Guard, that can be given to
// an API server before there is a client to read records with. Until Start it
// leaves tokens to others and admits no node.
type Deferred struct {
	started atomic.Pointer[started]
}

type started struct {
	tokens  authenticator.Token
	records Records
}

// Start makes it work.
func (d *Deferred) Start(cfg Config) error {
	tokens, err := New(cfg)
	if err != nil {
		return err
	}
	d.started.Store(&started{tokens: tokens, records: cfg.Records})
	return nil
}

// AuthenticateToken implements authenticator.Token.
func (d *Deferred) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	if s := d.started.Load(); s != nil {
		return s.tokens.AuthenticateToken(ctx, token)
	}
	return nil, false, nil
}

// Admitted implements Records.
func (d *Deferred) Admitted(ctx context.Context, node string) (noderecord.Record, error) {
	if s := d.started.Load(); s != nil {
		return s.records.Admitted(ctx, node)
	}
	return noderecord.Record{}, ErrNotStarted
}
