package images

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const private = "reg.example.com/private/app:1"

func pullSecret(namespace, name, uid, user string) []*v1.Secret {
	return []*v1.Secret{{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)}, Type: v1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(`{"auths":{"reg.example.com":{"username":"` + user + `","password":"p"}}}`)}}}
}

// guarded is a registry that wants to know who asks.
func guarded() *fakeService {
	return &fakeService{present: map[string]string{"reg.example.com/preloaded:1": KindOCI},
		accept: func(a *runtimeapi.AuthConfig) bool { return a.GetUsername() == "alice" || a.GetUsername() == "bob" }}
}

// Who could not pull an image doesn't get it because another pod could.
func TestImagesPulledWithCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pulls.json")
	f := guarded()
	p := New(Config{Service: f, AccessFile: file})
	uid := 0
	try := func(what string, r Request, pulls int, refused string) {
		t.Helper()
		uid++
		r.PodUID = strings.Repeat("u", uid) // no back-off of another's
		before := len(f.pulls)
		_, err := p.Ensure(t.Context(), r)
		var e *Error
		if errors.As(err, &e); (err == nil) != (refused == "") || err != nil && !strings.Contains(e.Reason+": "+e.Message, refused) {
			t.Errorf("%s: %v, want %q", what, err, refused)
		}
		if n := len(f.pulls) - before; n != pulls {
			t.Errorf("%s: %d pulls, want %d", what, n, pulls)
		}
	}
	const foreign = "was pulled with credentials that this pod doesn't have"
	ifNotPresent := func(s []*v1.Secret) Request {
		return Request{Image: private, Policy: v1.PullIfNotPresent, Secrets: s}
	}

	try("one who can", ifNotPresent(pullSecret("a", "s", "1", "alice")), 1, "")
	for _, when := range []string{"", ", after a restart"} {
		try("the same again"+when, ifNotPresent(pullSecret("a", "s", "1", "alice")), 0, "")
		try("nobody"+when, ifNotPresent(nil), 1, foreign)
		try("a stranger"+when, ifNotPresent(pullSecret("b", "s", "9", "mallory")), 1, foreign)
		try("nobody who doesn't pull"+when, Request{Image: private, Policy: v1.PullNever}, 0, ReasonNeverPull)
		try("the same credentials elsewhere"+when, ifNotPresent(pullSecret("b", "t", "2", "alice")), 0, "")
		try("the same Secret, renewed"+when, ifNotPresent(pullSecret("a", "s", "1", "renewed")), 0, "")
		try("another Secret of that name"+when, ifNotPresent(pullSecret("a", "s", "3", "mallory")), 1, foreign)
		try("a container that ran from it"+when, Request{Image: private, Policy: v1.PullIfNotPresent, Local: true, LocalFirst: true}, 0, "")
		try("what was here before"+when, Request{Image: "reg.example.com/preloaded:1", Policy: v1.PullIfNotPresent}, 0, "")
		p = New(Config{Service: f, AccessFile: file})
	}
	try("another who can", ifNotPresent(pullSecret("b", "s", "4", "bob")), 1, "")
	try("he again", ifNotPresent(pullSecret("b", "s", "4", "bob")), 0, "")
	if raw, err := os.ReadFile(file); err != nil || strings.Contains(string(raw), "alice") || strings.Contains(string(raw), `"p"`) {
		t.Errorf("%s, %v", raw, err)
	}
	f.accept = nil
	try("nobody, now that the registry asks nobody", ifNotPresent(nil), 1, "")
	try("nobody again", ifNotPresent(nil), 0, "")
}

// The power goes while an image is pulled: it may be there, and nobody's who asks.
func TestAPullWithCredentialsThatWasCutOff(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pulls.json")
	if err := os.WriteFile(file, []byte(`{"salt":"AAAA","pulling":{"`+private+`":true}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	f := guarded()
	f.present[private] = KindOCI
	p := New(Config{Service: f, AccessFile: file})
	for _, pod := range []string{"one", "two"} { // the first's failure changes nothing
		for _, secrets := range [][]*v1.Secret{nil, pullSecret("b", "s", "9", "mallory")} {
			if _, err := p.Ensure(t.Context(), Request{PodUID: pod, Image: private, Policy: v1.PullIfNotPresent, Secrets: secrets}); err == nil {
				t.Errorf("%s with %d Secrets got it", pod, len(secrets))
			}
			p.Forget(pod)
		}
	}
	if _, err := p.Ensure(t.Context(), Request{PodUID: "three", Image: private, Policy: v1.PullIfNotPresent, Secrets: pullSecret("a", "s", "1", "alice")}); err != nil {
		t.Error(err)
	}
}

func TestImagesOfWhichNothingCanBeRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pulls.json")
	if err := os.WriteFile(file, []byte(`{"salt"`), 0o600); err != nil {
		t.Fatal(err)
	}
	f := guarded()
	f.present[private] = KindOCI
	request := Request{Image: private, Policy: v1.PullIfNotPresent}
	if _, err := New(Config{Service: f, AccessFile: file}).Ensure(t.Context(), request); err == nil {
		t.Error("it was anybody's")
	}
	if _, err := New(Config{Service: f, AccessFile: file, Shared: true}).Ensure(t.Context(), request); err != nil {
		t.Error("all images are everybody's:", err)
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte(`{"salt":"AAAA","pulling":{"a":true},"images":{"sha256:1":{"r/a":{"all":true,"secrets":[{"name":"s"}]}}}}`))
	f.Add([]byte(`{"salt":"AAAA","images":{"sha256:1":null}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		kept, err := decodeAccess(raw)
		if err != nil {
			return
		}
		if len(kept.Salt) == 0 || len(kept.Pulling)+len(kept.Images) > maxPrivate {
			t.Errorf("%+v", kept)
		}
		for ref, repos := range kept.Images {
			if repos == nil {
				t.Errorf("%q is nothing", ref)
			}
		}
		if again, err := json.Marshal(kept); err != nil {
			t.Error(err)
		} else if _, err := decodeAccess(again); err != nil {
			t.Error(err)
		}
	})
}
