package csi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/coracle-edge/coracle/internal/durable"
)

// record says what was begun for one volume of one pod. It is durable before the
// driver is asked and goes after the driver has undone it all, so an agent that
// died in between, at whatever line, leaves nothing.
type record struct {
	PodUID string `json:"podUID"`
	Name   string `json:"specVolID"`
	// PodVolume is what the pod calls the volume; empty in records of agents that
	// didn't note it.
	PodVolume string `json:"podVolume,omitempty"`
	Driver    string `json:"driverName"`
	Handle    string `json:"volumeHandle"`
	Block     bool   `json:"block,omitempty"`
	// Attach says that a controller attached the volume, and waits for this node
	// before it detaches it.
	Attach  bool   `json:"attach,omitempty"`
	Staging string `json:"stagingPath,omitempty"` // empty if nothing was to be staged
	Target  string `json:"targetPath"`
	// Boot is the boot of the machine in which the volume was published and made
	// ready; empty before that.
	Boot string `json:"boot,omitempty"`
	// Mounted says that something was mounted at Target then. A driver may publish
	// otherwise; but what was mounted and isn't has to be published again.
	Mounted bool `json:"mounted,omitempty"`
}

func (r *record) key() string { return r.PodUID + "/" + r.Name }

// volume is what r's staging is shared by.
func (r *record) volume() string { return r.Driver + "^" + r.Handle }

func (m *Manager) recordPath(r *record) string {
	return filepath.Join(m.RecordDir, r.PodUID, r.Name+".json")
}

// load reads the records, once. It needs m.mu.
func (m *Manager) load() error {
	if m.records != nil {
		return nil
	}
	records := map[string]*record{}
	pods, err := os.ReadDir(m.RecordDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the records of CSI volumes: %w", err)
	}
	for _, pod := range pods {
		files, err := os.ReadDir(filepath.Join(m.RecordDir, pod.Name()))
		if err != nil {
			return fmt.Errorf("reading the records of CSI volumes: %w", err)
		}
		for _, f := range files {
			if strings.HasPrefix(f.Name(), ".") || !strings.HasSuffix(f.Name(), ".json") {
				continue // one that was being written
			}
			path := filepath.Join(m.RecordDir, pod.Name(), f.Name())
			raw, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("reading the records of CSI volumes: %w", err)
			}
			r, err := decodeRecord(raw)
			if err != nil || r.PodUID != pod.Name() || r.Name+".json" != f.Name() {
				// Written whole or not at all, so somebody else's doing: it can't be acted on,
				// and must not keep other volumes from being used.
				m.Log.Error("a record of a CSI volume is not readable, what it was about stays mounted", "file", path, "err", err)
				continue
			}
			records[r.key()] = r
		}
	}
	m.records = records
	return nil
}

func decodeRecord(raw []byte) (*record, error) {
	r := new(record)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, err
	}
	for what, name := range map[string]string{"podUID": r.PodUID, "specVolID": r.Name} {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return nil, fmt.Errorf("%s %q is no name", what, name)
		}
	}
	for what, path := range map[string]string{"stagingPath": r.Staging, "targetPath": r.Target} {
		if path != "" && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
			return nil, fmt.Errorf("%s %q is no clean absolute path", what, path)
		}
	}
	if r.Driver == "" || r.Handle == "" || r.Target == "" {
		return nil, errors.New("driver, handle or target is missing")
	}
	return r, nil
}

// keep makes a record durable.
func (m *Manager) keep(r *record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	dir := filepath.Dir(m.recordPath(r))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(m.recordPath(r), raw, 0o600); err != nil {
		return err
	}
	if err := durable.SyncDir(m.RecordDir); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records[r.key()] = r
	return nil
}

func (m *Manager) drop(r *record) error {
	if err := os.Remove(m.recordPath(r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(filepath.Dir(m.recordPath(r))) // if it was the pod's last
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.records, r.key())
	return nil
}
