package crishim

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pluginConfig is what is needed of the configuration of containerd's CRI plugin,
// as that prints it in its verbose status. 1.6 says some things nowhere else.
type pluginConfig struct {
	// SandboxImage is of 1.x; 2.x names it elsewhere, and pins it by itself.
	SandboxImage  string `json:"sandboxImage"`
	SystemdCgroup bool   `json:"systemdCgroup"`
	// EnableCDI says that it puts CDI devices into containers: 1.7 if told so, and 2.x
	// if not told otherwise. 1.6 doesn't know them.
	EnableCDI  bool `json:"enableCDI"`
	Containerd struct {
		DefaultRuntimeName string `json:"defaultRuntimeName"`
		Runtimes           map[string]struct {
			Options struct{ SystemdCgroup bool } `json:"options"`
		} `json:"runtimes"`
	} `json:"containerd"`
}

// parsePluginConfig is zero for what it doesn't understand.
func parsePluginConfig(raw string) pluginConfig {
	var c pluginConfig
	if json.Unmarshal([]byte(raw), &c) != nil {
		return pluginConfig{}
	}
	return c
}

// systemdCgroups says whether the default runtime's containers are in cgroups of
// systemd's.
func (c pluginConfig) systemdCgroups() bool {
	return c.SystemdCgroup || c.Containerd.Runtimes[c.Containerd.DefaultRuntimeName].Options.SystemdCgroup
}

// sandboxImageAge is how long containerd's word for its sandbox image is kept: it
// changes only when containerd is restarted.
const sandboxImageAge = 10 * time.Minute

// sandboxImage remembers the image of containerd's sandboxes.
type sandboxImage struct {
	mu   sync.Mutex
	name string
	at   time.Time
}

// sandboxImage is the image that containerd makes sandboxes of: a kubelet that is
// short of space must not remove it, an offline board can't pull it again. Empty
// if it isn't known.
func (s *Service) sandboxImage(ctx context.Context) string {
	i := &s.pause
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.at.IsZero() && s.now().Sub(i.at) < sandboxImageAge {
		return i.name
	}
	resp, err := s.askContainerd(ctx, true)
	if err != nil {
		return i.name
	}
	i.name, i.at = parsePluginConfig(resp.GetInfo()["config"]).SandboxImage, s.now()
	return i.name
}

// pinned says whether an image is one that containerd's sandboxes are made of.
func pinned(img *runtimeapi.Image, names ...string) bool {
	for _, tag := range append(img.GetRepoTags(), img.GetRepoDigests()...) {
		for _, n := range names {
			if n != "" && tag == n {
				return true
			}
		}
	}
	return false
}
