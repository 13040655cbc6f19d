package reset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// ErrMounted is returned when something is still mounted below a folder that is
// to be removed: removing it would remove what is mounted, which may be the
// host's. Nothing was removed then.
var ErrMounted = errors.New("still mounted")

// Config of Run. All but Images, Volumes and Keep is needed.
type Config struct {
	// Dir is the node's data folder.
	Dir string
	// Stop ends all pods and returns their names. When it returns, nobody writes
	// into Dir any more but Run.
	Stop func(context.Context) (pods []string, err error)
	// Force goes on although Stop failed, and says so.
	Force bool
	// Images removes those, too.
	Images bool
	// Volumes removes what pods have stored in volumes of the node, too, which are
	// folders in VolumesDir.
	Volumes    bool
	VolumesDir string
	// MountsBelow lists mount points below a folder.
	MountsBelow func(dir string) ([]string, error)
	// Out is told what was done, a line for each.
	Out io.Writer
}

// part is something that lies in the data folder.
type part struct {
	names []string // patterns; absolute ones are of another folder
	what  string
}

// What goes, in this order: secrets before what leads to them.
var goes = []part{
	{[]string{"identity"}, "identity: keys, certificate, what it trusts"},
	{[]string{"pods"}, "pods: volumes and the Secrets in them"},
	{[]string{"csi", "local-devices"}, "what is known of volumes of drivers and disks"},
	{[]string{"pods-logs", "images.json"}, "logs of pods, and of which images were good"},
	{[]string{"crishim/wasm", "crishim/oci-last.json", "crishim/lock"}, "containers and sandboxes"},
	{[]string{"run", "device-plugins", "pod-resources"}, "sockets"},
	{[]string{"state.db.corrupt-*", "state.db"}, "state: orders, sealed Secrets, reports, journal, time floor"},
}

// With images goes what says whose they are: those that stay must not become anybody's.
var images = part{[]string{"crishim/images", "crishim/compiled", "image-pulls.json"}, "images and their compiled modules"}

// What pods have stored stays for the node's next life unless it is asked for.
func (c Config) volumes() part {
	// If the folder was made by edgelet it goes as a whole; else it may be a disk's.
	if filepath.Dir(c.VolumesDir) == c.Dir {
		return part{[]string{filepath.Base(c.VolumesDir)}, whatVolumes}
	}
	dir := escape(c.VolumesDir)
	return part{[]string{filepath.Join(dir, "pvc-*"), filepath.Join(dir, ".coracle-volumes")}, whatVolumes}
}

const whatVolumes = "volumes of the class local-path, and the data in them"

// Run does it all. If it returns an error, some of it may be done, and Run again does the rest.
func Run(ctx context.Context, c Config) error {
	pods, err := c.Stop(ctx)
	for _, p := range pods {
		fmt.Fprintf(c.Out, "Stopped pod %s\n", p)
	}
	if err != nil {
		if !c.Force {
			return fmt.Errorf("nothing was removed: %w; --force removes the node's files all the same and leaves what runs to itself", err)
		}
		fmt.Fprintf(c.Out, "Left running, because of --force: %v\n", err)
	}
	remove := slices.Clone(goes)
	if c.Volumes {
		remove = slices.Insert(remove, 0, c.volumes())
	}
	if c.Images {
		remove = slices.Insert(remove, len(remove)-1, images)
	}
	// All are looked at before any is removed.
	paths := make([][]string, len(remove))
	for i, p := range remove {
		if paths[i], err = p.find(c.Dir); err != nil {
			return err
		}
		for _, path := range paths[i] {
			if err := unmounted(c.MountsBelow, path); err != nil {
				return err
			}
		}
	}
	for i, p := range remove {
		if len(paths[i]) == 0 {
			continue
		}
		for _, path := range paths[i] {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("%s: %w", p.what, err)
			}
			if err := sync(filepath.Dir(path)); err != nil {
				return err
			}
		}
		fmt.Fprintf(c.Out, "Removed %s (%s)\n", p.what, relative(c.Dir, paths[i]))
	}
	return c.kept()
}

// kept says what is left in the folder.
func (c Config) kept() error {
	var known []string
	for _, k := range []struct {
		part
		flag string
	}{{images, "--images"}, {c.volumes(), "--volumes"}} {
		found, err := k.find(c.Dir)
		if err != nil {
			return err
		}
		size := int64(0)
		for _, path := range found {
			size += bytesBelow(path)
		}
		if size > 0 {
			fmt.Fprintf(c.Out, "Kept %s, %d KiB (%s); %s removes them\n", k.what, size/1024, relative(c.Dir, found), k.flag)
		}
		known = append(known, found...)
	}
	// Empty now, unless images stay.
	if err := os.Remove(filepath.Join(c.Dir, "crishim")); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return err
	}
	var others []string
	for _, e := range entries {
		if e.Name() != "crishim" && !slices.Contains(known, filepath.Join(c.Dir, e.Name())) {
			others = append(others, e.Name())
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(c.Out, "Kept what edgelet didn't make: %s\n", strings.Join(others, ", "))
	}
	return nil
}

// find returns what there is of a part.
func (p part) find(dir string) ([]string, error) {
	var out []string
	for _, pattern := range p.names {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(escape(dir), pattern)
		}
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.what, err)
		}
		out = append(out, found...)
	}
	return out, nil
}

// escape makes a folder's name a pattern of itself.
func escape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

func unmounted(below func(string) ([]string, error), path string) error {
	mounts, err := below(path)
	if err != nil {
		return fmt.Errorf("mounts below %s: %w", path, err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is %w: unmount it (umount %s), then run reset again; nothing was removed", mounts[0], ErrMounted, mounts[0])
	}
	return nil
}

func relative(dir string, paths []string) string {
	var out []string
	for _, p := range paths {
		if r, err := filepath.Rel(dir, p); err == nil && filepath.IsLocal(r) {
			p = r
		}
		out = append(out, p)
	}
	return strings.Join(out, ", ")
}

// sync makes a removal durable: what was wiped must not come back with the power.
func sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// bytesBelow is a rough figure, for people.
func bytesBelow(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}
