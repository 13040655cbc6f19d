package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// parsing are the folders of what a stranger's bytes reach on a board, and on the
// control plane from a board.
var parsing = []string{"edgelet", "crishim", "cmd/edgelet", "wasmruntime", "controlplane/tunnel", "controlplane/poddial", "controlplane/fleethub"}

// decoders are calls that no file makes which parses nothing.
var decoders = regexp.MustCompile(`json\.(Unmarshal|NewDecoder)\(|\.Unmarshal\(|http\.ReadResponse\(|enrollment\.ReadAnswer\(|pem\.Decode\(|x509\.Parse|bufio\.NewScanner\(|\b(LittleEndian|BigEndian|le)\.Uint|binary\.Uvarint\(|yaml\.YAML|fmt\.Sscan|url\.Parse\(`)

// Everything that is parsed is fuzzed: docs/security.md names every file with a
// decoder and every fuzz test, and none that is gone.
func TestEveryParserIsFuzzed(t *testing.T) {
	var files, shown []string
	for line := range strings.Lines(section(t, read(t, "docs/security.md"), "What is parsed")) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 6 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[1]) == "Bytes" {
			continue
		}
		quoted := func(cell string) (out []string) {
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
				out = append(out, m[1])
			}
			return out
		}
		files = append(files, quoted(cells[3])...)
		tests := quoted(cells[4])
		if len(tests) == 0 {
			t.Errorf("no fuzz test: %s", line)
		}
		shown = append(shown, tests...)
	}
	if len(shown) < 60 {
		t.Fatalf("found only %d fuzz tests in docs/security.md", len(shown))
	}
	var has, parse []string
	fuzz := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	for _, folder := range append([]string{"controlplane/api/fleet"}, parsing...) {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
				return err
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			if strings.HasSuffix(name, "_test.go") {
				for _, m := range fuzz.FindAllSubmatch(raw, -1) {
					has = append(has, filepath.Dir(name)+"."+string(m[1]))
				}
			} else if decoders.Match(raw) && slices.Contains(parsing, folder) {
				parse = append(parse, name)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	differ := func(what string, want, have []string) {
		for _, name := range want {
			if !slices.Contains(have, name) {
				t.Errorf("%s: %s", what, name)
			}
		}
	}
	differ("docs/security.md names no fuzz test for what this file parses", parse, files)
	differ("docs/security.md names a file that is gone or parses nothing", files, parse)
	differ("docs/security.md doesn't name the fuzz test", has, shown)
	differ("docs/security.md names a fuzz test that is gone", shown, has)
}
