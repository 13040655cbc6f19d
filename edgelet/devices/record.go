package devices

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// ErrRecord is returned when a record can't be read.
var ErrRecord = errors.New("unreadable record of devices")

// resourcesKey is no pod's UID.
const resourcesKey = "resources"

const recordVersion = 1

// podHeld is what the containers of a pod have, by container and resource.
type podHeld map[string]map[string]given

// given is what a plugin gave a container of its resource.
type given struct {
	IDs []string `json:"ids"`
	// Response is the plugin's pluginapi.ContainerAllocateResponse.
	Response []byte `json:"response,omitempty"`
	// PreStart: the plugin is to be asked before each start of the container.
	PreStart bool `json:"preStart,omitempty"`
}

// any reports whether a device of a resource that the pod has is such a one.
func (p podHeld) any(resource string, is func(id string) bool) bool {
	for _, c := range p {
		if slices.ContainsFunc(c[resource].IDs, is) {
			return true
		}
	}
	return false
}

type podRecord struct {
	Version    int     `json:"version"`
	Containers podHeld `json:"containers"`
}

func (p podHeld) encode() []byte {
	raw, err := json.Marshal(podRecord{recordVersion, p})
	if err != nil {
		panic(err) // strings and bytes only
	}
	return raw
}

func decodeRecord(raw []byte) (podHeld, error) {
	var r podRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%w: version %d, this agent knows %d", ErrRecord, r.Version, recordVersion)
	}
	for c, resources := range r.Containers {
		for name, g := range resources {
			if err := proto.Unmarshal(g.Response, new(pluginapi.ContainerAllocateResponse)); err != nil {
				return nil, fmt.Errorf("%w: container %q, resource %s: %w", ErrRecord, c, name, err)
			}
		}
	}
	return r.Containers, nil
}

type resourcesRecord struct {
	Version int      `json:"version"`
	Names   []string `json:"names"`
}

func encodeResources(names []string) []byte {
	raw, err := json.Marshal(resourcesRecord{recordVersion, names})
	if err != nil {
		panic(err) // strings only
	}
	return raw
}

func decodeResources(raw []byte) ([]string, error) {
	var r resourcesRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%w: version %d, this agent knows %d", ErrRecord, r.Version, recordVersion)
	}
	if len(r.Names) > maxResources {
		r.Names = r.Names[:maxResources]
	}
	return slices.DeleteFunc(r.Names, func(n string) bool { return checkName(n) != nil }), nil
}
