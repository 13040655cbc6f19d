package pods

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTheEndOfALogAsATerminationMessage(t *testing.T) {
	const at = "2026-11-27T01:57:55.978191537Z stdout "
	for what, c := range map[string]struct{ log, want string }{
		"a line":                     {at + "F DONE\n", "DONE\n"},
		"a line that never ended":    {at + "P DONE\n", "DONE"},
		"a line in pieces":           {at + "P DO\n" + at + "F NE\n", "DONE\n"},
		"two, of which one goes on":  {at + "F one\n" + at + "P two\n", "one\ntwo"},
		"nothing":                    {"", ""},
		"what isn't a line of a log": {"DONE\n", ""},
	} {
		path := filepath.Join(t.TempDir(), "0.log")
		if err := os.WriteFile(path, []byte(c.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastLogLines(path); got != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}
