package enrollment

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// NodeIssuerPrefix precedes a node's name in the issuer of the pod tokens it
// signs. It is a URN, so it can never be the cluster's own issuer, a URL.
const NodeIssuerPrefix = "urn:coracle:node:"

// maxPodToken bounds what ParsePodToken looks at; real ones have some 700 bytes.
const maxPodToken = 8192

var (
	// ErrNotPodToken is returned when a text isn't a token that a node issued. Another authenticator may know it.
	ErrNotPodToken = errors.New("not a pod token of a node")
	// ErrPodToken is returned when a node's token is malformed or its signature wrong.
	ErrPodToken = errors.New("bad pod token")
)

// PodClaims are the claims of upstream's bound service account tokens.
type PodClaims struct {
	Issuer     string           `json:"iss"`
	Subject    string           `json:"sub"`
	Audience   []string         `json:"aud"`
	Expiry     int64            `json:"exp"` // seconds since 1970, as the next two
	NotBefore  int64            `json:"nbf"`
	IssuedAt   int64            `json:"iat"`
	ID         string           `json:"jti"`
	Kubernetes KubernetesClaims `json:"kubernetes.io"`
}

// KubernetesClaims say what a token is bound to.
type KubernetesClaims struct {
	Namespace      string    `json:"namespace"`
	Node           ObjectRef `json:"node"`
	Pod            ObjectRef `json:"pod"`
	ServiceAccount ObjectRef `json:"serviceaccount"`
}

// ObjectRef names an object. A node may not know the UID of a service account; then it is empty.
type ObjectRef struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

type podTokenHeader struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ,omitempty"`
}

// SignPodToken makes a JWT (RFC 7519, EdDSA of RFC 8037) of c.
func SignPodToken(c PodClaims, key ed25519.PrivateKey) (string, error) {
	header, err := json.Marshal(podTokenHeader{Algorithm: "EdDSA", KeyID: Fingerprint(key.Public().(ed25519.PublicKey))})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding
	text := b64.EncodeToString(header) + "." + b64.EncodeToString(body)
	return text + "." + b64.EncodeToString(ed25519.Sign(key, []byte(text))), nil
}

// ParsePodToken returns the claims and a function that checks their signature;
// nothing of the claims may be believed before it returned nil, except that the
// node named in their issuer is the one whose key to ask for.
func ParsePodToken(token string) (node string, c PodClaims, verify func(ed25519.PublicKey) error, err error) {
	if len(token) > maxPodToken {
		return "", c, nil, fmt.Errorf("%w: %d bytes", ErrNotPodToken, len(token))
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 || strings.ContainsAny(token, "\r\n") {
		return "", c, nil, ErrNotPodToken
	}
	// Strict: one token has one spelling.
	b64 := base64.RawURLEncoding.Strict()
	var header podTokenHeader
	if raw, err := b64.DecodeString(parts[0]); err != nil || json.Unmarshal(raw, &header) != nil || header.Algorithm != "EdDSA" {
		return "", c, nil, ErrNotPodToken
	}
	body, err := b64.DecodeString(parts[1])
	if err != nil {
		return "", c, nil, ErrNotPodToken
	}
	var issuer struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(body, &issuer) != nil {
		return "", c, nil, ErrNotPodToken
	}
	node, ok := strings.CutPrefix(issuer.Issuer, NodeIssuerPrefix)
	if !ok {
		return "", c, nil, ErrNotPodToken
	}
	if err := CheckNodeName(node); err != nil {
		return "", c, nil, fmt.Errorf("%w: issuer: %w", ErrPodToken, err)
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return "", c, nil, fmt.Errorf("%w: claims: %w", ErrPodToken, err)
	}
	signature, err := b64.DecodeString(parts[2])
	if err != nil {
		return "", c, nil, fmt.Errorf("%w: signature: %w", ErrPodToken, err)
	}
	signed := []byte(token[:len(parts[0])+1+len(parts[1])])
	return node, c, func(key ed25519.PublicKey) error {
		if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, signed, signature) {
			return fmt.Errorf("%w: it wasn't signed by node %q", ErrPodToken, node)
		}
		return nil
	}, nil
}
