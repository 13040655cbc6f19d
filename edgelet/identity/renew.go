package identity

import (
	"bytes"
	"context"
	"math/rand/v2"
	"time"
)

// wish is to have the control plane's roots, after a while.
type wish struct {
	trust []byte
	after time.Duration
}

// RootsAre tells which roots the control plane has (see enrollment.TrustID). If they
// aren't the node's, Run asks for them within jitter. It doesn't block.
func (id *Identity) RootsAre(trust []byte, jitter time.Duration) {
	if len(trust) == 0 || bytes.Equal(trust, id.TrustID()) {
		return
	}
	select {
	case id.others <- wish{trust, time.Duration(rand.Float64() * float64(jitter))}:
	default: // one is enough: what is granted are the roots as of then
	}
}

// Run renews in time, and when the control plane's roots changed, until ctx ends.
// When the node is away it tries again every minute to hour, and it returns nil
// only when ctx ended.
func (id *Identity) Run(ctx context.Context) error {
	const look = time.Minute // the clock may jump at any time
	wait := look
	timer := time.NewTimer(0)
	defer timer.Stop()
	var wanted []byte // roots to be had; nil: none
	for {
		select {
		case <-ctx.Done():
			return nil
		case w := <-id.others:
			id.opts.Logger.Info("the cluster has other roots than this node trusts: it asks for them", "in", w.after)
			wanted = w.trust
			timer.Reset(w.after)
			continue
		case <-timer.C:
		}
		if id.NeedsRenewal() || wanted != nil {
			if err := id.Renew(ctx); err != nil && ctx.Err() == nil {
				id.opts.Logger.Warn("certificate not renewed", "err", err, "again", wait)
				timer.Reset(wait)
				wait = min(2*wait, time.Hour)
				continue
			}
			if wanted != nil && ctx.Err() == nil {
				id.opts.Logger.Info("the cluster's roots are this node's now", "as told", bytes.Equal(wanted, id.TrustID()))
				wanted = nil
			}
		}
		wait = look
		timer.Reset(look)
	}
}

// Alerts of TLS (RFC 8446, 6.2) by which the other side says that it doesn't take
// our certificate.
const (
	badCertificate         = 42
	unsupportedCertificate = 43
	certificateRevoked     = 44
	certificateExpired     = 45
	certificateUnknown     = 46
	unknownCA              = 48
)

// Expired says whether err means that the other side found our certificate expired.
func Expired(err error) bool {
	number, ok := alert(err)
	return ok && number == certificateExpired
}

// Rejected says whether err means that the other side doesn't take our certificate:
// it is expired, or was signed by a root that isn't trusted any more. A new one may
// be had for the same key.
func Rejected(err error) bool {
	number, ok := alert(err)
	switch number {
	case badCertificate, unsupportedCertificate, certificateRevoked, certificateExpired, certificateUnknown, unknownCA:
		return ok
	}
	return false
}
