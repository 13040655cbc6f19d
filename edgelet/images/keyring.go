package images

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// dockerAuth is one entry of a docker config file.
type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// credentials returns the pull secrets' entries that match image, the most
// specific first, as a kubelet's keyring orders them.
func credentials(secrets []*v1.Secret, image string) ([]pullAuth, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil, err
	}
	repo := named.Name()
	type match struct {
		pattern string
		auth    pullAuth
	}
	var matches []match
	for _, s := range secrets {
		entries, err := dockerConfig(s)
		if err != nil {
			return nil, fmt.Errorf("imagePullSecret %s/%s: %w", s.Namespace, s.Name, err)
		}
		for pattern, e := range entries {
			pattern = normalizeRegistry(pattern)
			if !registryMatches(pattern, repo) {
				continue
			}
			auth, err := e.config(pattern)
			if err != nil {
				return nil, fmt.Errorf("imagePullSecret %s/%s: %w", s.Namespace, s.Name, err)
			}
			matches = append(matches, match{pattern, pullAuth{auth, grantOf(s)}})
		}
	}
	sort.SliceStable(matches, func(i, j int) bool { return matches[i].pattern > matches[j].pattern })
	auths := make([]pullAuth, len(matches))
	for i, m := range matches {
		auths[i] = m.auth
	}
	return auths, nil
}

func dockerConfig(s *v1.Secret) (map[string]dockerAuth, error) {
	if raw, ok := s.Data[v1.DockerConfigJsonKey]; ok && s.Type == v1.SecretTypeDockerConfigJson {
		var f struct {
			Auths map[string]dockerAuth `json:"auths"`
		}
		if err := json.Unmarshal(raw, &f); err != nil {
			return nil, fmt.Errorf("data[%q] is not a docker config file", v1.DockerConfigJsonKey)
		}
		return f.Auths, nil
	}
	if raw, ok := s.Data[v1.DockerConfigKey]; ok && s.Type == v1.SecretTypeDockercfg {
		var f map[string]dockerAuth
		if err := json.Unmarshal(raw, &f); err != nil {
			return nil, fmt.Errorf("data[%q] is not a docker config file", v1.DockerConfigKey)
		}
		return f, nil
	}
	return nil, nil
}

func (a dockerAuth) config(server string) (*runtimeapi.AuthConfig, error) {
	c := &runtimeapi.AuthConfig{Username: a.Username, Password: a.Password,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth != "" {
		plain, err := base64.StdEncoding.DecodeString(strings.TrimRight(a.Auth, "\n"))
		if err != nil {
			if plain, err = base64.RawStdEncoding.DecodeString(a.Auth); err != nil {
				return nil, fmt.Errorf("the auth of %q is not base64", server)
			}
		}
		user, password, ok := strings.Cut(string(plain), ":")
		if !ok {
			return nil, fmt.Errorf("the auth of %q is not user:password", server)
		}
		c.Username, c.Password = user, password
	}
	return c, nil
}

// normalizeRegistry strips scheme and API version: keys of docker config files
// are hosts, hosts with a path, or URLs.
func normalizeRegistry(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	for _, v := range []string{"/v1", "/v2"} {
		key = strings.TrimSuffix(key, v)
	}
	if key == "index.docker.io" || key == "registry-1.docker.io" {
		key = "docker.io"
	}
	return key
}

// registryMatches reports whether repo lies under pattern. Labels of the
// pattern's host may be globs that don't cross dots; its path is a prefix; a
// port must be equal.
func registryMatches(pattern, repo string) bool {
	patternHost, patternPath, _ := strings.Cut(pattern, "/")
	host, repoPath, _ := strings.Cut(repo, "/")
	if !strings.HasPrefix(repoPath, patternPath) {
		return false
	}
	patternName, patternPort, _ := strings.Cut(patternHost, ":")
	name, port, _ := strings.Cut(host, ":")
	if patternPort != port {
		return false
	}
	patternLabels, labels := strings.Split(patternName, "."), strings.Split(name, ".")
	if len(patternLabels) != len(labels) {
		return false
	}
	for i := range labels {
		if ok, err := path.Match(patternLabels[i], labels[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
