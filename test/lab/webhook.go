package lab

import (
	"os"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Webhook is the image of webhookd: an admission webhook, or a page over HTTP.
func Webhook(t testing.TB) *Image {
	t.Helper()
	data, err := os.ReadFile(buildPath(t, "webhookd", "./test/lab/webhookd"))
	if err != nil {
		t.Fatal(err)
	}
	return OCI(ocispec.ImageConfig{Entrypoint: []string{"/webhookd"}}, nil, []File{{Path: "webhookd", Mode: 0o755, Data: data}})
}
