package pods

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A link's name has at most what a file system takes, its suffix included
// (kubelet: pkg/kubelet/kuberuntime/legacy.go, which has the names, too).
const (
	logLinkSuffix = ".log"
	logLinkMax    = 255 - len(logLinkSuffix)
)

// ShownLogs is where those who collect the logs of all pods look for them: they run
// as pods, have the host's /var/log mounted, and know a log by its link's name.
type ShownLogs struct {
	// LinksDir is /var/log/containers: one link a container,
	// POD_NAMESPACE_CONTAINER-ID.log.
	LinksDir string
	// LogsDir is by which name the links know [Config.LogsDir]: /var/log/pods, which is
	// mounted together with them.
	LogsDir string
}

// linkLog makes the link of a container that was started. A runtime that writes no log
// gets none. Nothing of a pod's life depends on it.
func (m *Manager) linkLog(namespace, name, uid, container, id string, run int32) {
	s := m.cfg.ShownLogs
	if s.LinksDir == "" {
		return
	}
	log := m.logFile(namespace, name, uid, container, run)
	if _, err := os.Stat(log); errors.Is(err, fs.ErrNotExist) {
		return
	}
	shown, err := filepath.Rel(m.cfg.LogsDir, log)
	if err == nil {
		base := cut(name+"_"+namespace+"_"+container+"-"+id) + logLinkSuffix
		if err = os.Symlink(filepath.Join(s.LogsDir, shown), filepath.Join(s.LinksDir, base)); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	if err != nil {
		m.log.Warn("a container's log has no link for those who collect logs", "pod", namespace+"/"+name, "container", container, "err", err)
	}
}

func cut(name string) string { return name[:min(len(name), logLinkMax)] }

// unlinkLogs removes the links of a pod, of all pods if name is empty, whose logs are
// gone. Links that lead elsewhere are another's.
func (m *Manager) unlinkLogs(namespace, name string) {
	s := m.cfg.ShownLogs
	if s.LinksDir == "" {
		return
	}
	pattern := "*"
	if name != "" {
		pattern = cut(name+"_"+namespace+"_") + "*"
	}
	links, _ := filepath.Glob(filepath.Join(s.LinksDir, pattern))
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		rest, ours := strings.CutPrefix(target, filepath.Clean(s.LogsDir)+"/")
		if !ours || !filepath.IsLocal(rest) {
			continue
		}
		if _, err := os.Stat(filepath.Join(m.cfg.LogsDir, rest)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.log.Warn("a link to a log that is gone stays for now", "link", link, "err", err)
		}
	}
}
