package volumes

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
)

// Folders is where the node makes volumes of StorageClass local-path.
type Folders struct {
	// Dir holds a folder per volume.
	Dir string
	// Given says that an administrator named Dir, perhaps on a disk of its own: it is
	// not made here, lest the disk isn't mounted.
	Given bool
	// Records remembers which folders were made.
	Records FolderRecords
}

// FolderRecords remembers the folders of volumes by the volumes' UID, and what marks
// the folder that they are in by its path. edgelet/state implements it.
type FolderRecords interface {
	LocalVolumes() (map[string][]byte, error)
	// PutLocalVolume returns when it is durable; nil forgets a record.
	PutLocalVolume(key string, value []byte) error
}

// FolderMark is a file beside volumes: it tells the disk that they are on from the
// empty folder that it is mounted on.
const FolderMark = ".coracle-volumes"

// ErrFolderGone is returned for a volume whose folder was here and is not: an empty
// one in its place would look like lost data.
var ErrFolderGone = errors.New("was on this node before and is not there: is its disk mounted?")

// makeFolder makes the folder of a volume that the cluster has provisioned on this
// node, once. It needs m.folders.
func (m *Manager) makeFolder(pv *v1.PersistentVolume) error {
	path, uid := filepath.Clean(pv.Spec.Local.Path), string(pv.UID)
	if m.Folders == nil {
		return fmt.Errorf("%w: a volume of %s: edgelet runs without root", ErrUnsupported, localvolumes.Provisioner)
	}
	if m.removed[uid] {
		return fmt.Errorf("PersistentVolume %s was released, and its folder removed", pv.Name)
	}
	records, err := m.Folders.Records.LocalVolumes()
	if err != nil {
		return err
	}
	_, made := records[uid]
	_, err = os.Lstat(path)
	there := err == nil
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	switch {
	case made && there:
		return nil
	case made:
		return fmt.Errorf("folder %s %w", path, ErrFolderGone)
	case filepath.Dir(path) != m.Folders.Dir && there:
		return nil // a local volume like any other: not made here, and not removed
	case filepath.Dir(path) != m.Folders.Dir:
		return fmt.Errorf("%w: PersistentVolume %s is to be at %s, and this node makes volumes in %s (--local-volumes-dir)", ErrInvalid, pv.Name, path, m.Folders.Dir)
	case otherOf(records, uid, path) != "":
		return nil // somebody made another object for the same folder
	}
	if err := m.markDir(records); err != nil {
		return err
	}
	if !there { // else the agent was killed before it had noted it
		if err := m.newVolumeFolder(path, uid); err != nil {
			return fmt.Errorf("making the folder of PersistentVolume %s: %w", pv.Name, full(err, m.Folders.Dir))
		}
	}
	return m.Folders.Records.PutLocalVolume(uid, []byte(path))
}

// otherOf is the UID of another volume whose folder is at path.
func otherOf(records map[string][]byte, uid, path string) string {
	for other, p := range records {
		if other != uid && string(p) == path {
			return other
		}
	}
	return ""
}

// markDir has the folder of volumes be there, and be the one that it was.
func (m *Manager) markDir(records map[string][]byte) error {
	dir := m.Folders.Dir
	known := records[dir]
	if len(known) > 0 {
		return marked(dir, known)
	}
	if !m.Folders.Given {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return full(err, filepath.Dir(dir))
		}
	}
	path := filepath.Join(dir, FolderMark)
	mark, err := os.ReadFile(path) // of a former life of this node
	if err == nil && len(mark) > 0 {
		return m.Folders.Records.PutLocalVolume(dir, mark)
	}
	mark = []byte(rand.Text())
	if err := os.WriteFile(path, mark, 0o600); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s (--local-volumes-dir) is not there: mount its disk, or make it: %w", dir, err)
		}
		return full(err, dir)
	}
	for _, p := range []string{path, dir} {
		if err := syncFile(p); err != nil {
			return err
		}
	}
	return m.Folders.Records.PutLocalVolume(dir, mark)
}

