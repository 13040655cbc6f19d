package join

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
)

const (
	// TokenSecretType is the type of the Secrets that stand for join tokens.
	TokenSecretType corev1.SecretType = "coracle.dev/join-token"
	// DefaultTokenLife is that of `coracle token create`.
	DefaultTokenLife = time.Hour
	// MaxTokenLife is a week: a token is for a board that someone is setting up now.
	MaxTokenLife = 7 * 24 * time.Hour

	tokenPrefix = "join-token-"
	// keepExpired is how long an expired token is kept to be recognised as such.
	keepExpired = 7 * 24 * time.Hour
	// endpointMap tells token creators what a join line says.
	endpointMap = "coracle-fleet-endpoint"
)

// Keys in a token's Secret.
const (
	keyHash    = "hash"       // hex sha256 of the secret half
	keyNode    = "node"       // the one name it is for
	keyExpires = "expires-at" // RFC 3339
	keyReplace = "replace"    // "true": the name may be taken from another key
	keyUsedBy  = "used-by"    // fingerprint of the first key that used it
	keyUsedAt  = "used-at"
)

// ErrNoEndpoint is returned when the cluster hasn't published where its fleet endpoint is.
var ErrNoEndpoint = errors.New("the cluster's fleet endpoint isn't known")

// TokenOptions say what a token is for.
type TokenOptions struct {
	// Node is the name of the one node that may join with it.
	Node string
	// Life is DefaultTokenLife if zero.
	Life time.Duration
	// Replace lets a board take over the name of a node that exists, as when an SD
	// card was written anew. The former board's key is worth nothing afterwards.
	Replace bool
	// URLs and CAHash of the fleet endpoint; empty means what the cluster published.
	URLs   []string
	CAHash string
	// Wait is how long to wait for the cluster to publish its endpoint: it answers
	// a moment before it does.
	Wait time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// CreateToken makes a token and returns the line to run on the board. The line
// is the only place where the token's secret is: the cluster stores its hash.
func CreateToken(ctx context.Context, client kubernetes.Interface, opts TokenOptions) (enrollment.Line, error) {
	var line enrollment.Line
	if err := enrollment.CheckNodeName(opts.Node); err != nil {
		return line, err
	}
	if opts.Life == 0 {
		opts.Life = DefaultTokenLife
	}
	if opts.Life < 0 || opts.Life > MaxTokenLife {
		return line, fmt.Errorf("token for node %q: its life is %s; at most %s", opts.Node, opts.Life, MaxTokenLife)
	}
	now := time.Now
	if opts.Now != nil {
		now = opts.Now
	}
	if len(opts.URLs) == 0 || opts.CAHash == "" {
		urls, hash, err := awaitEndpoint(ctx, client, opts.Wait)
		if err != nil {
			return line, err
		}
		if len(opts.URLs) == 0 {
			opts.URLs = urls
		}
		if opts.CAHash == "" {
			opts.CAHash = hash
		}
	}
	if !opts.Replace {
		r, err := noderecord.Store{Client: client}.Get(ctx, opts.Node)
		if err == nil {
			return line, takenError(r)
		}
		if !noderecord.Unknown(err) {
			return line, err
		}
	}
	id, secret := randomText(5), randomText(20)
	line = enrollment.Line{URLs: opts.URLs, CAHash: opts.CAHash, Token: id + "." + secret, Node: opts.Node}
	if err := line.Check(); err != nil {
		return enrollment.Line{}, err
	}
	if err := ensureNamespace(ctx, client); err != nil {
		return enrollment.Line{}, err
	}
	object := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: tokenPrefix + id, Namespace: noderecord.Namespace, Labels: map[string]string{noderecord.NodeLabel: opts.Node},
		},
		Type: TokenSecretType,
		Data: map[string][]byte{
			keyHash: []byte(hashSecret(secret)), keyNode: []byte(opts.Node),
			keyExpires: []byte(now().Add(opts.Life).UTC().Format(time.RFC3339)),
		},
	}
	if opts.Replace {
		object.Data[keyReplace] = []byte("true")
	}
	if _, err := client.CoreV1().Secrets(noderecord.Namespace).Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return enrollment.Line{}, fmt.Errorf("token for node %q: %w", opts.Node, err)
	}
	return line, nil
}

func takenError(r noderecord.Record) error {
	state := "joined " + r.JoinedAt.UTC().Format(time.RFC3339)
	for _, since := range []struct {
		what string
		at   time.Time
	}{{"revoked", r.RevokedAt}, {"cloned", r.ClonedAt}, {"removed", r.RemovedAt}} {
		if !since.at.IsZero() {
			state += ", " + since.what + " " + since.at.UTC().Format(time.RFC3339)
		}
	}
	return fmt.Errorf("%w: node %q (%s) has the key %.16s; choose another name, or, if this board replaces that one, make a line with `coracle token create --replace %s`; `coracle node list` shows all",
		enrollment.ErrNodeTaken, r.Node, state, enrollment.Fingerprint(r.SigningKey), r.Node)
}

