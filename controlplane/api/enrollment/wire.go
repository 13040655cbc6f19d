package enrollment

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// Paths of the fleet endpoint.
const (
	JoinPath  = "/v1/join"
	RenewPath = "/v1/renew"
	// TunnelPath is followed by the id of the request; the answer to a GET is 101
	// Switching Protocols to TunnelProtocol, and then a byte stream.
	TunnelPath     = "/v1/tunnel/"
	TunnelProtocol = "coracle-tunnel"
	// RelayPath is followed by a node's name: another control plane asks the one that
	// nodes are connected to for a stream to its API, as of TunnelPath. With the query
	// purpose=dial it is one to its pods.
	RelayPath = "/v1/relay/"
	// ObjectsPath is followed by the hex sha256 of an object.
	ObjectsPath = "/v1/objects/"
	// PodTokenPath is where a node asks for a token that it may not sign itself.
	PodTokenPath = "/v1/podtoken"
)

// Purposes of tunnels: what a node serves on a stream, to the API server only, by
// TLS inside of it.
const (
	// PurposeKubelet is the node's API, that of a kubelet.
	PurposeKubelet = "kubelet"
	// PurposeDial is DialPath and nothing else.
	PurposeDial = "dial"
)

// DialPath of a stream of PurposeDial, with the query address=IP:PORT: the answer
// to a GET is 101 Switching Protocols to TunnelProtocol, and then the bytes of a
// connection to that port of one of the node's own pods.
const DialPath = "/coracle/v1/dial"

// Names by which a node knows the control plane's servers. A node asks for these
// and not for the address it dialed, so that a new address or a port forwarding
// doesn't make a certificate wrong. No node can be called so.
const (
	reservedDomain  = "coracle.internal"
	FleetServerName = "fleet." + reservedDomain
	MQTTServerName  = "mqtt." + reservedDomain
)

// MaxBody bounds requests and answers of /v1/join and /v1/renew, in bytes.
const MaxBody = 64 << 10

// JoinRequest is the body of POST /v1/join, as JSON. The signing key's holder
// proves itself by the header ProofHeader.
type JoinRequest struct {
	Token      string `json:"token"`
	Node       string `json:"node"`
	SigningKey []byte `json:"signingKey"` // Ed25519 public key, 32 bytes
	SealingKey []byte `json:"sealingKey"` // HPKE public key, as its KEM serialises it
	KEM        uint16 `json:"kem"`        // RFC 9180, 7.1; 0x0020 is DHKEM(X25519, HKDF-SHA256)
}

// RenewRequest is the body of POST /v1/renew, as JSON. No client certificate is
// asked for: whoever holds the key of a node's record is that node, also years
// after its certificate expired.
type RenewRequest struct {
	Node       string `json:"node"`
	SigningKey []byte `json:"signingKey"`
}

// PodTokenRequest is the body of POST /v1/podtoken, as JSON: a token of a service
// account for an audience other than the API's, bound to a pod of the node. The
// node shows its certificate; the API decides as it does for a kubelet.
type PodTokenRequest struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	Pod            string `json:"pod"`
	PodUID         string `json:"podUID"`
	Audience       string `json:"audience"`
	Seconds        int64  `json:"seconds,omitempty"` // of its life; 0 leaves it to the API
}

// PodTokenAnswer is the answer to it.
type PodTokenAnswer struct {
	Token string `json:"token"`
	// Expires is when, by the API's clock; Seconds is how long that is from the
	// answer on, for a board whose clock is wrong.
	Expires time.Time `json:"expires"`
	Seconds int64     `json:"seconds"`
}

// Grant is the answer to join and renew.
type Grant struct {
	Node string `json:"node"`
	// Chain is the node's certificate and what leads to a root, DER.
	Chain [][]byte `json:"chain"`
	// Roots are all that the node trusts from now on, DER.
	Roots   [][]byte `json:"roots"`
	Cluster Cluster  `json:"cluster"`
}

// Cluster is what a node has to know of its control plane.
type Cluster struct {
	// ID is the hash of the first root the cluster had.
	ID string `json:"id"`
	// Incarnation changes when etcd is restored from a snapshot; empty if not known yet.
	Incarnation string `json:"incarnation,omitempty"`
	// API, MQTT and Fleet are URLs, in the order in which to try them: https://,
	// mqtts:// and https://.
	API   []string `json:"api,omitempty"`
	MQTT  []string `json:"mqtt,omitempty"`
	Fleet []string `json:"fleet,omitempty"`
	// Audience is the API server's own: whom a pod's token is for unless its
	// volume says otherwise.
	Audience string `json:"audience,omitempty"`
	// Hub is the certificate that orders are signed with, DER; see VerifyHub.
	Hub []byte `json:"hub,omitempty"`
}

// ProofHeader carries base64 of the Ed25519 signature over ProofText.
const ProofHeader = "Coracle-Proof"

