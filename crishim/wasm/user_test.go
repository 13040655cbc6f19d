package wasm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/wasmruntime"
)

func TestSetUser(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0::/:\napp:x:1000:1001::/:\nbroken\nalso:x:y:z\n",
		"group":  "root:x:0:\nlogs:x:50:app,other\ndata:x:60:app\nnobody:x:99:other\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	type sc = runtimeapi.LinuxContainerSecurityContext
	strict := runtimeapi.SupplementalGroupsPolicy_Strict
	for _, c := range []struct {
		name         string
		sc           *sc
		user, rootfs string
		uid, gid     uint32
		groups       []uint32
		root, bad    bool
	}{
		{name: "nobody said", uid: Nonroot, gid: Nonroot},
		{name: "the image says root", user: "0", uid: Nonroot, gid: Nonroot},
		{name: "the image says root by name", user: "root", rootfs: root, uid: Nonroot, gid: Nonroot},
		{name: "the image says a name that nobody knows", user: "app", uid: Nonroot, gid: Nonroot},
		{name: "the image says a name", user: "app", rootfs: root, uid: 1000, gid: 1001, groups: []uint32{50, 60, 1001}},
		{name: "and a group's", user: "app:logs", rootfs: root, uid: 1000, gid: 50, groups: []uint32{50, 60}},
		{name: "the image says numbers", user: "1000:2000", uid: 1000, gid: 2000},
		{name: "the pod says", sc: &sc{RunAsUser: v(7), RunAsGroup: v(8)}, user: "1000", uid: 7, gid: 8},
		{name: "the pod says one that the image knows", sc: &sc{RunAsUser: v(1000), SupplementalGroups: []int64{70, 60}}, rootfs: root,
			uid: 1000, gid: 1001, groups: []uint32{50, 60, 70, 1001}},
		{name: "strictly", sc: &sc{RunAsUser: v(1000), SupplementalGroups: []int64{70}, SupplementalGroupsPolicy: strict}, rootfs: root,
			uid: 1000, gid: 1001, groups: []uint32{70, 1001}},
		{name: "the pod says root", sc: &sc{RunAsUser: v(0)}, uid: 0, gid: 0, root: true},
		{name: "a name", sc: &sc{RunAsUsername: "app", RunAsGroup: v(5)}, rootfs: root, uid: 1000, gid: 5, groups: []uint32{5, 50, 60}},
		{name: "a number as name", sc: &sc{RunAsUsername: "12"}, uid: 12, gid: 12},
		{name: "a name that nobody knows", sc: &sc{RunAsUsername: "app"}, bad: true},
		{name: "too large", sc: &sc{RunAsUser: v(1 << 40)}, bad: true},
		{name: "a group without a user", sc: &sc{RunAsGroup: v(5)}, bad: true},
		{name: "a group too large", sc: &sc{SupplementalGroups: []int64{-1}}, bad: true},
	} {
		var spec wasmruntime.Spec
		err := setUser(&spec, c.sc, &images.Image{User: c.user, Rootfs: c.rootfs})
		if (err != nil) != c.bad {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.groups == nil {
			c.groups = []uint32{c.gid}
		}
		if err == nil && (spec.UID != c.uid || spec.GID != c.gid || spec.AllowRoot != c.root || !slices.Equal(spec.Groups, c.groups)) {
			t.Errorf("%s: uid %d, gid %d, groups %v, root %v", c.name, spec.UID, spec.GID, spec.Groups, spec.AllowRoot)
		}
	}
}

// TestAccountsOfAHostileImage: a link that leads out of the image leads nowhere.
func TestAccountsOfAHostileImage(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if a := readAccounts(root); len(a.users) != 0 {
		t.Errorf("users of the machine: %v", a.users)
	}
}

func FuzzParseAccounts(f *testing.F) {
	f.Add("root:x:0:0::/:\nlogs:x:50:app,other\n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, a := range parseAccounts(strings.NewReader(s)) {
			if a.name == "" || strings.Contains(a.name, ":") {
				t.Errorf("%+v", a)
			}
		}
	})
}
