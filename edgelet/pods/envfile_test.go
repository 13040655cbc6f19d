package pods

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

func TestParseEnv(t *testing.T) {
	for name, c := range map[string]struct{ in, want, says string }{
		"plain":                 {"A='1'\nK='v'\n", "v", ""},
		"the first counts":      {"K='v'\nK='w'\n", "v", ""},
		"not there":             {"A='1'\n", "", ""},
		"empty file":            {"", "", ""},
		"comments and blanks":   {"# K='no'\n\n \t\n  K='v' # yes\n", "v", ""},
		"over lines":            {"K='one\n  two # no comment\nthree'\n", "one\n  two # no comment\nthree", ""},
		"= in it":               {"K='a=b'\n", "a=b", ""},
		"nothing is expanded":   {`K='$A "\n'` + "\n", `$A "\n`, ""},
		"space after =":         {"K= 'v'\n", "", ""},
		"space after = of else": {"A= junk\nK='v'\n", "v", ""},
		"no end of line":        {"K='v'", "v", ""},
		"after it all goes":     {"K='v'\njunk\n", "v", ""},
		"no =":                  {"A\nK='v'\n", "", "at line 1: missing '='"},
		"no name":               {"\n='v'\n", "", "at line 2: empty variable name"},
		"space before =":        {"K ='v'\n", "", "at line 1: whitespace before '=' is not allowed"},
		"no quotes":             {"K=v\n", "", "at line 1: value must be enclosed in single quotes"},
		"double quotes":         {"K=\"v\"\n", "", "value must be enclosed in single quotes"},
		"no value":              {"K=\n", "", "value must be enclosed in single quotes"},
		"never closed":          {"A='1'\nK='v\nB\n", "", "starting at line 2: unclosed single quote"},
		"more after it":         {"K='v''w'\n", "", "at line 1: unexpected content after closing quote"},
		"more after many":       {"K='v\nw' x\n", "", "at line 2: unexpected content after closing quote"},
		"a line without end":    {"K='" + strings.Repeat("x", 1<<17) + "'\n", "", "too long"},
	} {
		got, err := parseEnv(strings.NewReader(c.in), "K")
		if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func FuzzParseEnv(f *testing.F) {
	f.Add("K='v'\n", "K")
	f.Add("A=\n# K\nK='a\nb' # c", "K")
	f.Fuzz(func(t *testing.T, in, key string) {
		value, err := parseEnv(strings.NewReader(in), key)
		switch {
		case err != nil && value != "":
			t.Errorf("%q of %q: %q and %v", key, in, value, err)
		case strings.Contains(value, "'"):
			t.Errorf("%q of %q: %q has a quote", key, in, value)
		case value != "" && !strings.Contains(in, key+"='"):
			t.Errorf("%q of %q: %q comes from nowhere", key, in, value)
		}
	})
}

// What a pod puts into its volume leads the agent nowhere and holds it up with
// nothing.
func TestEnvFromFileStaysInTheVolume(t *testing.T) {
	dir := t.TempDir()
	volume := filepath.Join(dir, "volume")
	for path, text := range map[string]string{"secret": "K='secret'\n", "volume/sub/env": "K='v'\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"up": "../secret", "away": filepath.Join(dir, "secret"), "around": "sub/../../secret", "within": "sub/env"} {
		if err := os.Symlink(target, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(volume, "fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(volume, "sub", "env"), 6); err != nil {
		t.Fatal(err)
	}
	large, err := os.Create(filepath.Join(volume, "large"))
	if err != nil {
		t.Fatal(err)
	}
	for range maxEnvFile / 1000 * 2 {
		if _, err := large.WriteString(strings.Repeat("#", 999) + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	large.Close()
	for path, ok := range map[string]bool{"sub/env": true, "within": true, "sub/../sub/env": true,
		"up": false, "away": false, "around": false, "../secret": false, "fifo": false, "sub": false, "none": false, "large": false} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			if got, err := envFromFile(volume, path, "K"); (err == nil) != ok || ok != (got == "v") {
				t.Errorf("%s: %q, %v", path, got, err)
			}
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s is waited for", path)
		}
	}
}

func TestVariablesFromAFile(t *testing.T) {
	yes := true
	ref := func(volume, key string, optional *bool) []v1.EnvVar {
		return []v1.EnvVar{{Name: "WORD", ValueFrom: &v1.EnvVarSource{FileKeyRef: &v1.FileKeySelector{
			VolumeName: volume, Path: "env", Key: key, Optional: optional}}}, {Name: "MORE", Value: "more $(WORD)"}}
	}
	for name, c := range map[string]struct {
		env        []v1.EnvVar
		file, want string
		says       string
	}{
		"there":                {ref("v", "K", nil), "K='v'\n", "MORE=more v WORD=v", ""},
		"not there":            {ref("v", "N", nil), "K='v'\n", "", `environment variable key "N" not found in file`},
		"optional":             {ref("v", "N", &yes), "K='v'\n", "MORE=more $(WORD)", ""},
		"no file":              {ref("v", "K", &yes), "", "", "couldn't parse env file"},
		"none of its volumes":  {ref("other", "K", nil), "K='v'\n", "", `cannot find the volume "other" referenced by FileKeyRef`},
		"not written that way": {ref("v", "K", nil), "K=v\n", "", "couldn't parse env file"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				pod := testPod("a", withInit(ctr("init")))
				pod.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
				pod.Spec.InitContainers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v"}}
				pod.Spec.Containers[0].Env = c.env
				b.rt.Plan("init", plan(func(p *planT) { p.RunFor = time.Minute }))
				b.store.put(pod)
				b.settle(10 * time.Second)
				if c.file != "" { // what the init container writes
					if err := os.WriteFile(b.dir+"/pods/uid-a/volumes/kubernetes.io~empty-dir/v/env", []byte(c.file), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				b.settle(2 * time.Minute)
				var got []string
				for _, kv := range b.rt.Config("main").GetEnvs() {
					got = append(got, kv.Key+"="+string(kv.Value))
				}
				if strings.Join(got, " ") != c.want {
					t.Errorf("%q", got)
				}
				if s := b.store.status("uid-a"); c.says != "" {
					if w := s.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != reasonConfig || !strings.Contains(w.Message, c.says) {
						t.Errorf("%+v", s.ContainerStatuses[0].State)
					}
				}
			})
		})
	}
}
