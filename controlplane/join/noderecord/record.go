package noderecord

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

const (
	// Namespace of records and join tokens.
	Namespace = "coracle-system"
	// SecretType of a record.
	SecretType corev1.SecretType = "coracle.dev/node"
	// NodeLabel names the node that a Secret is about.
	NodeLabel = "coracle.dev/node"

	namePrefix = "node-"
)

// Keys in the Secret's data. Times are RFC 3339.
const (
	keySigning     = "signing-key"
	keySealing     = "sealing-key"
	keyKEM         = "kem"
	keyCertificate = "certificate"
	keyJoined      = "joined-at"
	keyToken       = "token-id"
	keyRevoked     = "revoked-at"
	keyReason      = "revoked-because"
	keyFormer      = "former-keys"
	keyCloned      = "cloned-at"
	keyBetween     = "cloned-between"
	keyNodeUID     = "node-uid"
	keyRemoved     = "removed-at"
)

// ErrDamaged is returned when a Secret of the type isn't a record.
var ErrDamaged = errors.New("node record is damaged")

// Record of a node.
type Record struct {
	Node       string
	SigningKey ed25519.PublicKey
	SealingKey []byte // HPKE public key, as its KEM serialises it
	KEM        uint16
	// Certificate last granted, DER.
	Certificate []byte
	JoinedAt    time.Time
	// TokenID is the id of the token that the key joined with.
	TokenID string
	// RevokedAt is zero unless the identity was ended.
	RevokedAt     time.Time
	RevokedReason string
	// ClonedAt is zero unless two boards were seen with this identity; ClonedBetween names them.
	ClonedAt      time.Time
	ClonedBetween string
	// NodeUID is that of the Node object that stands for the node, empty if none was
	// registered since it joined or was readmitted. By it a Node that was deleted is
	// told from one that never was.
	NodeUID string
	// RemovedAt is zero unless that Node object was deleted.
	RemovedAt time.Time
	// Former are the fingerprints of keys that had this name before.
	Former []string

	resourceVersion string
}

// Revoked, Cloned and Removed say whether the identity was ended, whether two
// boards have it, and whether the Node object was deleted.
func (r Record) Revoked() bool { return !r.RevokedAt.IsZero() }
func (r Record) Cloned() bool  { return !r.ClonedAt.IsZero() }
func (r Record) Removed() bool { return !r.RemovedAt.IsZero() }

// Refused is enrollment.ErrRevoked or ErrCloned with what to do, or nil: then the
// identity holds.
func (r Record) Refused() error {
	switch {
	case r.Revoked():
		because := ""
		if r.RevokedReason != "" {
			because = " (" + r.RevokedReason + ")"
		}
		return fmt.Errorf("%w: node %q at %s%s; the cluster's administrator may run `coracle node readmit %s`",
			enrollment.ErrRevoked, r.Node, stamp(r.RevokedAt), because, r.Node)
	case r.Cloned():
		return fmt.Errorf("%w: node %q, seen at %s: %s; run `edgelet reset` on the board that is the copy, then `coracle node readmit %s` for the other one",
			enrollment.ErrCloned, r.Node, stamp(r.ClonedAt), r.ClonedBetween, r.Node)
	}
	return nil
}

