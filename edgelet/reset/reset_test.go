package reset

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// board makes a data folder as a node that ran has it.
func board(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data [1]*") // a name that isn't a pattern
	for _, f := range []string{
		"identity/keys.pem", "identity/identity.json", "state.db", "state.db.corrupt-1", "pods/uid/volumes/secret/password", "csi/uid/pv.json",
		"pods-logs/default_a_uid/main/0.log", "run/edgelet.sock", "crishim/wasm/sandboxes/x", "crishim/oci-last.json", "crishim/lock",
		"crishim/images/index.json", "crishim/compiled/m", "images.json", "image-pulls.json", "static-pods/mine.yaml",
	} {
		path := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, rel)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func config(dir string) (Config, *bytes.Buffer) {
	var out bytes.Buffer
	return Config{Dir: dir, VolumesDir: filepath.Join(dir, "local-volumes"), Out: &out,
		Stop:        func(context.Context) ([]string, error) { return []string{"default/a"}, nil },
		MountsBelow: func(string) ([]string, error) { return nil, nil },
	}, &out
}

func TestResetLeavesNothingOfTheClusters(t *testing.T) {
	dir := board(t)
	c, out := config(dir)
	if err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got, want := files(t, dir), []string{"crishim/compiled/m", "crishim/images/index.json", "image-pulls.json", "static-pods/mine.yaml"}; !slices.Equal(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
	for _, words := range []string{"Stopped pod default/a", "Removed identity", "Removed state", "state.db.corrupt-1", "Removed pods: volumes and the Secrets", "Kept images", "--images", "Kept what edgelet didn't make: static-pods"} {
		if !strings.Contains(out.String(), words) {
			t.Errorf("it doesn't say %q:\n%s", words, out)
		}
	}
	// What pods have stored goes only if that is asked for.
	stored := filepath.Join(dir, "local-volumes", "pvc-1", "file")
	if err := os.MkdirAll(filepath.Dir(stored), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stored, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, out = config(dir)
	if err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stored); err != nil || !strings.Contains(out.String(), "Kept volumes of the class local-path, and the data in them, 0 KiB (local-volumes); --volumes removes them") {
		t.Errorf("%v; it says:\n%s", err, out)
	}
	// Again, and with images and volumes.
	elsewhere := t.TempDir() // the same on a disk of its own, beside what is somebody else's
	for _, name := range []string{"pvc-2_ns_data/file", ".coracle-volumes", "theirs/file"} {
		path := filepath.Join(elsewhere, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, out = config(dir)
	c.VolumesDir = elsewhere
	if err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), elsewhere+"/pvc-2_ns_data") || len(files(t, elsewhere)) != 3 {
		t.Errorf("it says:\n%s", out)
	}
	c, out = config(dir)
	c.VolumesDir, c.Volumes = elsewhere, true
	if err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := files(t, elsewhere); !slices.Equal(got, []string{"theirs/file"}) {
		t.Errorf("left on the other disk: %q; it says:\n%s", got, out)
	}
	c, out = config(dir)
	c.Images, c.Volumes = true, true
	if err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); !slices.Equal(got, []string{"static-pods/mine.yaml"}) || strings.Contains(out.String(), "Kept images") {
		t.Errorf("left %q; it says:\n%s", got, out)
	}
}

func TestNothingIsRemovedThatRunsOrIsMounted(t *testing.T) {
	dir := board(t)
	all := files(t, dir)
	c, out := config(dir)
	broken := errors.New("containerd doesn't answer")
	c.Stop = func(context.Context) ([]string, error) { return nil, broken }
	if err := Run(t.Context(), c); !errors.Is(err, broken) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("error %v", err)
	}
	if !slices.Equal(files(t, dir), all) {
		t.Error("something was removed although pods run")
	}
	c.MountsBelow = func(path string) ([]string, error) {
		if strings.HasSuffix(path, "pods") {
			return []string{path + "/uid/volumes/host"}, nil
		}
		return nil, nil
	}
	c.Force = true
	if err := Run(t.Context(), c); !errors.Is(err, ErrMounted) || !strings.Contains(err.Error(), "umount "+dir) {
		t.Errorf("error %v", err)
	}
	if !slices.Equal(files(t, dir), all) {
		t.Error("something was removed although something is mounted")
	}
	c.MountsBelow = func(string) ([]string, error) { return nil, nil }
	if err := Run(t.Context(), c); err != nil || !strings.Contains(out.String(), "Left running, because of --force: containerd doesn't answer") {
		t.Errorf("%v; it says:\n%s", err, out)
	}
	if len(files(t, dir)) != 4 {
		t.Errorf("left %q", files(t, dir))
	}
}

// A reset that was cut off is done to the end by the next one: the state file,
// whose lock keeps agents out, goes last.
func TestTheStateFileGoesLast(t *testing.T) {
	last := goes[len(goes)-1]
	if !slices.Contains(last.names, "state.db") {
		t.Errorf("the last part is %v", last)
	}
	for _, p := range goes[:len(goes)-1] {
		if slices.Contains(p.names, "state.db") {
			t.Error("the state file goes early")
		}
	}
	dir := board(t)
	c, _ := config(dir)
	for _, p := range goes[:3] { // as far as it came
		found, err := p.find(dir)
		if err != nil || len(found) == 0 {
			t.Fatal(p, found, err)
		}
		for _, path := range found {
			os.RemoveAll(path)
		}
	}
	if err := Run(t.Context(), c); err != nil || len(files(t, dir)) != 4 {
		t.Errorf("%v, left %q", err, files(t, dir))
	}
}
