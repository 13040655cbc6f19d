package crishim_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/coracle-edge/coracle/crishim"
)

// TestPullErrorsAreTheKubeletsWords: a kubelet makes the reason of a container's
// waiting out of the beginning of the message, if the code is Unknown.
func TestPullErrorsAreTheKubeletsWords(t *testing.T) {
	var answer atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(answer.Load())) }))
	defer srv.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	hosts := t.TempDir()
	for name, url := range map[string]string{"there.example": srv.URL, "gone.example": gone.URL} {
		if err := os.MkdirAll(filepath.Join(hosts, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(hosts, name, "hosts.toml"), []byte("server = \""+url+"\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n := newNode(t, func(c *crishim.Config) { c.RegistryHosts = hosts })
	for _, c := range []struct {
		ref    string
		answer int32
		code   codes.Code
		begins string
	}{
		{"gone.example/x:1", 0, codes.Unknown, crierrors.ErrRegistryUnavailable.Error() + ": "},
		{"there.example/x:1", 500, codes.Unknown, crierrors.ErrRegistryUnavailable.Error() + ": "},
		{"there.example/x:1", 429, codes.Unknown, crierrors.ErrRegistryUnavailable.Error() + ": "},
		{"there.example/x:1", 404, codes.NotFound, "image "},
		{"there.example/x:1", 401, codes.PermissionDenied, "image "},
		{"there.example/x:1", 403, codes.PermissionDenied, "image "},
		{"there.example/X:1", 0, codes.InvalidArgument, "image "},
		{"", 0, codes.InvalidArgument, "image "},
	} {
		answer.Store(c.answer)
		_, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: c.ref}})
		if status.Code(err) != c.code || !strings.HasPrefix(status.Convert(err).Message(), c.begins) || !strings.Contains(err.Error(), c.ref) {
			t.Errorf("%q answering %d: %v", c.ref, c.answer, err)
		}
	}
}
