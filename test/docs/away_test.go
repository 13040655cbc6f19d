package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tests reads the tests of one folder: their functions, and the string literals
// beside them, among which are the names of their parts.
func tests(t *testing.T, folder string) (functions, literals []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, folder, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests in %s: %v", folder, err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`).FindAllStringSubmatch(string(raw), -1) {
			functions = append(functions, m[1])
		}
		for _, m := range regexp.MustCompile(`"([^"\\\n]+)"`).FindAllStringSubmatch(string(raw), -1) {
			literals = append(literals, m[1])
		}
	}
	return functions, literals
}

// rowsAreShown checks that every row of a page's table of five columns names tests
// that are there, and returns the names.
func rowsAreShown(t *testing.T, page string, least int) map[string]bool {
	t.Helper()
	rows, shown := 0, map[string]bool{}
	for line := range strings.Lines(read(t, page)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 3 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[1]) == "What happens" {
			continue
		}
		if rows++; len(cells) != 7 {
			t.Errorf("%d cells, want 5: %s", len(cells)-2, line)
			continue
		}
		for _, cell := range cells[1:6] {
			if strings.TrimSpace(cell) == "" {
				t.Errorf("a cell is empty: %s", line)
			}
		}
		names := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[5], -1)
		if rest := regexp.MustCompile("`[^`]+`").ReplaceAllString(cells[5], ""); len(names) == 0 || strings.TrimSpace(rest) != "" {
			t.Errorf("want names of tests and nothing else in the last cell: %s", line)
		}
		for _, m := range names {
			folder, test, ok := strings.Cut(m[1], ".")
			if !ok {
				t.Errorf("%s: want folder.Test", m[1])
				continue
			}
			function, part, hasPart := strings.Cut(test, "/")
			functions, literals := tests(t, folder)
			if !slices.Contains(functions, function) {
				t.Errorf("%s: no test %s in %s", strings.TrimSpace(cells[1]), function, folder)
			}
			if hasPart && !slices.Contains(literals, part) {
				t.Errorf("%s: %s in %s has no part %q", strings.TrimSpace(cells[1]), function, folder, part)
			}
			shown[m[1]] = true
		}
	}
	if rows < least {
		t.Fatalf("only %d rows", rows)
	}
	return shown
}

// Every row of docs/failures.md is shown by a test that is there.
func TestEveryRowOfFailuresIsShown(t *testing.T) {
	rowsAreShown(t, "docs/failures.md", 15)
}

// Every row of docs/away.md is shown by a test that is there, and every row of
// TestAway is in it.
func TestEveryRowOfAwayIsShown(t *testing.T) {
	shown := rowsAreShown(t, "docs/away.md", 20)
	parts := regexp.MustCompile(`(?m)^\t+(?:\}, \{\n\t+|return \[\]away\{\{\n\t+)name: "([^"]+)"`).FindAllStringSubmatch(read(t, "test/e2e/awayrows_test.go"), -1)
	if len(parts) < 10 {
		t.Fatalf("found only %d rows of TestAway", len(parts))
	}
	for _, m := range parts {
		if name := "test/e2e.TestAway/" + m[1]; !shown[name] {
			t.Errorf("docs/away.md has no row for %s", name)
		}
	}
}
