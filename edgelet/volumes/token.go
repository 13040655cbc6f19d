package volumes

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"time"
)

// readToken reads a JWT that this package wrote, and when it expires. Nothing
// is verified: it only decides whether to ask for another one.
func readToken(path string) (token string, expires time.Time, ok bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", time.Time{}, false
	}
	expires, ok = expiry(string(raw))
	return string(raw), expires, ok
}

func expiry(jwt string) (time.Time, bool) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return time.Time{}, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, false
	}
	var claims struct {
		Expiry int64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil || claims.Expiry <= 0 {
		return time.Time{}, false
	}
	return time.Unix(claims.Expiry, 0), true
}
