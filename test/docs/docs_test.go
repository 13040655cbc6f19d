package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(root + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// section returns what stands below a heading of the second level.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, "\n## "+heading+"\n")
	if !found {
		t.Fatalf("no section %q", heading)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	return rest
}

// direct are the modules that go.mod requires for our own imports, without their major version's suffix.
func direct(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, block := range regexp.MustCompile(`(?ms)^require \((.*?)^\)`).FindAllStringSubmatch(read(t, "go.mod"), -1) {
		for line := range strings.Lines(block[1]) {
			if fields := strings.Fields(line); len(fields) == 2 { // more: // indirect
				all = append(all, regexp.MustCompile(`/v\d+$`).ReplaceAllString(fields[0], ""))
			}
		}
	}
	if len(all) < 20 {
		t.Fatalf("go.mod requires only %v", all)
	}
	return all
}

// A dependency is chosen, not fallen into: RATIONALE.md has a row for each, and none for one that is gone.
func TestEveryDirectDependencyHasItsReason(t *testing.T) {
	var named []string
	for line := range strings.Lines(section(t, read(t, "RATIONALE.md"), "Direct dependencies")) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[1]) == "Module" {
			continue
		}
		if strings.TrimSpace(cells[2]) == "" || strings.TrimSpace(cells[3]) == "" {
			t.Errorf("what it saves or costs is missing: %s", line)
		}
		named = append(named, modules(cells[1])...)
	}
	have := direct(t)
	for i, name := range have {
		have[i] = strings.TrimPrefix(name, "github.com/")
		if !slices.Contains(named, have[i]) {
			t.Errorf("RATIONALE.md doesn't say what %s saves us and what it costs on a board", name)
		}
	}
	for _, name := range named {
		if !slices.Contains(have, name) {
			t.Errorf("RATIONALE.md has a reason for %s, which go.mod doesn't require for us", name)
		}
	}
}

// modules are the names in the first cell of a row: "a.org/x/server, client" with a colon in it is "a.org/x: server, client".
func modules(cell string) []string {
	cell = regexp.MustCompile(`\([^)]*\)`).ReplaceAllString(cell, "")
	base, list, split := strings.Cut(cell, ":")
	if !split {
		base, list = "", cell
	}
	var names []string
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); split {
			name = strings.TrimSpace(base) + "/" + name
		}
		names = append(names, name)
	}
	return names
}

// Whoever follows CONTRIBUTING.md or the architecture's map finds the folders and files that they name.
func TestNamedPathsExist(t *testing.T) {
	tops := regexp.MustCompile(`^(boards|cmd|controlplane|crishim|deploy|docs|edgelet|examples|internal|test|wasmruntime)/`)
	for _, name := range []string{"CONTRIBUTING.md", "docs/architecture.md", "RATIONALE.md"} {
		for _, m := range regexp.MustCompile("`([^`\\s]+)`").FindAllStringSubmatch(read(t, name), -1) {
			path := strings.TrimSuffix(m[1], "/*")
			if i := strings.IndexAny(path, "<*"); i >= 0 { // a placeholder
				path = path[:strings.LastIndex(path[:i], "/")+1]
			}
			if !tops.MatchString(path) {
				continue
			}
			if _, err := os.Stat(root + "/" + path); err != nil {
				t.Errorf("%s names %s: %v", name, m[1], err)
			}
		}
	}
}

// A mark that a generator or a writer was to fill in is no text.
func TestNothingIsLeftToFillIn(t *testing.T) {
	mark := regexp.MustCompile(`@@\w+@@|\bTODO\b|\bTBD\b|\bFIXME\b`)
	texts, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(texts) < 5 {
		t.Fatalf("texts %v, %v", texts, err)
	}
	names := []string{"README.md", "RATIONALE.md", "CONTRIBUTING.md"}
	for _, text := range texts {
		names = append(names, "docs/"+filepath.Base(text))
	}
	for _, name := range names {
		if found := mark.FindString(read(t, name)); found != "" {
			t.Errorf("%s: %s", name, found)
		}
	}
}
