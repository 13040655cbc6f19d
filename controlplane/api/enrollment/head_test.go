package enrollment

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// endless says the same for ever.
type endless string

func (e endless) Read(p []byte) (int, error) { return copy(p, e), nil }

func TestAnAnswerWithoutAnEnd(t *testing.T) {
	for what, from := range map[string]io.Reader{
		"line":    endless("HTTP/1.1 200"),
		"headers": io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\nX: "), endless("y")),
	} {
		_, _, err := ReadAnswer(from, http.MethodGet)
		if !errors.Is(err, ErrHead) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, _, err := ReadAnswer(strings.NewReader(strings.Repeat("a", 10_000)+"\r\n\r\n"), http.MethodGet)
	if err == nil || len(err.Error()) > 600 {
		t.Errorf("%v", err)
	}
	response, rest, err := ReadAnswer(strings.NewReader("HTTP/1.1 101 X\r\n\r\n"+strings.Repeat("b", 100_000)), http.MethodGet)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(rest); err != nil || len(b) != 100_000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
