package images

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/internal/durable"
)

// Bounds of what is remembered; images that are gone are looked for from pruneFrom on.
const (
	pruneFrom  = 32
	maxPrivate = 1024 // images, and pulls under way
	maxGrants  = 100  // Secrets of one repository of one image, as upstream
)

// errManyPrivate is returned when an image can't be pulled with credentials, because
// with which others were pulled would have to be forgotten.
var errManyPrivate = errors.New("too many images that were pulled with credentials are on this node")

// pullAuth is what a registry is shown, and the Secret it is from.
type pullAuth struct {
	auth   *runtimeapi.AuthConfig
	secret grant
}

// grant is a Secret that a registry took for an image. Hash is of the credentials,
// which a Secret in another namespace may have, too; it is keyed by the file's salt.
type grant struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
	Hash      string `json:"hash,omitempty"`
}

// access is who may use an image that is on the node: it was pulled with somebody's
// credentials, and another pod that names it, with IfNotPresent or Never, must not have
// it without (KEP-2535, KubeletEnsureSecretPulledImages, policy
// NeverVerifyPreloadedImages: an image of which nothing is known is everybody's).
//
// What is private is on the disk before its first byte is.
type access struct {
	path    string // empty: not kept over a restart
	present func(ctx context.Context, ref string) (bool, error)

	mu   sync.Mutex
	read bool
	kept accessFile
}

type accessFile struct {
	Salt []byte `json:"salt"`
	// Pulling are names that are being pulled with credentials, or were when the agent
	// ended.
	Pulling map[string]bool `json:"pulling,omitempty"`
	// Images are by the runtime's reference, then by repository.
	Images map[string]map[string]repoAccess `json:"images,omitempty"`
}

type repoAccess struct {
	All     bool    `json:"all,omitempty"` // the registry asked for none
	Secrets []grant `json:"secrets,omitempty"`
}

// may says whether a pod with these credentials may use the image of this name that is
// here as ref.
func (a *access) may(name, ref string, with []pullAuth) (bool, error) {
	repo, err := repository(name)
	if err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.load(); err != nil {
		return false, err
	}
	repos, private := a.kept.Images[ref]
	if !private {
		return !a.kept.Pulling[name], nil
	}
	r := repos[repo]
	if r.All {
		return true, nil
	}
	for _, p := range with {
		mine := a.hashed(p)
		for _, g := range r.Secrets {
			if g.Hash == mine.Hash || g.UID != "" && g.UID == mine.UID && g.Namespace == mine.Namespace && g.Name == mine.Name {
				return true, nil
			}
		}
	}
	return false, nil
}

// begin notes a pull with credentials. It is not fresh if another one of this name was
// noted and its end never was: what that left may be here.
func (a *access) begin(ctx context.Context, name string) (fresh bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.load(); err != nil {
		return false, err
	}
	if a.kept.Pulling[name] {
		return false, nil
	}
	if len(a.kept.Images) >= pruneFrom {
		a.prune(ctx)
	}
	if len(a.kept.Pulling)+len(a.kept.Images) >= maxPrivate {
		return false, fmt.Errorf("%w (%d): remove some", errManyPrivate, maxPrivate)
	}
	a.kept.Pulling[name] = true
	return true, a.store()
}

// failed notes that a pull which was begun fresh brought nothing.
func (a *access) failed(name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.load(); err != nil {
		return err
	}
	delete(a.kept.Pulling, name)
	return a.store()
}

// end notes with what an image was pulled.
func (a *access) end(name, ref string, with *pullAuth) error {
	repo, err := repository(name)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.load(); err != nil {
		return err
	}
	was := a.kept.Pulling[name]
	delete(a.kept.Pulling, name)
	repos := a.kept.Images[ref]
	switch {
	case with == nil && repos == nil:
		if !was {
			return nil // everybody's, as all that isn't noted
		}
		return a.store()
	case repos == nil:
		repos = map[string]repoAccess{}
		a.kept.Images[ref] = repos
	}
	r := repos[repo]
	if with == nil {
		if r.All && !was {
			return nil
		}
		repos[repo] = repoAccess{All: true}
		return a.store()
	}
	g := a.hashed(*with)
	if slices.Contains(r.Secrets, g) && !was {
		return nil
	}
	r.Secrets = slices.DeleteFunc(r.Secrets, func(o grant) bool { return o == g || o.UID == g.UID && o.Name == g.Name && o.Namespace == g.Namespace })
	r.Secrets = append(r.Secrets, g)
	if n := len(r.Secrets) - maxGrants; n > 0 {
		r.Secrets = r.Secrets[n:]
	}
	repos[repo] = r
	return a.store()
}

func (a *access) hashed(p pullAuth) grant {
	h := sha256.New()
	h.Write(a.kept.Salt)
	for _, s := range []string{p.auth.GetUsername(), p.auth.GetPassword(), p.auth.GetIdentityToken(), p.auth.GetRegistryToken()} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	g := p.secret
	g.Hash = hex.EncodeToString(h.Sum(nil))
	return g
}

// prune forgets images that are gone. It needs a.mu.
func (a *access) prune(ctx context.Context) {
	maps.DeleteFunc(a.kept.Images, func(ref string, _ map[string]repoAccess) bool {
		here, err := a.present(ctx, ref)
		return err == nil && !here
	})
}

// load needs a.mu. What can't be read is an error: whose the images are is not known.
func (a *access) load() error {
	if a.read {
		return nil
	}
	var raw []byte
	err := fs.ErrNotExist
	if a.path != "" {
		raw, err = os.ReadFile(a.path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.kept, err = accessFile{Salt: make([]byte, 16)}, nil
		if _, err := rand.Read(a.kept.Salt); err != nil {
			return err
		}
	case err == nil:
		a.kept, err = decodeAccess(raw)
	}
	if err != nil {
		return fmt.Errorf("with which credentials images were pulled can't be read: %w; remove %s, and all images on this node are every pod's", err, a.path)
	}
	if a.kept.Pulling == nil {
		a.kept.Pulling = map[string]bool{}
	}
	if a.kept.Images == nil {
		a.kept.Images = map[string]map[string]repoAccess{}
	}
	a.read = true
	return nil
}

func decodeAccess(raw []byte) (accessFile, error) {
	var f accessFile
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&f); err != nil {
		return accessFile{}, err
	}
	if n := len(f.Pulling) + len(f.Images); n > maxPrivate {
		return accessFile{}, fmt.Errorf("%d images, more than %d", n, maxPrivate)
	}
	if len(f.Salt) == 0 {
		return accessFile{}, errors.New("it has no salt")
	}
	for ref, repos := range f.Images {
		if repos == nil {
			f.Images[ref] = map[string]repoAccess{}
		}
	}
	return f, nil
}

// store needs a.mu.
func (a *access) store() error {
	if a.path == "" {
		return nil
	}
	raw, err := json.Marshal(a.kept)
	if err == nil {
		err = durable.WriteFile(a.path, raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keeping with which credentials an image is pulled: %w", err)
	}
	return nil
}

func repository(name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", err
	}
	return named.Name(), nil
}

func grantOf(s *v1.Secret) grant {
	return grant{Namespace: s.Namespace, Name: s.Name, UID: string(s.UID)}
}
