package wasm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// recordVersion is the schema of sandbox and container records.
const recordVersion = 1

// How a sandbox is connected.
const (
	netHost = "host" // asked for by the pod
	netNone = "none" // no CNI here: the host's network in place of its own
	netCNI  = "cni"
)

// sandboxRecord is what is kept of a sandbox.
type sandboxRecord struct {
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	Config    []byte    `json:"config"` // runtimeapi.PodSandboxConfig
	Handler   string    `json:"handler,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
	BootID    string    `json:"bootID"`
	// Ready is false while it is being made, and after it was stopped.
	Ready bool `json:"ready"`
	// Making is true until it is made: one found so is torn down.
	Making  bool     `json:"making,omitempty"`
	Network string   `json:"network"`
	NetNS   string   `json:"netns,omitempty"`
	IPs     []string `json:"ips,omitempty"`
	// Attached means that CNI was asked to attach it and not yet to detach it.
	Attached bool `json:"attached,omitempty"`
	// Cgroup is the pod's cgroup if it wasn't there before.
	Cgroup string `json:"cgroup,omitempty"`
	// Overhead and Resources are what UpdatePodSandboxResources said last.
	Overhead  *runtimeapi.LinuxContainerResources `json:"overhead,omitempty"`
	Resources *runtimeapi.LinuxContainerResources `json:"resources,omitempty"`
}

// containerRecord is what is kept of a container.
type containerRecord struct {
	Version   int    `json:"version"`
	ID        string `json:"id"`
	SandboxID string `json:"sandboxID"`
	// Foreign: the sandbox is another runtime's.
	Foreign  bool   `json:"foreign,omitempty"`
	Config   []byte `json:"config"` // runtimeapi.ContainerConfig
	ImageID  string `json:"imageID"`
	ImageRef string `json:"imageRef"`
	// VolumeImages are the IDs of the images of its volumes.
	VolumeImages []string         `json:"volumeImages,omitempty"`
	Module       string           `json:"module"`
	LogPath      string           `json:"logPath,omitempty"`
	CreatedAt    time.Time        `json:"createdAt"`
	BootID       string           `json:"bootID"`
	Spec         wasmruntime.Spec `json:"spec"`
	// StartedAt is zero until the guest has ended (while it runs, its runner's
	// own record says it).
	StartedAt time.Time               `json:"startedAt,omitzero"`
	Exit      *wasmruntime.ExitStatus `json:"exit,omitempty"`
	// RestAt is where in the log the rest of the output begins that the exit
	// record of the runner holds. It is there while that is being written.
	RestAt *logMark `json:"restAt,omitempty"`
}

func (r *sandboxRecord) config() (*runtimeapi.PodSandboxConfig, error) {
	c := &runtimeapi.PodSandboxConfig{}
	return c, proto.Unmarshal(r.Config, c)
}

func (r *containerRecord) config() (*runtimeapi.ContainerConfig, error) {
	c := &runtimeapi.ContainerConfig{}
	return c, proto.Unmarshal(r.Config, c)
}

// fieldMounts is the number of ContainerConfig.mounts.
const fieldMounts = 7

// mounts of a config that can be decoded, which isn't for their sake: each event has
// them. The field never changes, so no lock is needed.
func (r *containerRecord) mounts() (out []*runtimeapi.Mount) {
	for b := r.Config; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return out
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return out
		}
		if num == fieldMounts && typ == protowire.BytesType {
			raw, _ := protowire.ConsumeBytes(b)
			m := &runtimeapi.Mount{}
			if proto.Unmarshal(raw, m) != nil {
				return out
			}
			out = append(out, m)
		}
		b = b[n:]
	}
	return out
}

// writeRecord replaces a record by rename. durable syncs file and folder.
func writeRecord(path string, v any, durable bool) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	if durable {
		d, err := os.Open(filepath.Dir(path))
		if err != nil {
			return err
		}
		return errors.Join(d.Sync(), d.Close())
	}
	return nil
}

func readRecord(path string, into any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
