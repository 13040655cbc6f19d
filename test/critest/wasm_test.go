//go:build slow

package critest

import (
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// applets are what box/box.c can be.
var applets = []string{"cat", "dd", "echo", "env", "false", "grep", "hostname", "httpd", "id", "ls", "mkdir", "nginx", "sh", "sleep", "[", "top", "touch", "true"}

// wasmImages are Wasm modules under the very names of critest's images, in the
// shapes that images of today have: root file systems with a module at the
// entrypoint, and for some, which only have to be pulled and listed, the CNCF's
// artifact.
func wasmImages(t *testing.T) map[string]*lab.Image {
	t.Helper()
	module := lab.Wasm(t, filepath.Join(lab.Root(t), "test/critest/box/box.c"))
	base := append([]lab.File{{Path: "bin/box.wasm", Mode: 0o755, Data: module}}, accounts...)
	for _, a := range applets {
		base = append(base, lab.File{Path: "bin/" + a, Mode: 0o755, Hard: "bin/box.wasm"})
	}
	base = append(base, ids()...)
	box := func(user, what string, cmd ...string) *lab.Image {
		mark := []lab.File{{Path: "etc/image", Mode: 0o644, Data: []byte(what + "\n")}}
		return lab.OCI(ocispec.ImageConfig{User: user, Cmd: cmd, Env: []string{"PATH=/bin"}},
			map[string]string{"module.wasm.image/variant": "compat"}, base, mark)
	}
	images := map[string]*lab.Image{
		e2e + "busybox:1.29-2": box("", "busybox", "/bin/sh"),
		e2e + "nginx:1.14-2":   box("", "nginx", "/bin/nginx"),
		e2e + "httpd:2.4.39-4": box("", "httpd", "/bin/httpd"),
		staging + "hostnet-nginx-" + runtime.GOARCH + ":latest": box("", "hostnet-nginx", "/bin/nginx"),
		"pause:3.9": box("", "pause", "/bin/sleep", "infinity"),
	}
	for name, user := range users {
		images[staging+name+":latest"] = box(user, name, "/bin/sh")
	}
	artifacts := map[string]*lab.Image{}
	for _, same := range tags {
		if same == "test" {
			artifacts[same] = box("", same, "/bin/sh") // what volumes are made of, too
		} else if artifacts[same] == nil {
			// One module each, told apart by a section that nobody reads.
			artifacts[same] = lab.CNCF(withNote(module, same))
		}
	}
	for name, same := range tags {
		images[staging+name] = artifacts[same]
	}
	return images
}

// ids are files that only a certain user may read, and others for a group's members,
// by which a guest finds out who it is: it is the kernel that says so.
func ids() (files []lab.File) {
	const nobodyElse = 12345 // none of them
	for _, n := range []int{0, 33, 1000, 1001, 1002, 1234, 5678, 50000, 65532, 65534} {
		name := strconv.Itoa(n)
		files = append(files, lab.File{Path: "ids/user/" + name, Mode: 0o400, UID: n, GID: nobodyElse, Data: []byte("x")},
			lab.File{Path: "ids/group/" + name, Mode: 0o040, UID: nobodyElse, GID: n, Data: []byte("x")})
	}
	return files
}

// withNote appends a custom section to a module.
func withNote(module []byte, note string) []byte {
	name := "note"
	body := append([]byte{byte(len(name))}, name+note...)
	return append(append(append([]byte{}, module...), 0, byte(len(body))), body...)
}