// token is a token's Secret, read.
type token struct {
	secret  *corev1.Secret
	node    string
	expires time.Time
	usedBy  string
	usedAt  string
	replace bool
}

// findToken returns ErrTokenUnknown, always with the same text, unless id and secret are right.
func findToken(ctx context.Context, client kubernetes.Interface, text string) (token, error) {
	unknown := fmt.Errorf("%w: it was mistyped, deleted, or expired long ago; make a new line with `coracle token create NODE`", enrollment.ErrTokenUnknown)
	id, secret, ok := enrollment.SplitToken(text)
	if !ok {
		return token{}, unknown
	}
	object, err := client.CoreV1().Secrets(noderecord.Namespace).Get(ctx, tokenPrefix+id, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return token{}, unknown
	}
	if err != nil {
		return token{}, fmt.Errorf("join token %s: %w", id, err)
	}
	if object.Type != TokenSecretType || subtle.ConstantTimeCompare(object.Data[keyHash], []byte(hashSecret(secret))) != 1 {
		return token{}, unknown
	}
	t := token{
		secret: object, node: string(object.Data[keyNode]), usedBy: string(object.Data[keyUsedBy]),
		usedAt: string(object.Data[keyUsedAt]), replace: string(object.Data[keyReplace]) == "true",
	}
	if t.expires, err = time.Parse(time.RFC3339, string(object.Data[keyExpires])); err != nil {
		return token{}, fmt.Errorf("join token %s: Secret %s/%s: %s isn't a time; delete it and make a new one", id, object.Namespace, object.Name, keyExpires)
	}
	return t, nil
}

// bind makes the token key's own. Of two keys at the same moment one gets
// ErrTokenUsed, because the API refuses the second write of one version.
func (t token) bind(ctx context.Context, client kubernetes.Interface, fingerprint string, now time.Time) error {
	object := t.secret.DeepCopy()
	object.Data[keyUsedBy] = []byte(fingerprint)
	object.Data[keyUsedAt] = []byte(now.UTC().Format(time.RFC3339))
	_, err := client.CoreV1().Secrets(noderecord.Namespace).Update(ctx, object, metav1.UpdateOptions{})
	return err
}

// pruneTokens deletes tokens that expired long ago.
func pruneTokens(ctx context.Context, client kubernetes.Interface, now time.Time) error {
	list, err := client.CoreV1().Secrets(noderecord.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(TokenSecretType)})
	if err != nil {
		return fmt.Errorf("list join tokens: %w", err)
	}
	var errs []error
	for _, object := range list.Items {
		expires, err := time.Parse(time.RFC3339, string(object.Data[keyExpires]))
		if object.Type != TokenSecretType || err != nil || now.Before(expires.Add(keepExpired)) {
			continue
		}
		err = client.CoreV1().Secrets(object.Namespace).Delete(ctx, object.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &object.UID, ResourceVersion: &object.ResourceVersion},
		})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// awaitEndpoint is publishedEndpoint, asked again for a while.
func awaitEndpoint(ctx context.Context, client kubernetes.Interface, wait time.Duration) (urls []string, caHash string, err error) {
	for end := time.Now().Add(wait); ; {
		urls, caHash, err = publishedEndpoint(ctx, client)
		if err == nil || !apierrors.IsNotFound(err) || !time.Now().Before(end) {
			return urls, caHash, err
		}
		select {
		case <-ctx.Done():
			return nil, "", err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func publishedEndpoint(ctx context.Context, client kubernetes.Interface) (urls []string, caHash string, err error) {
	m, err := client.CoreV1().ConfigMaps(noderecord.Namespace).Get(ctx, endpointMap, metav1.GetOptions{})
	if err != nil {
		return nil, "", fmt.Errorf("%w: ConfigMap %s/%s: %w; the control plane writes it when it starts", ErrNoEndpoint, noderecord.Namespace, endpointMap, err)
	}
	if err := json.Unmarshal([]byte(m.Data["urls"]), &urls); err != nil {
		return nil, "", fmt.Errorf("%w: ConfigMap %s/%s: urls: %w; delete it and restart the control plane", ErrNoEndpoint, noderecord.Namespace, endpointMap, err)
	}
	return urls, m.Data["ca-hash"], nil
}

func ensureNamespace(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.CoreV1().Namespaces().Get(ctx, noderecord.Namespace, metav1.GetOptions{})
	if err == nil {
		return nil
	}
	if apierrors.IsNotFound(err) {
		_, err = client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: noderecord.Namespace}}, metav1.CreateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("namespace %s: %w", noderecord.Namespace, err)
	}
	return nil
}

// hashSecret needs no salt and no slow hash: the secret is 160 random bits.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// randomText is n random bytes as lower case letters and digits.
func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails, says its documentation
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}
