package volumes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/downward"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

const (
	defaultFileMode = 0o644
	// minTokenRefresh keeps a clock that runs wild from busying the node.
	minTokenRefresh = time.Minute
)

// setUp makes one volume and notes where it is.
func (m *Manager) setUp(ctx context.Context, pod *v1.Pod, v *v1.Volume, out *Mounted) error {
	var path string
	var readOnly bool
	var err error
	switch s := v.VolumeSource; {
	case s.EmptyDir != nil:
		path, err = m.emptyDir(pod, v.Name, s.EmptyDir)
	case s.HostPath != nil:
		path, err = s.HostPath.Path, checkHostPath(s.HostPath)
	case s.ConfigMap != nil:
		readOnly = true
		var files map[string]file
		if files, err = m.configMapFiles(pod, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.DefaultMode, s.ConfigMap.Optional); err == nil {
			path, err = m.write(pod, "configmap", v.Name, files)
		}
	case s.Secret != nil:
		readOnly = true
		var files map[string]file
		if files, err = m.secretFiles(pod, s.Secret.SecretName, s.Secret.Items, s.Secret.DefaultMode, s.Secret.Optional); err == nil {
			path, err = m.write(pod, "secret", v.Name, files)
		}
	case s.DownwardAPI != nil:
		readOnly = true
		var files map[string]file
		if files, err = m.downwardFiles(pod, s.DownwardAPI.Items, s.DownwardAPI.DefaultMode); err == nil {
			path, err = m.write(pod, "downward-api", v.Name, files)
		}
	case s.Projected != nil:
		readOnly = true
		path, err = m.projected(ctx, pod, v.Name, s.Projected, out)
	case s.Image != nil:
		out.Images[v.Name], readOnly = s.Image, true
	case s.PersistentVolumeClaim != nil:
		return m.claimed(ctx, pod, v.Name, s.PersistentVolumeClaim.ClaimName, s.PersistentVolumeClaim.ReadOnly, false, out)
	case s.Ephemeral != nil:
		return m.claimed(ctx, pod, v.Name, pod.Name+"-"+v.Name, false, true, out)
	case s.CSI != nil:
		return m.inlineCSI(ctx, pod, v.Name, s.CSI, out)
	case s.NFS != nil:
		readOnly = s.NFS.ReadOnly
		path, err = m.nfs(ctx, pod, v.Name, s.NFS, nil)
	default:
		return unsupported(sourceName(&v.VolumeSource))
	}
	if err != nil {
		return err
	}
	out.Paths[v.Name] = path
	out.ReadOnly[v.Name] = readOnly
	return nil
}

func (m *Manager) configMapFiles(pod *v1.Pod, name string, items []v1.KeyToPath, mode *int32, optional *bool) (map[string]file, error) {
	raw, found, err := m.Objects.Object("ConfigMap", pod.Namespace, name)
	if err != nil {
		return nil, err
	}
	cm := new(v1.ConfigMap)
	if !found {
		if optional == nil || !*optional {
			return nil, fmt.Errorf("configmap %q %w", name, ErrNotFound)
		}
	} else if cm, err = kubeobj.ConfigMap(raw); err != nil {
		return nil, err
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return selectKeys("configmap", name, data, items, mode, optional)
}

func (m *Manager) secretFiles(pod *v1.Pod, name string, items []v1.KeyToPath, mode *int32, optional *bool) (map[string]file, error) {
	raw, found, err := m.Objects.Object("Secret", pod.Namespace, name)
	if err != nil {
		return nil, err
	}
	s := new(v1.Secret)
	if !found {
		if optional == nil || !*optional {
			return nil, fmt.Errorf("secret %q %w", name, ErrNotFound)
		}
	} else if s, err = kubeobj.Secret(raw); err != nil {
		return nil, err
	}
	return selectKeys("secret", name, s.Data, items, mode, optional)
}

func selectKeys(kind, name string, data map[string][]byte, items []v1.KeyToPath, mode *int32, optional *bool) (map[string]file, error) {
	files := make(map[string]file, len(data))
	if len(items) == 0 {
		for k, v := range data {
			files[k] = file{data: v, mode: fileMode(nil, mode)}
		}
		return files, nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return nil, fmt.Errorf("%s references non-existent %s key: %s: %w", name, kind, item.Key, ErrNotFound)
		}
		files[item.Path] = file{data: v, mode: fileMode(item.Mode, mode)}
	}
	return files, nil
}