// Standing is Refused, or enrollment.ErrRemoved with what to do, or nil: then the
// node is one of the cluster's.
func (r Record) Standing() error {
	if err := r.Refused(); err != nil {
		return err
	}
	if r.Removed() {
		return fmt.Errorf("%w: the Node %q was deleted, noticed at %s; its pods are stopped and it stays out until `coracle node readmit %s`",
			enrollment.ErrRemoved, r.Node, stamp(r.RemovedAt), r.Node)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// SecretName of the record of a node.
func SecretName(node string) string { return namePrefix + node }

// Store reads and writes records through the API.
type Store struct {
	Client kubernetes.Interface
}

// Get returns enrollment.ErrNodeUnknown if there is no record of node.
func (s Store) Get(ctx context.Context, node string) (Record, error) {
	secret, err := s.Client.CoreV1().Secrets(Namespace).Get(ctx, SecretName(node), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Record{}, fmt.Errorf("%w: %q", enrollment.ErrNodeUnknown, node)
	}
	if err != nil {
		return Record{}, fmt.Errorf("record of node %q: %w", node, err)
	}
	return Parse(secret)
}

// List returns all records that can be read, by name; the error names the others.
func (s Store) List(ctx context.Context) ([]Record, error) {
	list, err := s.Client.CoreV1().Secrets(Namespace).List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(SecretType)})
	if err != nil {
		return nil, fmt.Errorf("node records: %w", err)
	}
	var out []Record
	var errs []error
	for i := range list.Items {
		if list.Items[i].Type != SecretType {
			continue
		}
		r, err := Parse(&list.Items[i])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Record) int { return strings.Compare(a.Node, b.Node) })
	return out, errors.Join(errs...)
}

// Create fails with an AlreadyExists of the API if there is a record of the node.
func (s Store) Create(ctx context.Context, r Record) error {
	_, err := s.Client.CoreV1().Secrets(Namespace).Create(ctx, r.secret(), metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("record of node %q: %w", r.Node, err)
	}
	return nil
}

// Update changes the record as it is now by change, again if someone else was
// faster. If change returns an error, that is returned and nothing written; nor
// is anything written if it changes nothing.
func (s Store) Update(ctx context.Context, node string, change func(*Record) error) (Record, error) {
	var r Record
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		var err error
		if r, err = s.Get(ctx, node); err != nil {
			return err
		}
		before := r.secret()
		if err := change(&r); err != nil {
			return err
		}
		if after := r.secret(); reflect.DeepEqual(before.Data, after.Data) {
			return nil
		}
		_, err = s.Client.CoreV1().Secrets(Namespace).Update(ctx, r.secret(), metav1.UpdateOptions{})
		return err
	})
	return r, err
}

// Revoke ends a node's identity: from now on neither its certificate nor its key counts.
func (s Store) Revoke(ctx context.Context, node, reason string, at time.Time) error {
	_, err := s.Update(ctx, node, func(r *Record) error {
		if !r.Revoked() {
			r.RevokedAt, r.RevokedReason = at, reason
		}
		return nil
	})
	return err
}

// Readmit takes back whatever keeps a node out, and returns what that was; nil if
// nothing did.
func (s Store) Readmit(ctx context.Context, node string) (was error, err error) {
	_, err = s.Update(ctx, node, func(r *Record) error {
		if was = r.Standing(); was != nil {
			r.readmit()
		}
		return nil
	})
	return was, err
}

// Registered notes the Node object that stands for a node from now on.
func (s Store) Registered(ctx context.Context, node, uid string) error {
	_, err := s.Update(ctx, node, func(r *Record) error {
		if r.NodeUID != uid && !r.Removed() {
			r.NodeUID = uid
		}
		return nil
	})
	return err
}

// Remove keeps a node out whose Node object, the one of this UID, was deleted. A
// node that was readmitted meanwhile is left alone.
func (s Store) Remove(ctx context.Context, node, uid string, at time.Time) error {
	_, err := s.Update(ctx, node, func(r *Record) error {
		if r.NodeUID == uid && !r.Removed() {
			r.RemovedAt, r.NodeUID = at, ""
		}
		return nil
	})
	return err
}

// Clone refuses an identity that two boards have; between names them. One whose
// key was replaced meanwhile is left alone: the fingerprint is that of the key
// which both have.
func (s Store) Clone(ctx context.Context, node, fingerprint, between string, at time.Time) error {
	_, err := s.Update(ctx, node, func(r *Record) error {
		if !r.Cloned() && enrollment.Fingerprint(r.SigningKey) == fingerprint {
			r.ClonedAt, r.ClonedBetween = at, between
		}
		return nil
	})
	return err
}