// ProofText is what the sender of body signs: bound to this TLS connection by
// its exporter (RFC 9266), so it can neither be replayed nor relayed, and needs no clock.
func ProofText(path string, conn *tls.ConnectionState, body []byte) ([]byte, error) {
	if conn == nil {
		return nil, errors.New("proof: not a TLS connection")
	}
	secret, err := conn.ExportKeyingMaterial("EXPORTER-coracle-enrollment", nil, 32)
	if err != nil {
		return nil, fmt.Errorf("proof: %w", err)
	}
	sum := sha256.Sum256(body)
	text := append([]byte("coracle/1/proof\x00"+path+"\x00"), secret...)
	return append(text, sum[:]...), nil
}

// Fingerprint names a public key in messages and records: hex sha256.
func Fingerprint(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:])
}

// Problem is the body of every answer that isn't 2xx, as JSON.
type Problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	// RetryAfter, if set, is the number of seconds after which the same request may succeed.
	RetryAfter int `json:"retryAfter,omitempty"`
}

var (
	// ErrBadRequest is returned when a request can't be understood.
	ErrBadRequest = errors.New("bad request")
	// ErrProof is returned when the sender didn't show that it holds the key.
	ErrProof = errors.New("the proof of possession is wrong")
	// ErrTokenUnknown is returned when the cluster has no such token.
	ErrTokenUnknown = errors.New("this join token isn't one of the cluster's")
	// ErrTokenUsed is returned when another key was the first to use the token.
	ErrTokenUsed = errors.New("this join token was used by another board")
	// ErrTokenExpired is returned when the token's time is over and no board used it.
	ErrTokenExpired = errors.New("this join token has expired")
	// ErrTokenNode is returned when the token is for another node name.
	ErrTokenNode = errors.New("this join token is for another node")
	// ErrNodeTaken is returned when a node with another key has the name.
	ErrNodeTaken = errors.New("the node name is taken")
	// ErrNodeUnknown is returned when the cluster has no record of the node.
	ErrNodeUnknown = errors.New("the cluster has no such node")
	// ErrNodeKey is returned when the node's record holds another key.
	ErrNodeKey = errors.New("the node has another key now")
	// ErrRevoked is returned when the node's identity was ended.
	ErrRevoked = errors.New("the node's identity was revoked")
	// ErrCloned is returned when two boards were seen with the node's identity.
	ErrCloned = errors.New("two boards use the node's identity")
	// ErrRemoved is returned when the Node object was deleted and the node not readmitted.
	ErrRemoved = errors.New("the node was removed from the cluster")
	// ErrBusy is returned when there were too many requests.
	ErrBusy = errors.New("too many requests")
	// ErrInternal is returned when the control plane couldn't do its part just now.
	ErrInternal = errors.New("the control plane failed")
)

var codes = []struct {
	code   string
	status int
	err    error
}{
	{"BadRequest", 400, ErrBadRequest},
	{"Proof", 401, ErrProof},
	{"TokenUnknown", 401, ErrTokenUnknown},
	{"TokenUsed", 409, ErrTokenUsed},
	{"TokenExpired", 401, ErrTokenExpired},
	{"TokenNode", 403, ErrTokenNode},
	{"NodeTaken", 409, ErrNodeTaken},
	{"NodeUnknown", 404, ErrNodeUnknown},
	{"NodeKey", 409, ErrNodeKey},
	{"Revoked", 403, ErrRevoked},
	{"Cloned", 403, ErrCloned},
	{"Removed", 403, ErrRemoved},
	{"Busy", 429, ErrBusy},
	{"Internal", 503, ErrInternal},
}

// ProblemOf returns the answer to err and its HTTP status. What isn't one of the
// errors above is Internal, and its text stays here.
func ProblemOf(err error) (Problem, int) {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return Problem{Code: c.code, Message: err.Error()}, c.status
		}
	}
	return Problem{Code: "Internal", Message: ErrInternal.Error() + "; its log says why"}, 503
}

// remoteError is an error as the other side told it.
type remoteError struct {
	message string
	err     error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.err }

// Message is the text of the other side that err carries, or err's own.
func Message(err error) string {
	var remote *remoteError
	if errors.As(err, &remote) {
		return remote.message
	}
	return err.Error()
}

// Err is the error p stands for: errors.Is finds the sentinel, the text is the server's.
func (p Problem) Err() error {
	for _, c := range codes {
		if c.code == p.Code {
			return &remoteError{message: p.Message, err: c.err}
		}
	}
	return fmt.Errorf("%w: %s: %s", ErrInternal, p.Code, p.Message)
}

// Temporary says whether the same request may succeed later.
func Temporary(err error) bool { return errors.Is(err, ErrBusy) || errors.Is(err, ErrInternal) }

// Ended says whether err is the cluster's word that this identity counts no more:
// asking again helps only after somebody acted in the cluster.
func Ended(err error) bool {
	return errors.Is(err, ErrRevoked) || errors.Is(err, ErrCloned) || errors.Is(err, ErrNodeKey) || errors.Is(err, ErrNodeUnknown)
}

// RenewAt is when a certificate's holder asks for the next one: after two thirds of its life.
func RenewAt(notBefore, notAfter time.Time) time.Time {
	return notBefore.Add(notAfter.Sub(notBefore) * 2 / 3)
}
