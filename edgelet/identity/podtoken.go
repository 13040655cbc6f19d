package identity

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// DefaultPodTokenLife is how long a pod token lasts by default. Upstream's are
// renewed hourly but, in effect, extended to a year; since this one ends with its
// pod and needs a board's clock to be right, it begins where upstream ends.
const DefaultPodTokenLife = 365 * 24 * time.Hour

// PodTokenRequest says for whom a token is. UIDs of the node and of the service
// account may be empty if they aren't known: the control plane fills them in.
type PodTokenRequest struct {
	Namespace, PodName, PodUID        string
	ServiceAccount, ServiceAccountUID string
	NodeUID                           string
	// Audience is the API server's own if empty.
	Audience string
	Life     time.Duration
}

// ErrAudience is returned when a token is asked for another audience than the
// API server's own: those are the API server's to give.
var ErrAudience = errors.New("not a token that a node may sign")

// PodToken signs a token for the API's own audience, without the network. The
// control plane accepts it as long as the pod exists and is bound to this node.
func (id *Identity) PodToken(r PodTokenRequest) (token string, expires time.Time, err error) {
	api := id.Cluster().Audience
	if r.Audience == "" {
		r.Audience = api
	}
	if api != "" && r.Audience != api {
		return "", time.Time{}, fmt.Errorf("token of pod %s/%s: %w: it is for %q, and a node signs for %q only", r.Namespace, r.PodName, ErrAudience, r.Audience, api)
	}
	for field, value := range map[string]string{
		"namespace": r.Namespace, "pod": r.PodName, "pod UID": r.PodUID, "service account": r.ServiceAccount, "audience": r.Audience,
	} {
		if value == "" {
			return "", time.Time{}, fmt.Errorf("token of pod %s/%s: the %s is empty", r.Namespace, r.PodName, field)
		}
	}
	if r.Life <= 0 {
		r.Life = DefaultPodTokenLife
	}
	now := id.Now()
	expires = now.Add(r.Life)
	token, err = enrollment.SignPodToken(enrollment.PodClaims{
		Issuer:    enrollment.NodeIssuerPrefix + id.NodeName,
		Subject:   "system:serviceaccount:" + r.Namespace + ":" + r.ServiceAccount,
		Audience:  []string{r.Audience},
		IssuedAt:  now.Unix(),
		NotBefore: now.Unix(),
		Expiry:    expires.Unix(),
		ID:        newUUID(),
		Kubernetes: enrollment.KubernetesClaims{
			Namespace:      r.Namespace,
			Pod:            enrollment.ObjectRef{Name: r.PodName, UID: r.PodUID},
			Node:           enrollment.ObjectRef{Name: id.NodeName, UID: r.NodeUID},
			ServiceAccount: enrollment.ObjectRef{Name: r.ServiceAccount, UID: r.ServiceAccountUID},
		},
	}, id.SigningKey)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("token of pod %s/%s: %w", r.Namespace, r.PodName, err)
	}
	return token, expires, nil
}

// newUUID is version 4 of RFC 9562.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, says its documentation
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
