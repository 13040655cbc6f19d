package nodetoken

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/token/jwt"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
)

// leeway is upstream's, for clocks that differ a little.
const leeway = time.Minute

// Records answers who a node in good standing is; noderecord.Directory is one.
type Records interface {
	Admitted(ctx context.Context, node string) (noderecord.Record, error)
}

// Objects is the part of upstream's ServiceAccountTokenGetter that is needed here.
type Objects interface {
	GetServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error)
	GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	GetNode(ctx context.Context, name string) (*corev1.Node, error)
}

// Config of the token authenticator; all but Now is needed.
type Config struct {
	Records Records
	Objects Objects
	// Audiences are the API's own.
	Audiences authenticator.Audiences
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// New returns an authenticator of pod tokens that nodes signed. What isn't such a
// token it leaves to others: (nil, false, nil).
func New(cfg Config) (authenticator.Token, error) {
	if cfg.Records == nil || cfg.Objects == nil || len(cfg.Audiences) == 0 {
		return nil, errors.New("nodetoken: Records, Objects and Audiences are needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return authenticator.TokenFunc((&tokens{cfg}).authenticate), nil
}

type tokens struct{ cfg Config }

func (t *tokens) authenticate(ctx context.Context, text string) (*authenticator.Response, bool, error) {
	node, claims, verify, err := enrollment.ParsePodToken(text)
	if errors.Is(err, enrollment.ErrNotPodToken) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	record, err := t.cfg.Records.Admitted(ctx, node)
	if err != nil {
		return nil, false, fmt.Errorf("pod token of node %q: %w", node, err)
	}
	if err := verify(record.SigningKey); err != nil {
		return nil, false, err
	}
	// From here on it is the node's word.
	audiences, err := t.audiences(ctx, claims.Audience)
	if err != nil {
		return nil, false, fmt.Errorf("pod token of node %q: %w", node, err)
	}
	info, err := t.validate(ctx, node, claims)
	if err != nil {
		return nil, false, fmt.Errorf("pod token of node %q: %w", node, err)
	}
	return &authenticator.Response{User: info.UserInfo(), Audiences: audiences}, true, nil
}

// audiences are those of the token that the API has itself and the request asks for.
func (t *tokens) audiences(ctx context.Context, claimed []string) (authenticator.Audiences, error) {
	audiences := t.cfg.Audiences.Intersect(claimed)
	if wanted, ok := authenticator.AudiencesFrom(ctx); ok {
		audiences = audiences.Intersect(wanted)
	}
	if len(audiences) == 0 {
		return nil, fmt.Errorf("%w: it is for %q; a node signs tokens for %q only", enrollment.ErrPodToken, claimed, t.cfg.Audiences)
	}
	return audiences, nil
}

// validate holds the claims against what is. "Not before" and "issued at" aren't
// looked at: a board whose clock is ahead must not lock its pods out.
func (t *tokens) validate(ctx context.Context, node string, c enrollment.PodClaims) (*serviceaccount.ServiceAccountInfo, error) {
	now := t.cfg.Now()
	if c.Expiry == 0 || now.Add(-leeway).After(time.Unix(c.Expiry, 0)) {
		return nil, errors.New("service account token has expired")
	}
	k := c.Kubernetes
	if c.Subject != serviceaccount.MakeUsername(k.Namespace, k.ServiceAccount.Name) {
		return nil, fmt.Errorf("%w: subject %q isn't service account %s/%s", enrollment.ErrPodToken, c.Subject, k.Namespace, k.ServiceAccount.Name)
	}
	if k.Node.Name != node {
		return nil, fmt.Errorf("%w: it says node %q", enrollment.ErrPodToken, k.Node.Name)
	}
	pod, err := t.cfg.Objects.GetPod(ctx, k.Namespace, k.Pod.Name)
	if err != nil {
		return nil, fmt.Errorf("service account token has been invalidated: pod %s/%s: %w", k.Namespace, k.Pod.Name, err)
	}
	name := pod.Spec.ServiceAccountName
	if name == "" {
		name = "default"
	}
	switch {
	case k.Pod.UID == "" || string(pod.UID) != k.Pod.UID:
		return nil, fmt.Errorf("pod UID (%s) does not match service account pod ref claim (%s)", pod.UID, k.Pod.UID)
	case pod.Spec.NodeName != node:
		return nil, fmt.Errorf("%w: pod %s/%s is bound to node %q", enrollment.ErrPodToken, k.Namespace, k.Pod.Name, pod.Spec.NodeName)
	case name != k.ServiceAccount.Name:
		return nil, fmt.Errorf("%w: pod %s/%s runs as %q, the token says %q", enrollment.ErrPodToken, k.Namespace, k.Pod.Name, name, k.ServiceAccount.Name)
	case pod.DeletionTimestamp != nil && pod.DeletionTimestamp.Time.Before(now.Add(-leeway)):
		return nil, errors.New("service account token has been invalidated")
	}
	account, err := t.cfg.Objects.GetServiceAccount(ctx, k.Namespace, k.ServiceAccount.Name)
	if err != nil {
		return nil, err
	}
	if k.ServiceAccount.UID != "" && k.ServiceAccount.UID != string(account.UID) {
		return nil, fmt.Errorf("service account UID (%s) does not match claim (%s)", account.UID, k.ServiceAccount.UID)
	}
	if account.DeletionTimestamp != nil && account.DeletionTimestamp.Time.Before(now.Add(-leeway)) {
		return nil, fmt.Errorf("service account %s/%s has been deleted", k.Namespace, k.ServiceAccount.Name)
	}
	// Which Node object is this one's, the API knows: a board needn't. One that was
	// deleted has no UID.
	var uid string
	switch object, err := t.cfg.Objects.GetNode(ctx, node); {
	case err == nil:
		uid = string(object.UID)
	case !apierrors.IsNotFound(err):
		return nil, err
	}
	return &serviceaccount.ServiceAccountInfo{
		Namespace: k.Namespace, Name: account.Name, UID: string(account.UID),
		PodName: pod.Name, PodUID: string(pod.UID),
		NodeName: node, NodeUID: uid,
		CredentialID: jwt.CredentialIDForJTI(c.ID),
	}, nil
}
