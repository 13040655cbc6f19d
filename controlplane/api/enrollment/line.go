package enrollment

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"
)

// linePrefix begins every join line; the digit is the version of its format.
const linePrefix = "coracle1."

// maxLine bounds what ParseLine looks at: a line with eight long URLs has 1 KiB.
const maxLine = 4096

// ErrLine is returned when a text isn't a whole join line.
var ErrLine = errors.New("not a join line")

// Line is what `coracle token create` prints and `edgelet --join` takes: all
// that a board has to know of a cluster to become a node of it. Whoever reads a
// line may join as Node until the token expires or was used.
type Line struct {
	// URLs of the fleet endpoint, tried in turn.
	URLs []string
	// CAHash is the hex sha256 of the root certificate's SubjectPublicKeyInfo. The
	// board trusts the endpoint that shows a root with this hash, and no other.
	CAHash string
	// Token is ID.SECRET.
	Token string
	// Node is the name that the token is for.
	Node string
}

type lineJSON struct {
	URLs   []string `json:"u"`
	CAHash []byte   `json:"c"`
	Token  string   `json:"t"`
	Node   string   `json:"n"`
}

var tokenForm = regexp.MustCompile(`^[a-z0-9]{4,32}\.[a-z0-9]{16,64}$`)

// String is one word that no shell changes: coracle1.BASE64URL, of the JSON and
// its first four bytes of sha256, so that a line cut off in a terminal is
// recognised as such.
func (l Line) String() string {
	hash, _ := hex.DecodeString(l.CAHash)
	// A struct of strings always marshals.
	body, _ := json.Marshal(lineJSON{URLs: l.URLs, CAHash: hash, Token: l.Token, Node: l.Node})
	sum := sha256.Sum256(body)
	return linePrefix + base64.RawURLEncoding.EncodeToString(append(sum[:4], body...))
}

// ParseLine is the inverse of String. White space around the line is ignored.
func ParseLine(text string) (Line, error) {
	text = strings.TrimSpace(text)
	if len(text) > maxLine {
		return Line{}, fmt.Errorf("%w: %d bytes long, at most %d", ErrLine, len(text), maxLine)
	}
	encoded, ok := strings.CutPrefix(text, linePrefix)
	if !ok {
		return Line{}, fmt.Errorf("%w: it has to begin with %q; `coracle token create NODE` prints one", ErrLine, linePrefix)
	}
	const cut = "it is cut off or mistyped; copy the whole word that `coracle token create` printed"
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || len(raw) < 5 {
		return Line{}, fmt.Errorf("%w: %s", ErrLine, cut)
	}
	if sum := sha256.Sum256(raw[4:]); !bytes.Equal(sum[:4], raw[:4]) {
		return Line{}, fmt.Errorf("%w: %s", ErrLine, cut)
	}
	var j lineJSON
	if err := json.Unmarshal(raw[4:], &j); err != nil {
		return Line{}, fmt.Errorf("%w: %v", ErrLine, err)
	}
	l := Line{URLs: j.URLs, CAHash: hex.EncodeToString(j.CAHash), Token: j.Token, Node: j.Node}
	return l, l.Check()
}

// Check returns ErrLine if a field can't be right.
func (l Line) Check() error {
	if len(l.URLs) == 0 || len(l.URLs) > 16 {
		return fmt.Errorf("%w: it names %d addresses, want 1 to 16", ErrLine, len(l.URLs))
	}
	for _, text := range l.URLs {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("%w: address %q isn't https://HOST:PORT", ErrLine, text)
		}
	}
	if len(l.CAHash) != 2*sha256.Size {
		return fmt.Errorf("%w: the CA hash has %d hex digits, want %d", ErrLine, len(l.CAHash), 2*sha256.Size)
	}
	if !tokenForm.MatchString(l.Token) {
		return fmt.Errorf("%w: its token isn't ID.SECRET", ErrLine)
	}
	if err := CheckNodeName(l.Node); err != nil {
		return fmt.Errorf("%w: %w", ErrLine, err)
	}
	return nil
}

// SplitToken returns a token's two halves; ok is false if it can't be a token.
func SplitToken(token string) (id, secret string, ok bool) {
	if !tokenForm.MatchString(token) {
		return "", "", false
	}
	return strings.Cut(token, ".")
}

// ReadAtMost reads r, and fails rather than return a part if there are more than limit bytes.
func ReadAtMost(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return data, nil
}
