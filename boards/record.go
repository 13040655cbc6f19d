package boards

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Record writes what a machine was asked for as one text file, to be put into
// testdata: the easiest way to add a board. Serial numbers are replaced by
// zeros, and of large files only what matters is kept.
//
// An entry is a line "-- path --", "-- path -> target --" for a symbolic link,
// or "-- path/ --" for a folder, and then the content, in which \xNN stands for
// a byte that isn't text and a last line "\" for a missing newline.
func (m Machine) Record(w io.Writer) error {
	m = m.defaults()
	rec := recorder{FS: m.Root, data: m.DataDir, seen: map[string]string{}}
	m.Root = rec
	m.Doctor()
	names := make([]string, 0, len(rec.seen))
	for name := range rec.seen {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if _, err := io.WriteString(w, rec.seen[name]); err != nil {
			return err
		}
	}
	return nil
}

// recorder notes what is read through it.
type recorder struct {
	fs.FS
	data string
	seen map[string]string // entry by path
}

func (r recorder) Open(name string) (fs.File, error) {
	r.note(name)
	return r.FS.Open(name)
}

func (r recorder) Stat(name string) (fs.FileInfo, error) {
	r.note(name)
	return fs.Stat(r.FS, name)
}

// ReadDir notes nothing: what matters of a folder is opened afterwards.
func (r recorder) ReadDir(name string) ([]fs.DirEntry, error) { return fs.ReadDir(r.FS, name) }

func (r recorder) ReadLink(name string) (string, error) {
	r.links(name)
	return fs.ReadLink(r.FS, name)
}

func (r recorder) Lstat(name string) (fs.FileInfo, error) { return fs.Lstat(r.FS, name) }

// note records a path under its real name, and the links that lead there.
func (r recorder) note(name string) {
	real := r.links(name)
	if real == "" || r.seen[real] != "" {
		return
	}
	info, err := fs.Stat(r.FS, real)
	switch {
	case err != nil:
	case info.IsDir():
		r.seen[real] = fmt.Sprintf("-- %s/ --\n", real)
	case path.Base(real) == "config.gz":
		// Nobody can read that in a diff; kernel.go looks here next.
		release := tree{r.FS}.text("proc/sys/kernel/osrelease")
		var b strings.Builder
		for key, value := range (tree{r.FS}).config(release) {
			fmt.Fprintf(&b, "%s=%s\n", key, value)
		}
		r.seen[real] = fmt.Sprintf("-- boot/config-%s --\n%s", release, b.String())
	default:
		r.seen[real] = entry(real, r.content(real))
	}
}

// links records the symbolic links on the way to name and returns where they
// lead; "" if that is nowhere.
func (r recorder) links(name string) string {
	for range 20 {
		link, target := r.firstLink(name)
		if link == "" {
			return name
		}
		to := path.Join(path.Dir(link), target)
		if path.IsAbs(target) {
			to = path.Clean(target)[1:]
			up := strings.Repeat("../", strings.Count(link, "/"))
			target = up + to
		}
		r.seen[link] = fmt.Sprintf("-- %s -> %s --\n", link, target)
		name = path.Join(to, strings.TrimPrefix(name, link))
		if !fs.ValidPath(name) {
			return ""
		}
	}
	return ""
}

func (r recorder) firstLink(name string) (link, target string) {
	parts := strings.Split(name, "/")
	for i := range parts {
		p := strings.Join(parts[:i+1], "/")
		if p == "proc/self" || strings.HasPrefix(p, "proc/self/ns/") {
			continue // leads to a process, and names no file
		}
		if info, err := fs.Lstat(r.FS, p); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			if target, err := fs.ReadLink(r.FS, p); err == nil {
				return p, target
			}
		}
	}
	return "", ""
}

var serialLine = regexp.MustCompile(`(?m)^(Serial\s*:\s*)\S+`)

func (r recorder) content(name string) string {
	var b strings.Builder
	keep := r.keepLine(name)
	if keep != nil {
		tree{r.FS}.lines(name, func(line string) bool {
			if keep(line) {
				b.WriteString(line + "\n")
			}
			return true
		})
		return b.String()
	}
	f, err := r.FS.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, _ := io.ReadAll(io.LimitReader(f, 64<<10))
	if name == "proc/cmdline" {
		words := slices.DeleteFunc(strings.Fields(string(data)), func(w string) bool {
			return !strings.HasPrefix(w, "cgroup") && !strings.HasPrefix(w, "lsm=") && !strings.HasPrefix(w, "systemd.")
		})
		return strings.Join(words, " ") + "\n"
	}
	s := serialLine.ReplaceAllString(string(data), "${1}0000000000000000")
	if base := path.Base(name); base == "serial-number" || base == "product_serial" {
		return strings.Repeat("0", 16)
	}
	return s
}

// keepLine picks the lines that matter out of files that are large or tell what
// is nobody's business.
func (r recorder) keepLine(name string) func(string) bool {
	base := path.Base(name)
	switch {
	case base == "mountinfo":
		return func(line string) bool {
			m, _ := parseMount(line)
			return m.fs == "cgroup" || m.fs == "cgroup2" || m.point != "" && within(r.data, m.point)
		}
	case base == "meminfo":
		return func(line string) bool { return strings.HasPrefix(line, "Mem") }
	case base == "modules.dep" || base == "modules.builtin":
		return func(line string) bool {
			file, _, _ := strings.Cut(line, ":")
			module, _, _ := strings.Cut(path.Base(file), ".ko")
			return slices.ContainsFunc(features, func(f feature) bool { return f.module != "" && f.module == strings.ReplaceAll(module, "-", "_") })
		}
	case strings.HasPrefix(base, "config-") || strings.HasPrefix(name, "lib/modules/") && base == "config":
		return func(line string) bool {
			key, _, _ := strings.Cut(line, "=")
			return key == memoryOption || slices.ContainsFunc(features, func(f feature) bool { return f.option == key })
		}
	}
	return nil
}

func entry(name, content string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "-- %s --\n", name)
	for i := 0; i < len(content); i++ {
		c := content[i]
		if c == '\\' || c < ' ' && c != '\n' && c != '\t' || c == 0x7f {
			b.WriteString(`\x` + strconv.FormatUint(uint64(c)|0x100, 16)[1:])
			continue
		}
		b.WriteByte(c)
	}
	if content != "" && !strings.HasSuffix(content, "\n") {
		b.WriteString("\n\\\n")
	}
	return b.String()
}
