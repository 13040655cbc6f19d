package image

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// OpenArchive returns the bytes of an OCI archive: of a file, of standard input
// for "-", or of a layout folder packed on the way. The caller closes it.
func OpenArchive(path string, stdin io.Reader) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(stdin), nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return os.Open(path)
	}
	if _, err := os.Stat(filepath.Join(path, "oci-layout")); err != nil {
		return nil, fmt.Errorf("%s is a folder but no OCI layout: %w", path, err)
	}
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		err := tw.AddFS(os.DirFS(path))
		if err == nil {
			err = tw.Close()
		}
		w.CloseWithError(err)
	}()
	return r, nil
}
