package csi

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coracle-edge/coracle/edgelet/rawcall"
)

// The messages of csi.v1's Node service that a node uses; field numbers are those
// of github.com/container-storage-interface/spec, csi.proto.

// Capabilities of a driver's node service, bits by NodeServiceCapability.RPC.Type.
type capabilities uint32

const (
	capStage       capabilities = 1 << 1 // STAGE_UNSTAGE_VOLUME
	capStats       capabilities = 1 << 2 // GET_VOLUME_STATS
	capExpand      capabilities = 1 << 3 // EXPAND_VOLUME
	capMultiWriter capabilities = 1 << 5 // SINGLE_NODE_MULTI_WRITER
	capMountGroup  capabilities = 1 << 6 // VOLUME_MOUNT_GROUP
)

func (c capabilities) has(x capabilities) bool { return c&x != 0 }

// Access modes as the API names them, and as CSI numbers them
// (VolumeCapability.AccessMode.Mode). Drivers that know single-node writers tell
// one pod from several (KEP 2485).
func accessMode(mode string, caps capabilities) int64 {
	const (
		unknown, singleWriter, multiReader, multiWriter = 0, 1, 3, 5
		singleNodeSingleWriter, singleNodeMultiWriter   = 6, 7
	)
	switch mode {
	case "ReadWriteOnce":
		if caps.has(capMultiWriter) {
			return singleNodeMultiWriter
		}
		return singleWriter
	case "ReadWriteOncePod":
		if caps.has(capMultiWriter) {
			return singleNodeSingleWriter
		}
		return singleWriter
	case "ReadOnlyMany":
		return multiReader
	case "ReadWriteMany":
		return multiWriter
	}
	return unknown
}

// capability is the VolumeCapability of a volume.
func (v *Volume) capability(caps capabilities, group string) rawcall.Message {
	var m, access, mode rawcall.Message
	if v.Block {
		m.Bytes(1, nil)
	} else {
		access.String(1, v.FSType)
		for _, flag := range v.MountOptions {
			access.String(2, flag)
		}
		access.String(3, group)
		m.Bytes(2, access)
	}
	mode.Int(1, accessMode(v.AccessMode, caps))
	m.Bytes(3, mode)
	return m
}

func (v *Volume) stageRequest(staging string, caps capabilities, group string) rawcall.Message {
	var m rawcall.Message
	m.String(1, v.Handle)
	m.Map(2, v.PublishContext)
	m.String(3, staging)
	m.Bytes(4, v.capability(caps, group))
	m.Map(5, v.StageSecrets)
	m.Map(6, v.StageAttributes)
	return m
}

func (v *Volume) publishRequest(staging, target string, caps capabilities, group string) rawcall.Message {
	var m rawcall.Message
	m.String(1, v.Handle)
	m.Map(2, v.PublishContext)
	m.String(3, staging)
	m.String(4, target)
	m.Bytes(5, v.capability(caps, group))
	m.Bool(6, v.ReadOnly)
	m.Map(7, v.PublishSecrets)
	m.Map(8, v.Attributes)
	return m
}

// pathRequest is a NodeUnstageVolumeRequest or a NodeUnpublishVolumeRequest.
func pathRequest(handle, path string) rawcall.Message {
	var m rawcall.Message
	m.String(1, handle)
	m.String(2, path)
	return m
}

func (v *Volume) expandRequest(path, staging string, bytes int64, caps capabilities) rawcall.Message {
	var m, capacity rawcall.Message
	m.String(1, v.Handle)
	m.String(2, path)
	capacity.Int(1, bytes)
	m.Bytes(3, capacity)
	m.String(4, staging)
	m.Bytes(5, v.capability(caps, ""))
	m.Map(6, v.ExpandSecrets)
	return m
}

func statsRequest(handle, path, staging string) rawcall.Message {
	var m rawcall.Message
	m.String(1, handle)
	m.String(2, path)
	m.String(3, staging)
	return m
}

// Info is what a driver says of itself and this node.
type Info struct {
	NodeID string
	// Limit is how many volumes fit, 0 if the driver doesn't say.
	Limit    int64
	Topology map[string]string
}

func decodeInfo(raw []byte) (Info, error) {
	i := Info{Topology: map[string]string{}}
	err := rawcall.Fields(raw, func(field protowire.Number, value []byte) error {
		switch field {
		case 1:
			i.NodeID = string(value)
		case 3:
			return rawcall.Fields(value, func(field protowire.Number, value []byte) error {
				if field != 1 {
					return nil
				}
				return rawcall.MapEntry(value, i.Topology)
			}, nil)
		}
		return nil
	}, func(field protowire.Number, value uint64) {
		if field == 2 {
			i.Limit = int64(value)
		}
	})
	if err == nil && i.NodeID == "" {
		err = fmt.Errorf("%w: no node ID", rawcall.ErrMalformed)
	}
	return i, err
}

func decodeCapabilities(raw []byte) (capabilities, error) {
	var c capabilities
	err := rawcall.Fields(raw, func(field protowire.Number, value []byte) error {
		if field != 1 {
			return nil
		}
		return rawcall.Fields(value, func(field protowire.Number, value []byte) error {
			if field != 1 {
				return nil
			}
			return rawcall.Fields(value, nil, func(field protowire.Number, n uint64) {
				if field == 1 && n < 32 {
					c |= 1 << n
				}
			})
		}, nil)
	}, nil)
	return c, err
}

// Usage is what a volume holds; -1 is what the driver doesn't say.
type Usage struct {
	Available, Total, Used                   int64 // bytes
	InodesAvailable, InodesTotal, InodesUsed int64
	Abnormal                                 bool
	Message                                  string
}

func decodeUsage(raw []byte) (Usage, error) {
	u := Usage{-1, -1, -1, -1, -1, -1, false, ""}
	err := rawcall.Fields(raw, func(field protowire.Number, value []byte) error {
		var n [5]int64
		var text string
		err := rawcall.Fields(value, func(field protowire.Number, value []byte) error {
			if field == 2 {
				text = string(value)
			}
			return nil
		}, func(field protowire.Number, v uint64) {
			if field < 5 {
				n[field] = int64(v)
			}
		})
		switch {
		case err != nil:
		case field == 1 && n[4] == 1: // BYTES
			u.Available, u.Total, u.Used = n[1], n[2], n[3]
		case field == 1 && n[4] == 2: // INODES
			u.InodesAvailable, u.InodesTotal, u.InodesUsed = n[1], n[2], n[3]
		case field == 2:
			u.Abnormal, u.Message = n[1] != 0, text
		}
		return err
	}, nil)
	return u, err
}

// capacityOf reads a NodeExpandVolumeResponse.
func capacityOf(raw []byte) (int64, error) {
	var n int64
	err := rawcall.Fields(raw, nil, func(field protowire.Number, v uint64) {
		if field == 1 {
			n = int64(v)
		}
	})
	return n, err
}

func (d *driver) call(ctx context.Context, method string, in rawcall.Message) ([]byte, error) {
	began := time.Now()
	out, err := rawcall.Call(ctx, d.endpoint, "/csi.v1.Node/"+method, in)
	if status.Code(err) == codes.DeadlineExceeded {
		err = fmt.Errorf("no answer from CSI driver %s within %s: %w", d.name, time.Since(began).Round(time.Millisecond), err)
	}
	return out, err
}
