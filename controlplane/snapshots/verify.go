package snapshots

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	bolt "go.etcd.io/bbolt"
)

// ErrDamaged is returned when a file isn't a whole snapshot: cut off, changed, or
// something else.
var ErrDamaged = errors.New("not a whole snapshot")

// sector is what a database's size is a multiple of; the hash follows it.
const sector = 512

// Verify reads the whole file and checks it against the hash at its end. It
// returns the revision that the snapshot goes up to.
func Verify(path string) (revision int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := checkHash(f); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	if revision, err = lastRevision(path); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return revision, nil
}

func checkHash(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size() - sha256.Size
	if size < sector || size%sector != 0 {
		return fmt.Errorf("%w: its %d bytes can't be a database and a hash; it was cut off, or is another kind of file. Take another snapshot", ErrDamaged, info.Size())
	}
	h := sha256.New()
	if _, err := io.CopyN(h, f, size); err != nil {
		return err
	}
	var want [sha256.Size]byte
	if _, err := io.ReadFull(f, want[:]); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("%w: its content doesn't have the hash at its end; it was cut off or changed. Take another snapshot", ErrDamaged)
	}
	return nil
}

// lastRevision is the newest in etcd's bucket of keys, which are the revision's
// eight bytes, '_', and what tells apart the writes of one transaction.
func lastRevision(path string) (revision int64, err error) {
	// A file that has its hash was written by who made the hash; but bbolt trusts
	// what it maps, so nothing that it meets may end the process.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: no database of etcd: %v", ErrDamaged, r)
		}
	}()
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true})
	if err != nil {
		return 0, fmt.Errorf("%w: no database: %w", ErrDamaged, err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		keys := tx.Bucket([]byte("key"))
		if keys == nil {
			return fmt.Errorf("%w: no database of etcd", ErrDamaged)
		}
		if k, _ := keys.Cursor().Last(); len(k) >= 8 {
			revision = int64(binary.BigEndian.Uint64(k))
		}
		return nil
	})
	return revision, err
}
