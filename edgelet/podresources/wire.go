package podresources

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coracle-edge/coracle/edgelet/affinity"
	"github.com/coracle-edge/coracle/edgelet/claims"
	"github.com/coracle-edge/coracle/edgelet/devices"
	"github.com/coracle-edge/coracle/edgelet/rawcall"
)

// The messages of k8s.io/kubelet/pkg/apis/podresources/v1/api.proto. Those of
// v1alpha1 have the same numbers for the fields that they have.

// Container is what a container has for itself.
type Container struct {
	Name    string
	CPUs    affinity.Set
	Memory  []affinity.Block
	Devices []devices.Held
	Claims  []claims.Held
}

// Pod is a pod with its containers and sidecars.
type Pod struct {
	Namespace, Name string
	Containers      []Container
}

// Allocatable is what containers may have for themselves, whether one does or not.
type Allocatable struct {
	CPUs    affinity.Set
	Memory  []affinity.Block
	Devices []devices.Held
}

func (p *Pod) encode() []byte {
	var m rawcall.Message
	m.String(1, p.Name)
	m.String(2, p.Namespace)
	for i := range p.Containers {
		m.Bytes(3, p.Containers[i].encode())
	}
	return m
}

func (c *Container) encode() []byte {
	var m rawcall.Message
	m.String(1, c.Name)
	putDevices(&m, 2, c.Devices)
	putCPUs(&m, 3, c.CPUs)
	putMemory(&m, 4, c.Memory)
	for _, held := range c.Claims {
		m.Bytes(5, claim(held))
	}
	return m
}

// claim is a DynamicResource.
func claim(held claims.Held) rawcall.Message {
	var m rawcall.Message
	m.String(2, held.Name)
	m.String(3, held.Namespace)
	for _, d := range held.Devices {
		var one rawcall.Message
		for _, id := range d.CDI {
			var name rawcall.Message
			name.String(1, id)
			one.Bytes(1, name)
		}
		one.String(2, d.Driver)
		one.String(3, d.Pool)
		one.String(4, d.Device)
		one.String(5, d.Share)
		m.Bytes(4, one)
	}
	return m
}

func (a *Allocatable) encode() []byte {
	var m rawcall.Message
	putDevices(&m, 1, a.Devices)
	putCPUs(&m, 2, a.CPUs)
	putMemory(&m, 3, a.Memory)
	return m
}

// putDevices appends a message for each device and each node that it is near, as a
// kubelet does.
func putDevices(m *rawcall.Message, field protowire.Number, list []devices.Held) {
	for _, d := range list {
		nodes := d.Nodes.IDs()
		for i := range max(len(nodes), 1) {
			var one rawcall.Message
			one.String(1, d.Resource)
			one.Bytes(2, []byte(d.ID))
			if len(nodes) > 0 {
				one.Bytes(3, topology(nodes[i]))
			}
			m.Bytes(field, one)
		}
	}
}

func putCPUs(m *rawcall.Message, field protowire.Number, cpus affinity.Set) {
	var packed []byte
	for _, id := range cpus {
		packed = protowire.AppendVarint(packed, uint64(id))
	}
	if len(packed) > 0 {
		m.Bytes(field, packed)
	}
}

func putMemory(m *rawcall.Message, field protowire.Number, blocks []affinity.Block) {
	for _, b := range blocks {
		var one rawcall.Message
		one.String(1, b.Type)
		one.Int(2, int64(b.Bytes))
		one.Bytes(3, topology(b.Nodes.IDs()...))
		m.Bytes(field, one)
	}
}

func topology(nodes ...int) []byte {
	var m rawcall.Message
	for _, id := range nodes {
		var node rawcall.Message
		node.Int(1, int64(id))
		m.Bytes(1, node)
	}
	return m
}

// decodeGet reads a GetPodResourcesRequest.
func decodeGet(raw []byte) (namespace, name string, err error) {
	err = rawcall.Fields(raw, func(field protowire.Number, b []byte) error {
		switch field {
		case 1:
			name = string(b)
		case 2:
			namespace = string(b)
		}
		return nil
	}, nil)
	if err != nil {
		return "", "", fmt.Errorf("GetPodResourcesRequest: %w", err)
	}
	return namespace, name, nil
}
