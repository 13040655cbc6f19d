package wasm

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/wasmruntime"
)

// setUser: the pod's word, else the image's, else nonroot. Only a pod that says so
// gets root. Names are looked up in the image's own accounts, which an artifact,
// having no root file system, doesn't have. Groups that the image puts the user
// into are the guest's too, unless the pod's policy is Strict.
func setUser(spec *wasmruntime.Spec, sc *runtimeapi.LinuxContainerSecurityContext, img *images.Image) error {
	acc := readAccounts(img.Rootfs)
	spec.UID, spec.GID = Nonroot, Nonroot
	if u, g, _ := strings.Cut(img.User, ":"); u != "" {
		if uid, gid, ok := acc.user(u); ok && uid != 0 {
			spec.UID, spec.GID = uid, gid
			if gid, ok := acc.group(g); ok {
				spec.GID = gid
			}
		}
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		return fmt.Errorf("security context: %w: run_as_group %d without a user, give run_as_user too", ErrInvalid, sc.GetRunAsGroup().GetValue())
	}
	if u := sc.GetRunAsUser(); u != nil {
		uid, err := id32("run_as_user", u.GetValue())
		if err != nil {
			return err
		}
		spec.UID, spec.GID, _ = acc.user(strconv.FormatUint(uint64(uid), 10))
		spec.AllowRoot = uid == 0
	} else if name := sc.GetRunAsUsername(); name != "" {
		uid, gid, ok := acc.user(name)
		if !ok {
			return fmt.Errorf("security context: %w: run_as_username %q: the image's /etc/passwd has no such user, give a number", ErrInvalid, name)
		}
		spec.UID, spec.GID, spec.AllowRoot = uid, gid, uid == 0
	}
	if g := sc.GetRunAsGroup(); g != nil {
		gid, err := id32("run_as_group", g.GetValue())
		if err != nil {
			return err
		}
		spec.GID = gid
	}
	groups := []uint32{spec.GID}
	for _, g := range sc.GetSupplementalGroups() {
		gid, err := id32("supplemental group", g)
		if err != nil {
			return err
		}
		groups = append(groups, gid)
	}
	if sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge {
		groups = append(groups, acc.groupsOf(spec.UID)...)
	}
	slices.Sort(groups)
	spec.Groups = slices.Compact(groups)
	return nil
}

func id32(what string, n int64) (uint32, error) {
	if n < 0 || n > 1<<32-2 {
		return 0, fmt.Errorf("security context: %w: %s %d", ErrInvalid, what, n)
	}
	return uint32(n), nil
}

// accounts are the users and groups of an image.
type accounts struct {
	users  []account
	groups []account
}

// account is a line of passwd or group.
type account struct {
	name    string
	id, gid uint32 // gid of a user
	members []string
}

// user by name or number. A number that the image doesn't know is its own group,
// so that no guest is in root's by accident.
func (a *accounts) user(who string) (uid, gid uint32, ok bool) {
	n, err := strconv.ParseUint(who, 10, 32)
	for _, u := range a.users {
		if err == nil && u.id == uint32(n) || err != nil && u.name == who {
			return u.id, u.gid, true
		}
	}
	return uint32(n), uint32(n), err == nil
}

func (a *accounts) group(which string) (uint32, bool) {
	n, err := strconv.ParseUint(which, 10, 32)
	if err == nil {
		return uint32(n), true
	}
	for _, g := range a.groups {
		if g.name == which {
			return g.id, true
		}
	}
	return 0, false
}

// groupsOf are those that list the user.
func (a *accounts) groupsOf(uid uint32) []uint32 {
	var out []uint32
	for _, u := range a.users {
		if u.id != uid {
			continue
		}
		for _, g := range a.groups {
			if slices.Contains(g.members, u.name) {
				out = append(out, g.id)
			}
		}
	}
	return out
}

// maxAccounts bounds what is read of an image's files.
const maxAccounts = 1 << 20

// readAccounts reads an image's passwd and group. One that is missing, or lines
// that make no sense, are as if they weren't there.
func readAccounts(rootfs string) *accounts {
	a := &accounts{}
	if rootfs == "" {
		return a
	}
	for _, f := range []struct {
		path string
		to   *[]account
	}{{"etc/passwd", &a.users}, {"etc/group", &a.groups}} {
		file, err := os.OpenInRoot(rootfs, f.path)
		if err != nil {
			continue
		}
		if fi, err := file.Stat(); err == nil && fi.Mode().IsRegular() {
			*f.to = parseAccounts(io.LimitReader(file, maxAccounts))
		}
		file.Close()
	}
	return a
}

// parseAccounts reads "name:x:uid:gid:..." and "name:x:gid:member,member".
func parseAccounts(r io.Reader) []account {
	var out []account
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(f) < 3 || f[0] == "" {
			continue
		}
		id, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue
		}
		acc := account{name: f[0], id: uint32(id)}
		if len(f) > 3 {
			if gid, err := strconv.ParseUint(f[3], 10, 32); err == nil {
				acc.gid = uint32(gid)
			}
			acc.members = strings.Split(f[3], ",")
		}
		out = append(out, acc)
	}
	return out
}
