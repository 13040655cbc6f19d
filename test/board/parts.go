package board

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// Build edgelet and wasmrunner of arm64 into a folder, with the Go command goTool, from
// the module's folder root.
func Build(ctx context.Context, goTool, root, into string) error {
	cmd := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-tags=grpcnotrace", "-buildvcs=false", "-ldflags=-s -w", "-o", into+"/", "./cmd/edgelet", "./cmd/wasmrunner")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building for arm64: %w\n%s", err, text)
	}
	return nil
}

// Image of arm64.
func Image(env, entrypoint []string, files ...lab.File) *lab.Image {
	return lab.OCIFor("arm64", ocispec.ImageConfig{Entrypoint: entrypoint, Env: env}, nil, files)
}

// Busybox is an image with the board's busybox and its name as a shell; entrypoint is
// of its words, such as httpd -f.
func Busybox(parts string, words ...string) (*lab.Image, error) {
	program, err := os.ReadFile(filepath.Join(parts, "root/bin/busybox"))
	if err != nil {
		return nil, err
	}
	return Image([]string{"PATH=/bin"}, append([]string{"/bin/busybox"}, words...), lab.File{Path: "bin/busybox", Mode: 0o755, Data: program},
		lab.File{Path: "bin/sh", Link: "busybox"}, lab.File{Path: "www/healthz", Mode: 0o644, Data: []byte("ok\n")}), nil
}
