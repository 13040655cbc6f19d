package pods

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// maxEnvFile bounds a file of variables, in bytes, and a line of it is bounded by
// bufio.MaxScanTokenSize, as a kubelet's.
const maxEnvFile = 1 << 20

// fileKey is a variable that a container has from a file in a volume (KEP-3721,
// fileKeyRef), and whether there is one. Words are a kubelet's (kubelet_pods.go).
func (m *Manager) fileKey(pod *v1.Pod, ref *v1.FileKeySelector, mounted volumes.Mounted) (string, bool, error) {
	volume, ok := mounted.Paths[ref.VolumeName]
	if !ok {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	value, err := envFromFile(volume, ref.Path, ref.Key)
	if err != nil {
		// What is on the host's side of a volume isn't told to whoever made the pod.
		m.log.Warn("a file of variables can't be read", "pod", pod.Namespace+"/"+pod.Name, "volume", ref.VolumeName, "file", ref.Path, "err", err)
		return "", false, errors.New("couldn't parse env file")
	}
	if value == "" && !deref(ref.Optional, false) {
		return "", false, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, filepath.Join(volume, ref.Path))
	}
	return value, value != "", nil
}

// envFromFile reads a variable from a file of a volume. The pod has made that file
// and may change the volume meanwhile: no link leads out of it, and what isn't a
// file isn't waited for.
func envFromFile(volume, path, key string) (string, error) {
	root, err := os.OpenRoot(volume)
	if err != nil {
		return "", err
	}
	defer root.Close()
	f, err := root.OpenFile(filepath.Clean(path), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(err, errors.New("not a regular file"))
	}
	limited := &io.LimitedReader{R: f, N: maxEnvFile + 1}
	value, err := parseEnv(limited, key)
	if err == nil && limited.N == 0 {
		err = fmt.Errorf("larger than %d bytes", maxEnvFile)
	}
	return value, err
}

// parseEnv finds a variable in a file of NAME='value' lines, empty if it isn't
// there. The rules are those of upstream's ParseEnv (pkg/kubelet/util/env), a part
// of what a POSIX shell takes: values stand in single quotes and go on over lines,
// there are no escapes, and comments begin with #. A space before = is wrong, one
// after it makes the value empty. What comes after the variable isn't looked at.
func parseEnv(r io.Reader, key string) (string, error) {
	s := &envScanner{Scanner: bufio.NewScanner(r)}
	for s.next() {
		line := strings.TrimLeft(s.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, found := strings.Cut(line, "=")
		switch {
		case !found:
			return "", s.wrong("missing '='")
		case strings.Trim(name, " \t") == "":
			return "", s.wrong("empty variable name")
		case strings.TrimRight(name, " \t") != name:
			return "", s.wrong("whitespace before '=' is not allowed")
		}
		var value string
		if !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "\t") {
			var err error
			if value, err = s.quoted(rest); err != nil {
				return "", err
			}
		}
		if name == key {
			return value, nil
		}
	}
	return "", s.Err()
}

type envScanner struct {
	*bufio.Scanner
	line int
}

func (s *envScanner) next() bool {
	s.line++
	return s.Scan()
}

func (s *envScanner) wrong(what string) error {
	return fmt.Errorf("invalid environment variable format at line %d: %s", s.line, what)
}

// quoted is the value that begins with rest, and may go on.
func (s *envScanner) quoted(rest string) (string, error) {
	rest, ok := strings.CutPrefix(rest, "'")
	if !ok {
		return "", s.wrong("value must be enclosed in single quotes")
	}
	var value strings.Builder
	for start := s.line; ; rest = s.Text() {
		part, after, closed := strings.Cut(rest, "'")
		value.WriteString(part)
		if closed {
			if after = strings.TrimLeft(after, " \t"); after != "" && after[0] != '#' {
				return "", s.wrong("unexpected content after closing quote")
			}
			return value.String(), nil
		}
		value.WriteByte('\n')
		if !s.next() {
			if err := s.Err(); err != nil {
				return "", err
			}
			return "", fmt.Errorf("invalid environment variable format starting at line %d: unclosed single quote", start)
		}
	}
}