func (m *Manager) downwardFiles(pod *v1.Pod, items []v1.DownwardAPIVolumeFile, mode *int32) (map[string]file, error) {
	files := make(map[string]file, len(items))
	for _, item := range items {
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = downward.Field(pod, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			var allocatable v1.ResourceList
			if m.Allocatable != nil {
				allocatable = m.Allocatable()
			}
			value, err = downward.Resource(pod, "", item.ResourceFieldRef, allocatable)
		default:
			err = fmt.Errorf("%w: item %q has neither fieldRef nor resourceFieldRef", ErrInvalid, item.Path)
		}
		if err != nil {
			return nil, err
		}
		files[item.Path] = file{data: []byte(value), mode: fileMode(item.Mode, mode)}
	}
	return files, nil
}

func (m *Manager) projected(ctx context.Context, pod *v1.Pod, name string, s *v1.ProjectedVolumeSource, out *Mounted) (string, error) {
	files := map[string]file{}
	for _, source := range s.Sources {
		var add map[string]file
		var err error
		switch {
		case source.ConfigMap != nil:
			add, err = m.configMapFiles(pod, source.ConfigMap.Name, source.ConfigMap.Items, s.DefaultMode, source.ConfigMap.Optional)
		case source.Secret != nil:
			add, err = m.secretFiles(pod, source.Secret.Name, source.Secret.Items, s.DefaultMode, source.Secret.Optional)
		case source.DownwardAPI != nil:
			add, err = m.downwardFiles(pod, source.DownwardAPI.Items, s.DefaultMode)
		case source.ServiceAccountToken != nil:
			add, err = m.tokenFile(ctx, pod, name, source.ServiceAccountToken, s.DefaultMode, out)
		default:
			err = fmt.Errorf("%w: a projected source other than configMap, downwardAPI, secret, serviceAccountToken", ErrUnsupported)
		}
		if err != nil {
			return "", err
		}
		for k, v := range add {
			files[k] = v
		}
	}
	return m.write(pod, "projected", name, files)
}

// tokenFile returns the token that is in the volume while it is fresh, so that
// SetUp is idempotent, and a new one otherwise.
func (m *Manager) tokenFile(ctx context.Context, pod *v1.Pod, volume string, s *v1.ServiceAccountTokenProjection, mode *int32, out *Mounted) (map[string]file, error) {
	if m.Token == nil {
		return nil, fmt.Errorf("%w: serviceAccountToken (this node has no identity; join it to a cluster first)", ErrUnsupported)
	}
	lifetime := time.Hour
	if s.ExpirationSeconds != nil {
		lifetime = time.Duration(*s.ExpirationSeconds) * time.Second
	}
	now := m.Now()
	path := filepath.Join(m.path(pod, "projected", volume), s.Path)
	token, issued, expires, ok := readToken(path)
	refresh := issued.Add(expires.Sub(issued) * 8 / 10)
	// A token from the future is one that a wrong clock dated.
	if !ok || !now.Before(refresh) || now.Before(issued.Add(-minTokenRefresh)) {
		fresh, until, err := m.Token(ctx, TokenRequest{Namespace: pod.Namespace, Pod: pod.Name, PodUID: string(pod.UID),
			ServiceAccount: pod.Spec.ServiceAccountName, Node: pod.Spec.NodeName, Audience: s.Audience, Lifetime: lifetime})
		switch {
		case err == nil:
			token, refresh = fresh, now.Add(max(until.Sub(now)*8/10, minTokenRefresh))
		case ok && ctx.Err() == nil && now.Before(expires) && !now.Before(issued):
			// It is good for a while yet (upstream: token_manager.go), and so is the rest
			// of the volume.
			m.Log.Warn("a token can't be renewed yet", "pod", pod.Namespace+"/"+pod.Name, "volume", volume, "expires", expires, "err", err)
			refresh = now.Add(minTokenRefresh)
		default:
			return nil, fmt.Errorf("failed to fetch token: %w", err)
		}
	}
	out.refreshBy(refresh)
	f := file{data: []byte(token), mode: fileMode(nil, mode), user: fsUser(pod)}
	if f.user != nil || fsGroup(pod) != nil {
		f.mode = 0o600 // whoever it is for can read it (upstream: projected.go)
	}
	return map[string]file{s.Path: f}, nil
}

// write puts files into a volume by an atomic swap.
func (m *Manager) write(pod *v1.Pod, plugin, name string, files map[string]file) (string, error) {
	dir := m.path(pod, plugin, name)
	if err := m.memoryDir(dir, 0); err != nil {
		return "", err
	}
	owned := ownership{group: fsGroup(pod), readOnly: true}
	if owned.group != nil {
		for name, f := range files {
			f.mode |= maskRead
			files[name] = f
		}
	}
	// The whole of it, as upstream: its root has setgid, so the links have the group.
	return dir, writeAtomically(dir, files, m.Now(), func(string) error { return owned.apply(dir) })
}

func fileMode(item, def *int32) os.FileMode {
	switch {
	case item != nil:
		return os.FileMode(*item) & os.ModePerm
	case def != nil:
		return os.FileMode(*def) & os.ModePerm
	}
	return defaultFileMode
}