// marked checks that a folder has the mark that it had.
func marked(dir string, mark []byte) error {
	have, err := os.ReadFile(filepath.Join(dir, FolderMark))
	if errors.Is(err, os.ErrNotExist) || err == nil && string(have) != string(mark) {
		return fmt.Errorf("folder %s with volumes (file %s in it) %w", dir, FolderMark, ErrFolderGone)
	}
	return err
}

// newVolumeFolder returns when the folder is durable. Whoever is in the container may
// write there, whatever its user; on the node only root comes by.
func (m *Manager) newVolumeFolder(path, uid string) error {
	half := filepath.Join(m.Folders.Dir, ".new-"+uid)
	if err := os.Mkdir(half, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Chmod(half, 0o777); err != nil { // whatever the umask
		return err
	}
	if err := os.Rename(half, path); err != nil {
		return err
	}
	return syncFile(m.Folders.Dir)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// RemoveReleased removes the folders of those of the volumes that nobody claims any
// more and whose class says so, and returns those that are gone. An error leaves the
// volume's folder to be tried again, and is an event of the volume's once.
func (m *Manager) RemoveReleased(ctx context.Context, pvs []*v1.PersistentVolume) (gone []localvolumes.Gone, err error) {
	var failed []error
	for _, pv := range pvs {
		if m.Folders == nil || !localvolumes.ToRemove(pv) {
			continue
		}
		err := m.removeFolder(ctx, pv)
		if err == nil {
			gone = append(gone, localvolumes.Gone{Name: pv.Name, UID: string(pv.UID)})
			delete(m.unremoved, string(pv.UID))
			continue
		}
		failed = append(failed, fmt.Errorf("removing the folder of PersistentVolume %s: %w", pv.Name, err))
		if message := err.Error(); m.unremoved[string(pv.UID)] != message && ctx.Err() == nil && !errors.Is(err, errHeld) {
			m.unremoved[string(pv.UID)] = message
			m.notice(Notice{Volume: pv.Name, VolumeUID: string(pv.UID), Type: v1.EventTypeWarning, Reason: "VolumeFailedDelete", Message: message})
		}
	}
	return gone, errors.Join(failed...)
}

// errHeld is returned while a pod still has a released volume, which ends by itself.
var errHeld = fmt.Errorf("a pod's folder has it %w", ErrMounted)

func (m *Manager) removeFolder(ctx context.Context, pv *v1.PersistentVolume) error {
	m.folders.Lock()
	defer m.folders.Unlock()
	path, uid := filepath.Clean(pv.Spec.Local.Path), string(pv.UID)
	dir := filepath.Dir(path)
	records, err := m.Folders.Records.LocalVolumes()
	if err != nil {
		return err
	}
	_, made := records[uid]
	// What the cluster names is removed only where volumes are, or were, made.
	switch other := otherOf(records, uid, path); {
	case made && string(records[uid]) != path, !made && dir != m.Folders.Dir, strings.HasPrefix(filepath.Base(path), "."):
		return fmt.Errorf("%w: it is said to be at %s, and this node makes volumes in %s", ErrInvalid, path, m.Folders.Dir)
	case other != "":
		return fmt.Errorf("%w: %s is the folder of the volume with UID %s, too", ErrInvalid, path, other)
	}
	if bound, err := m.boundLocal(pv.Name); err != nil || len(bound) > 0 {
		return errors.Join(err, errHeld)
	}
	if mark := records[dir]; len(mark) > 0 {
		if err := marked(dir, mark); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(path); err == nil {
		if err := m.wipe(ctx, path); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	m.removed[uid] = true
	if !made {
		return nil
	}
	return m.Folders.Records.PutLocalVolume(uid, nil)
}

// wipe removes a folder for good: it doesn't come back with the power.
func (m *Manager) wipe(ctx context.Context, path string) error {
	// Kernels before 5.8 don't tell a bind mount of the same file system.
	below, err := MountsBelow(path)
	if err != nil {
		return err
	}
	if len(below) > 0 {
		return fmt.Errorf("%s: %w", below[0], ErrMounted)
	}
	if err := removeAll(ctx, path); err != nil {
		return err
	}
	return syncFile(filepath.Dir(path))
}
