package boards

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// parseTree reads what [Machine.Record] wrote.
func parseTree(data string) fstest.MapFS {
	root := fstest.MapFS{}
	var file *fstest.MapFile
	var content bytes.Buffer
	flush := func() {
		if file != nil {
			file.Data = append([]byte(nil), content.Bytes()...)
		}
		file = nil
		content.Reset()
	}
	for line := range strings.Lines(data) {
		head, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "-- ")
		head, ok2 := strings.CutSuffix(head, " --")
		if !ok || !ok2 {
			if line == "\\\n" {
				content.Truncate(content.Len() - 1)
				continue
			}
			content.WriteString(unquote(line))
			continue
		}
		flush()
		if link, target, ok := strings.Cut(head, " -> "); ok {
			root[link] = &fstest.MapFile{Mode: fs.ModeSymlink | 0o777, Data: []byte(target)}
			continue
		}
		if dir, ok := strings.CutSuffix(head, "/"); ok {
			root[dir] = &fstest.MapFile{Mode: fs.ModeDir | 0o755}
			continue
		}
		file = &fstest.MapFile{Mode: 0o644}
		root[head] = file
	}
	flush()
	return root
}

func unquote(s string) string {
	for i := strings.Index(s, `\x`); i >= 0 && i+4 <= len(s); {
		n, err := strconv.ParseUint(s[i+2:i+4], 16, 8)
		if err != nil {
			break
		}
		s = s[:i] + string([]byte{byte(n)}) + s[i+4:]
		next := strings.Index(s[i+1:], `\x`)
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return s
}

func load(t testing.TB, board string) fstest.MapFS {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", board+".tree"))
	if err != nil {
		t.Fatal(err)
	}
	return parseTree(string(data))
}

func TestRecordIsReadBack(t *testing.T) {
	for _, name := range boardNames(t) {
		root := load(t, name)
		m := Machine{Root: root, DataDir: "/var/lib/coracle", GOARCH: "arm64"}
		var once, twice bytes.Buffer
		if err := m.Record(&once); err != nil {
			t.Fatal(err)
		}
		m.Root = parseTree(once.String())
		if err := m.Record(&twice); err != nil {
			t.Fatal(err)
		}
		if once.String() != twice.String() {
			t.Errorf("%s: recording a recording differs:\n%s\n----\n%s", name, once.String(), twice.String())
		}
		first, second := Machine{Root: root, DataDir: m.DataDir, GOARCH: "arm64"}.Doctor(), m.Doctor()
		var a, b bytes.Buffer
		_, _ = first.WriteJSON(&a), second.WriteJSON(&b)
		if a.String() != b.String() {
			t.Errorf("%s: the recording says something else:\n%s\n----\n%s", name, a.String(), b.String())
		}
		if strings.Contains(once.String(), "10000000a1b2c3d4") {
			t.Errorf("%s: serial number recorded", name)
		}
	}
}

func boardNames(t testing.TB) (names []string) {
	files, err := filepath.Glob("testdata/*.tree")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".tree"))
	}
	return names
}
