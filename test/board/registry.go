package board

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/coracle-edge/coracle/test/lab"
)

// ImageHost is the registry whose images boards pull from the host.
const ImageHost = "board.example"

// registry serves images on the host's loopback, by the part of the distribution
// specification that pulls need.
type registry struct {
	images map[string]*lab.Image // by NAME:TAG, without ImageHost
	server http.Server
	port   int
}

func serve(images map[string]*lab.Image) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{images: images, port: l.Addr().(*net.TCPAddr).Port}
	r.server.Handler = r
	go func() { _ = r.server.Serve(l) }() // until close
	return r, nil
}

func (r *registry) close() error { return r.server.Close() }

// hosts is a hosts.toml for all registries.
func (r *registry) hosts() string {
	url := fmt.Sprintf("http://%s:%d", Host, r.port)
	return fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", url, url)
}

// ServeHTTP answers GET and HEAD of /v2/NAME/manifests/TAG-OR-DIGEST and
// /v2/NAME/blobs/DIGEST.
func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	if path == "" {
		return
	}
	blob, err := r.find(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", blob.Desc.MediaType)
	w.Header().Set("Docker-Content-Digest", blob.Desc.Digest.String())
	w.Header().Set("Content-Length", fmt.Sprint(len(blob.Data)))
	if req.Method != http.MethodHead {
		_, _ = w.Write(blob.Data)
	}
}

func (r *registry) find(path string) (lab.Blob, error) {
	for _, kind := range []string{"/manifests/", "/blobs/"} {
		name, ref, ok := strings.Cut(path, kind)
		if !ok {
			continue
		}
		for tagged, image := range r.images {
			if tagged == name+":"+ref {
				return image.Blobs[len(image.Blobs)-1], nil
			}
			for _, b := range image.Blobs {
				if strings.HasPrefix(tagged, name+":") && b.Desc.Digest.String() == ref {
					return b, nil
				}
			}
		}
	}
	return lab.Blob{}, errors.New("no such thing here")
}