// Parse reads a record. It returns ErrDamaged if the Secret isn't one.
func Parse(secret *corev1.Secret) (Record, error) {
	node, ok := strings.CutPrefix(secret.Name, namePrefix)
	bad := func(what string) (Record, error) {
		return Record{}, fmt.Errorf("%w: Secret %s/%s: %s; delete it and let the node join again with a line from `coracle token create %s`",
			ErrDamaged, secret.Namespace, secret.Name, what, node)
	}
	if !ok || secret.Type != SecretType || enrollment.CheckNodeName(node) != nil {
		return bad("it isn't a record of a node, of type " + string(SecretType))
	}
	if len(secret.Data[keySigning]) != ed25519.PublicKeySize {
		return bad(fmt.Sprintf("%s has %d bytes, want %d", keySigning, len(secret.Data[keySigning]), ed25519.PublicKeySize))
	}
	r := Record{
		Node: node, SigningKey: secret.Data[keySigning], SealingKey: secret.Data[keySealing], Certificate: secret.Data[keyCertificate],
		TokenID: string(secret.Data[keyToken]), RevokedReason: string(secret.Data[keyReason]),
		ClonedBetween: string(secret.Data[keyBetween]), NodeUID: string(secret.Data[keyNodeUID]),
		Former: strings.Fields(string(secret.Data[keyFormer])), resourceVersion: secret.ResourceVersion,
	}
	if _, err := fmt.Sscanf(string(secret.Data[keyKEM]), "%d", &r.KEM); err != nil {
		return bad(keyKEM + " isn't a number")
	}
	for key, to := range map[string]*time.Time{keyJoined: &r.JoinedAt, keyRevoked: &r.RevokedAt, keyCloned: &r.ClonedAt, keyRemoved: &r.RemovedAt} {
		text := string(secret.Data[key])
		if text == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			// A revocation that can't be read must not count as none.
			return bad(key + " isn't a time")
		}
		*to = t
	}
	return r, nil
}

// Replace gives the name to another key, as when a board died and its successor joins.
func (r *Record) Replace(signing ed25519.PublicKey, sealing []byte, kem uint16, tokenID string, at time.Time) {
	const keep = 16
	r.Former = append(r.Former, enrollment.Fingerprint(r.SigningKey))
	r.Former = slices.Clone(r.Former[max(0, len(r.Former)-keep):])
	r.SigningKey, r.SealingKey, r.KEM, r.TokenID, r.JoinedAt = signing, sealing, kem, tokenID, at
	r.Certificate = nil
	r.readmit()
}

// readmit: a node that was removed registers anew.
func (r *Record) readmit() {
	r.RevokedAt, r.RevokedReason = time.Time{}, ""
	r.ClonedAt, r.ClonedBetween = time.Time{}, ""
	r.RemovedAt = time.Time{}
}

func (r Record) secret() *corev1.Secret {
	data := map[string][]byte{
		keySigning: r.SigningKey, keySealing: r.SealingKey, keyKEM: fmt.Append(nil, r.KEM),
		keyJoined: []byte(r.JoinedAt.UTC().Format(time.RFC3339)), keyToken: []byte(r.TokenID),
	}
	if r.Certificate != nil {
		data[keyCertificate] = r.Certificate
	}
	if len(r.Former) > 0 {
		data[keyFormer] = []byte(strings.Join(r.Former, "\n"))
	}
	if r.Revoked() {
		data[keyRevoked] = []byte(r.RevokedAt.UTC().Format(time.RFC3339))
		data[keyReason] = []byte(r.RevokedReason)
	}
	if r.Cloned() {
		data[keyCloned] = []byte(stamp(r.ClonedAt))
		data[keyBetween] = []byte(r.ClonedBetween)
	}
	if r.Removed() {
		data[keyRemoved] = []byte(stamp(r.RemovedAt))
	}
	if r.NodeUID != "" {
		data[keyNodeUID] = []byte(r.NodeUID)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: SecretName(r.Node), Namespace: Namespace, ResourceVersion: r.resourceVersion,
			Labels: map[string]string{NodeLabel: r.Node},
		},
		Type: SecretType,
		Data: data,
	}
}
