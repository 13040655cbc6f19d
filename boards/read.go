package boards

import (
	"bufio"
	"io/fs"
	"strconv"
	"strings"
)

// tree reads files of a root. What can't be read is absent: half of these files
// exist on half of the boards.
type tree struct{ fs.FS }

// text returns a file's content without surrounding white space and NULs.
func (t tree) text(name string) string {
	b, err := fs.ReadFile(t.FS, name)
	if err != nil {
		return ""
	}
	return strings.Trim(string(b), " \t\r\n\x00")
}

// list returns the strings of a device tree property, which NULs separate.
func (t tree) list(name string) []string {
	s := t.text(name)
	if s == "" {
		return nil
	}
	return strings.Split(s, "\x00")
}

// number returns a decimal or, with 0x, hexadecimal number.
func (t tree) number(name string) (int64, bool) {
	n, err := strconv.ParseInt(t.text(name), 0, 64)
	return n, err == nil
}

func (t tree) exists(name string) bool {
	_, err := fs.Stat(t.FS, name)
	return err == nil
}

func (t tree) glob(pattern string) []string {
	names, _ := fs.Glob(t.FS, pattern) // the patterns are ours and valid
	return names
}

// names returns the entries of a folder.
func (t tree) names(dir string) []string {
	entries, err := fs.ReadDir(t.FS, dir)
	if err != nil {
		return nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// lines calls f for every line of a file until it returns false. Files may be
// large (modules.dep), so they aren't read whole.
func (t tree) lines(name string, f func(line string) bool) bool {
	file, err := t.Open(name)
	if err != nil {
		return false
	}
	defer file.Close()
	s := bufio.NewScanner(file)
	s.Buffer(make([]byte, 0, 4096), 1<<20)
	for s.Scan() {
		if !f(s.Text()) {
			break
		}
	}
	return true
}

func firstOf(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}
