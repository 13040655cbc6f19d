package kubeobj

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// CSIDriver is what a node acts on of a storage.k8s.io/v1 CSIDriver. The type
// itself is not linked; field numbers are those of its generated.proto.
type CSIDriver struct {
	AttachRequired, PodInfoOnMount, RequiresRepublish, TokenInSecrets bool
	LifecycleModes                                                    []string // Persistent if empty
	FSGroupPolicy                                                     string
	TokenRequests                                                     []TokenRequest
}

// TokenRequest is a token that a driver wants of each pod.
type TokenRequest struct {
	Audience          string
	ExpirationSeconds int64 // 0 if it isn't said
}

// VolumeAttachment is what a node acts on of a storage.k8s.io/v1
// VolumeAttachment.
type VolumeAttachment struct {
	Attached bool
	Metadata map[string]string
	Error    string // of the last attempt
}

// parts splits a raw object of a kind into its top fields.
func parts(raw []byte, kind string, f func(protowire.Number, []byte) error) error {
	h, payload, err := Split(raw)
	if err == nil && h.Kind != kind {
		err = fmt.Errorf("%w %q", ErrKind, h.Kind)
	}
	if err == nil {
		err = fields(payload, f)
	}
	if err != nil {
		return fmt.Errorf("decoding a %s: %w", kind, err)
	}
	return nil
}

// DecodeCSIDriver reads a raw CSIDriver.
func DecodeCSIDriver(raw []byte) (CSIDriver, error) {
	d := CSIDriver{AttachRequired: true} // where the field isn't set
	err := parts(raw, "CSIDriver", func(num protowire.Number, spec []byte) error {
		if num != 2 {
			return nil
		}
		err := fields(spec, func(num protowire.Number, value []byte) error {
			switch num {
			case 3:
				d.LifecycleModes = append(d.LifecycleModes, string(value))
			case 5:
				d.FSGroupPolicy = string(value)
			case 6:
				var t TokenRequest
				err := fields(value, func(num protowire.Number, value []byte) error {
					if num == 1 {
						t.Audience = string(value)
					}
					return nil
				})
				if err != nil {
					return err
				}
				err = varints(value, func(num protowire.Number, v uint64) {
					if num == 2 {
						t.ExpirationSeconds = int64(v)
					}
				})
				d.TokenRequests = append(d.TokenRequests, t)
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
		return varints(spec, func(num protowire.Number, v uint64) {
			switch yes := v != 0; num {
			case 1:
				d.AttachRequired = yes
			case 2:
				d.PodInfoOnMount = yes
			case 7:
				d.RequiresRepublish = yes
			case 10:
				d.TokenInSecrets = yes
			}
		})
	})
	return d, err
}

// DecodeVolumeAttachment reads a raw VolumeAttachment.
func DecodeVolumeAttachment(raw []byte) (VolumeAttachment, error) {
	a := VolumeAttachment{}
	err := parts(raw, "VolumeAttachment", func(num protowire.Number, status []byte) error {
		if num != 3 {
			return nil
		}
		err := fields(status, func(num protowire.Number, value []byte) error {
			switch num {
			case 2:
				var k, v string
				err := fields(value, func(num protowire.Number, value []byte) error {
					switch num {
					case 1:
						k = string(value)
					case 2:
						v = string(value)
					}
					return nil
				})
				if a.Metadata == nil {
					a.Metadata = map[string]string{}
				}
				a.Metadata[k] = v
				return err
			case 3:
				return fields(value, func(num protowire.Number, value []byte) error {
					if num == 2 {
						a.Error = string(value)
					}
					return nil
				})
			}
			return nil
		})
		if err != nil {
			return err
		}
		return varints(status, func(num protowire.Number, v uint64) {
			if num == 1 {
				a.Attached = v != 0
			}
		})
	})
	return a, err
}

// varints calls f for each varint of b and skips the rest.
func varints(b []byte, f func(protowire.Number, uint64)) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %v", ErrMalformed, protowire.ParseError(n))
		}
		b = b[n:]
		if typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return fmt.Errorf("%w: %v", ErrMalformed, protowire.ParseError(n))
			}
			b = b[n:]
			f(num, v)
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return fmt.Errorf("%w: %v", ErrMalformed, protowire.ParseError(n))
		}
		b = b[n:]
	}
	return nil
}
