package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

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

// FolderRecords remembers the folders of volumes by the volumes' UID. edgelet/state
// implements it.
type FolderRecords interface {
	LocalVolumes() (map[string][]byte, error)
	// PutLocalVolume returns when it is durable; nil forgets a folder.
	PutLocalVolume(uid string, folder []byte) error
}

// ErrFolderGone is returned for a volume whose folder was here and is not: an empty
// one in its place would look like lost data.
var ErrFolderGone = errors.New("the volume was made on this node before and its folder is gone: is the disk that it was on mounted?")

// makeFolder makes the folder of a volume that the cluster has provisioned on this
// node, once.
func (m *Manager) makeFolder(pv *v1.PersistentVolume) error {
	path := filepath.Clean(pv.Spec.Local.Path)
	if m.Folders == nil {
		return fmt.Errorf("%w: a volume of %s: edgelet runs without root", ErrUnsupported, localvolumes.Provisioner)
	}
	records, err := m.Folders.Records.LocalVolumes()
	if err != nil {
		return err
	}
	_, made := records[string(pv.UID)]
	_, err = os.Lstat(path)
	switch {
	case err == nil && made:
		return nil
	case err == nil:
	case !errors.Is(err, os.ErrNotExist):
		return err
	case made:
		return fmt.Errorf("%s: %w", path, ErrFolderGone)
	case filepath.Dir(path) != m.Folders.Dir:
		return fmt.Errorf("%w: PersistentVolume %s is to be at %s, and this node makes volumes in %s (--local-volumes-dir)", ErrInvalid, pv.Name, path, m.Folders.Dir)
	default:
		if err := m.newVolumeFolder(path); err != nil {
			return fmt.Errorf("making the folder of PersistentVolume %s: %w", pv.Name, full(err, filepath.Dir(path)))
		}
	}
	return m.Folders.Records.PutLocalVolume(string(pv.UID), []byte(path))
}

// newVolumeFolder returns when the folder is durable. Whoever is in the container may
// write there, whatever its user; on the node only root comes by.
func (m *Manager) newVolumeFolder(path string) error {
	dir := m.Folders.Dir
	if !m.Folders.Given {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s (--local-volumes-dir) is not there: mount its disk, or make it: %w", dir, err)
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o777); err != nil { // whatever the umask
		return errors.Join(err, os.Remove(path))
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// RemoveReleased removes the folders of those of the volumes that nobody claims any
// more and whose class says so, and returns those that are gone. An error leaves the
// others to be tried again.
func (m *Manager) RemoveReleased(pvs []*v1.PersistentVolume) (gone []localvolumes.Gone, err error) {
	var records map[string][]byte
	var failed []error
	for _, pv := range pvs {
		if m.Folders == nil || !localvolumes.Released(pv) {
			continue
		}
		if records == nil {
			if records, err = m.Folders.Records.LocalVolumes(); err != nil {
				return nil, err
			}
		}
		if err := m.removeFolder(pv, records[string(pv.UID)]); err != nil {
			failed = append(failed, fmt.Errorf("removing the folder of PersistentVolume %s: %w", pv.Name, err))
			continue
		}
		gone = append(gone, localvolumes.Gone{Name: pv.Name, UID: string(pv.UID)})
	}
	return gone, errors.Join(failed...)
}

// removeFolder removes a volume's folder; made is where it was made, if it was.
func (m *Manager) removeFolder(pv *v1.PersistentVolume, made []byte) error {
	path := filepath.Clean(pv.Spec.Local.Path)
	// What the cluster names is removed only where volumes are, or were, made.
	if string(made) != path && filepath.Dir(path) != m.Folders.Dir {
		return fmt.Errorf("%w: it is said to be at %s, and this node makes volumes in %s", ErrInvalid, path, m.Folders.Dir)
	}
	bound, err := m.boundLocal(pv.Name)
	if err != nil {
		return err
	}
	if len(bound) > 0 {
		return fmt.Errorf("%s: %w", bound[0], ErrMounted)
	}
	if made != nil {
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return fmt.Errorf("%w: is its disk mounted?", err)
		}
	}
	if err := removeAll(path); err != nil {
		return err
	}
	if made == nil {
		return nil
	}
	return m.Folders.Records.PutLocalVolume(string(pv.UID), nil)
}
