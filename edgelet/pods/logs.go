package pods

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	rotatePeriod = 10 * time.Second
	// maxTerminationMessage and maxTerminationLines bound what a container may say
	// about its end.
	maxTerminationMessage = 4096
	maxTerminationLines   = 80
)

// rotateLogs keeps every running container's log within LogMaxSize times
// LogMaxFiles. Ended ones can't grow.
func (m *Manager) rotateLogs(ctx context.Context) {
	ticker := time.NewTicker(rotatePeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, p := range m.Pods() {
			for _, list := range [][]v1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
				for i := range list {
					if s := &list[i]; s.State.Running != nil {
						path := m.logFile(p.Namespace, p.Name, p.UID, s.Name, s.RestartCount)
						if err := m.rotateLog(ctx, path, containerIDOf(s.ContainerID)); err != nil {
							m.log.Warn("a container's log was not rotated", "pod", p.Namespace+"/"+p.Name, "container", s.Name, "err", err)
						}
					}
				}
			}
		}
	}
}

// rotateLog renames a log that is too large and has the runtime open a new one.
func (m *Manager) rotateLog(ctx context.Context, path, id string) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() < m.cfg.LogMaxSize {
		return nil
	}
	rotated := path + "." + m.cfg.Now().UTC().Format("20060102-150405")
	for n := 1; ; n++ { // the board's clock may stand or jump
		if _, err := os.Lstat(rotated); os.IsNotExist(err) {
			break
		}
		rotated = fmt.Sprintf("%s.%s-%d", path, m.cfg.Now().UTC().Format("20060102-150405"), n)
	}
	if err := os.Rename(path, rotated); err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := m.cfg.Runtime.ReopenContainerLog(call, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		// The container goes on writing to the file it has: give it its name back.
		_ = os.Rename(rotated, path)
		return fmt.Errorf("reopening: %w", err)
	}
	old, err := filepath.Glob(path + ".*")
	if err != nil {
		return err
	}
	byAge(old)
	for len(old) > m.cfg.LogMaxFiles-1 {
		if err := os.Remove(old[0]); err != nil {
			return err
		}
		old = old[1:]
	}
	return nil
}

// byAge sorts files, the oldest first, by when they were last written.
func byAge(paths []string) {
	at := map[string]time.Time{}
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil {
			at[p] = info.ModTime()
		}
	}
	slices.SortStableFunc(paths, func(a, b string) int { return at[a].Compare(at[b]) })
}

// removeLogs removes the logs of one run of a container.
func (m *Manager) removeLogs(namespace, name, uid, container string, run int32) {
	base := m.logFile(namespace, name, uid, container, run)
	old, _ := filepath.Glob(base + ".*")
	for _, p := range append(old, base) {
		_ = os.Remove(p)
	}
	m.unlinkLogs(namespace, name)
}

// addTerminationMessage adds to an ended container what it left to be said.
func (w *worker) addTerminationMessage(c *observedContainer) {
	text, read := "", false
	if c.terminationHostPath != "" {
		text, read = readTail(c.terminationHostPath, maxTerminationMessage)
	}
	if text == "" && c.annotations[annTermMessagePolicy] == string(v1.TerminationMessageFallbackToLogsOnError) && c.exitCode != 0 {
		text = lastLogLines(c.logPath)
	} else if !read {
		// The folder of a pod that has ended goes before the pod does; what was read
		// then stays.
		if m := w.record.terminationMessage(c.id); m != "" {
			c.message = m
		}
		return
	}
	switch {
	case text == "":
	case c.message == "":
		c.message = text
	default:
		c.message += ": " + text
	}
}

func readTail(path string, limit int64) (string, bool) {
	f, err := os.Open(path)
	if err != nil {
		return "", false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", false
	} else if info.Size() > limit {
		if _, err := f.Seek(-limit, io.SeekEnd); err != nil {
			return "", false
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return "", false
	}
	return strings.ToValidUTF8(string(b), "\uFFFD"), true
}

// lastLogLines returns the end of a CRI log, without its prefixes.
func lastLogLines(path string) string {
	raw, ok := readTail(path, 4*maxTerminationMessage)
	if !ok {
		return ""
	}
	var lines []string
	s := bufio.NewScanner(strings.NewReader(raw))
	s.Buffer(nil, 8*maxTerminationMessage)
	partial := false
	for s.Scan() {
		// TIME STREAM TAG TEXT; the first line may be cut and then doesn't parse.
		parts := bytes.SplitN(s.Bytes(), []byte(" "), 4)
		if len(parts) != 4 || (string(parts[1]) != "stdout" && string(parts[1]) != "stderr") {
			continue
		}
		if partial {
			lines[len(lines)-1] += string(parts[3])
		} else {
			lines = append(lines, string(parts[3]))
		}
		partial = strings.HasPrefix(string(parts[2]), "P")
	}
	if len(lines) > maxTerminationLines {
		lines = lines[len(lines)-maxTerminationLines:]
	}
	out := strings.Join(lines, "\n")
	if len(lines) > 0 && !partial { // what had no end of line gets none
		out += "\n"
	}
	if len(out) > maxTerminationMessage {
		out = out[len(out)-maxTerminationMessage:]
		for len(out) > 0 && !utf8.RuneStart(out[0]) {
			out = out[1:]
		}
	}
	return out
}
