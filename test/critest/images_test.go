//go:build slow

package critest

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// Names without their registries: one on loopback stands for all of them.
const (
	e2e     = "e2e-test-images/"
	staging = "k8s-staging-cri-tools/"
)

// accounts are those that the specs name.
var accounts = []lab.File{
	{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n" +
		"default-user:x:1000:1000::/home/default-user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
	{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n")},
	{Path: "tmp/", Mode: 0o1777, Type: tar.TypeDir},
	{Path: "root/", Mode: 0o700, Type: tar.TypeDir},
	{Path: "var/run/", Mode: 0o755, Type: tar.TypeDir},
}

// ociImages are stand-ins for the images that critest pulls, by their names.
func ociImages(t *testing.T, debian string) map[string]*lab.Image {
	t.Helper()
	pkgs := lab.Unpacked(t, debian)
	base := append(pkgs.Programs(t, "bin/busybox", "usr/bin/pgrep", "usr/bin/ipcs"), accounts...)
	applets, err := exec.Command(pkgs.Path("bin/busybox"), "--list").Output()
	if err != nil {
		t.Fatal("busybox --list: ", err)
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		// Hard links, so that one of them can be hidden.
		base = append(base, lab.File{Path: "bin/" + applet, Mode: 0o755, Hard: "bin/busybox"})
	}
	path := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	box := func(user, what string) *lab.Image {
		mark := []lab.File{{Path: "etc/image", Mode: 0o644, Data: []byte(what + "\n")}}
		return lab.OCI(ocispec.ImageConfig{User: user, Cmd: []string{"sh"}, Env: path}, nil, base, mark)
	}
	page := []lab.File{{Path: "www/index.html", Mode: 0o644, Data: []byte("<title>Welcome</title>\n")}}
	nginx := func(port string) *lab.Image {
		conf := "daemon off; error_log stderr; pid /var/run/nginx.pid; events {}\n" +
			"http { access_log /dev/stdout; server { listen " + port + "; root /www; } }\n"
		files := append(pkgs.Programs(t, "usr/sbin/nginx"), page...)
		files = append(files, lab.File{Path: "etc/nginx/nginx.conf", Mode: 0o644, Data: []byte(conf)},
			lab.File{Path: "var/log/nginx/", Mode: 0o755, Type: tar.TypeDir}, lab.File{Path: "var/lib/nginx/", Mode: 0o755, Type: tar.TypeDir})
		return lab.OCI(ocispec.ImageConfig{Cmd: []string{"nginx"}, Env: path}, nil, base, files)
	}
	httpd := lab.OCI(ocispec.ImageConfig{Cmd: []string{"sh", "-c", "echo httpd -f -p 80; exec httpd -f -p 80 -h /www"}, Env: path}, nil, base, page)
	pause, err := os.ReadFile(filepath.Join(lab.Root(t), "crishim", "oci", "pause", "pause-"+runtime.GOARCH))
	if err != nil {
		t.Fatal(err)
	}
	images := map[string]*lab.Image{
		e2e + "busybox:1.29-2": box("", "busybox"),
		e2e + "nginx:1.14-2":   nginx("80"),
		e2e + "httpd:2.4.39-4": httpd,
		e2e + "nonewprivs:1.3": nonewprivs(t),
		staging + "hostnet-nginx-" + runtime.GOARCH + ":latest": nginx("12003"),
		// Another image than the one that sandboxes are made of: removing it
		// removes all its names.
		"pause:3.9": lab.OCI(ocispec.ImageConfig{Entrypoint: []string{"/pause"}}, nil, []lab.File{{Path: "pause", Mode: 0o755, Data: pause}}),
	}
	for name, user := range users {
		images[staging+name+":latest"] = box(user, name)
	}
	for name, same := range tags {
		images[staging+name] = box("", same)
	}
	return images
}

// users of images that are there for their users.
var users = map[string]string{
	"test-image-user-uid": "1002", "test-image-user-username": "www-data",
	"test-image-user-uid-group": "1003:users", "test-image-user-username-group": "www-data:100",
	"test-image-predefined-group": "1000",
}

// tags are images that are there for their names: those with the same word are
// the same image. critest names one by a digest that no other image has.
var tags = map[string]string{
	"test-image-latest:latest": "latest", "test-image-tag:test": "test", "test-image-tag:all": "all",
	"test-image-1:latest": "1", "test-image-2:latest": "2", "test-image-3:latest": "3",
	"test-image-tags:1": "tags", "test-image-tags:2": "tags", "test-image-tags:3": "tags",
}

// nonewprivs is a setuid program that says who it is.
func nonewprivs(t *testing.T) *lab.Image {
	t.Helper()
	lab.Need(t, "gcc")
	out := filepath.Join(t.TempDir(), "nnp")
	cmd := exec.Command("gcc", "-static", "-O1", "-s", "-x", "c", "-o", out, "-")
	cmd.Stdin = strings.NewReader("#include <stdio.h>\n#include <unistd.h>\nint main(void) { return printf(\"Effective uid: %d\\n\", (int)geteuid()) < 0; }\n")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, msg)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return lab.OCI(ocispec.ImageConfig{Entrypoint: []string{"/nnp"}}, nil, []lab.File{{Path: "nnp", Mode: 0o4755, Data: data}})
}
