package volumes

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"time"
)

// readToken reads a JWT that this package wrote, and from when to when it is
// good. Nothing is verified: it only decides whether to ask for another one.
func readToken(path string) (token string, issued, expires time.Time, ok bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", time.Time{}, time.Time{}, false
	}
	issued, expires, ok = lifetimeOf(string(raw))
	return string(raw), issued, expires, ok
}

func lifetimeOf(jwt string) (issued, expires time.Time, ok bool) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return time.Time{}, time.Time{}, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, time.Time{}, false
	}
	var claims struct {
		Issued int64 `json:"iat"`
		Expiry int64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil || claims.Issued <= 0 || claims.Expiry <= claims.Issued {
		return time.Time{}, time.Time{}, false
	}
	return time.Unix(claims.Issued, 0), time.Unix(claims.Expiry, 0), true
}
