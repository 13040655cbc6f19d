package kubeobj

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	v1 "k8s.io/api/core/v1"
)

// Magic starts every raw object; it is Kubernetes' storage prefix for protobuf.
const Magic = "k8s\x00"

var (
	// ErrNotKubernetes is returned when the bytes do not start with [Magic].
	ErrNotKubernetes = errors.New("not a Kubernetes protobuf object")
	// ErrMalformed is returned when what follows the magic is not a runtime.Unknown
	// or its payload is not the kind it says.
	ErrMalformed = errors.New("malformed Kubernetes object")
	// ErrKind is returned when the object is of another kind than was asked for.
	ErrKind = errors.New("unexpected kind")
)

// Header is what the envelope says about its payload.
type Header struct {
	APIVersion, Kind string
}

// Split returns the header and the payload of a raw object. The payload aliases
// raw.
func Split(raw []byte) (Header, []byte, error) {
	var h Header
	if len(raw) < len(Magic) || string(raw[:len(Magic)]) != Magic {
		return h, nil, ErrNotKubernetes
	}
	var payload []byte
	err := fields(raw[len(Magic):], func(num protowire.Number, value []byte) error {
		switch num {
		case 1: // typeMeta
			return fields(value, func(num protowire.Number, value []byte) error {
				switch num {
				case 1:
					h.APIVersion = string(value)
				case 2:
					h.Kind = string(value)
				}
				return nil
			})
		case 2:
			payload = value
		case 3: // contentEncoding
			if len(value) != 0 {
				return fmt.Errorf("%w: content encoding %q", ErrMalformed, value)
			}
		}
		return nil
	})
	if err != nil {
		return Header{}, nil, err
	}
	return h, payload, nil
}

// Join is the inverse of [Split].
func Join(h Header, payload []byte) []byte {
	var tm []byte
	tm = protowire.AppendTag(tm, 1, protowire.BytesType)
	tm = protowire.AppendString(tm, h.APIVersion)
	tm = protowire.AppendTag(tm, 2, protowire.BytesType)
	tm = protowire.AppendString(tm, h.Kind)
	out := make([]byte, 0, len(Magic)+len(tm)+len(payload)+16)
	out = append(out, Magic...)
	out = protowire.AppendTag(out, 1, protowire.BytesType)
	out = protowire.AppendBytes(out, tm)
	out = protowire.AppendTag(out, 2, protowire.BytesType)
	out = protowire.AppendBytes(out, payload)
	out = protowire.AppendTag(out, 3, protowire.BytesType)
	out = protowire.AppendString(out, "")
	out = protowire.AppendTag(out, 4, protowire.BytesType)
	return protowire.AppendString(out, "")
}

// fields calls f for each length-delimited field of b and skips the others.
func fields(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %v", ErrMalformed, protowire.ParseError(n))
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return fmt.Errorf("%w: %v", ErrMalformed, protowire.ParseError(n))
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return fmt.Errorf("%w: %v", ErrMalformed, protowire.ParseError(n))
		}
		b = b[n:]
		if err := f(num, value); err != nil {
			return err
		}
	}
	return nil
}

type message interface{ Unmarshal([]byte) error }

func decode(raw []byte, kind string, into message) (err error) {
	h, payload, err := Split(raw)
	if err != nil {
		return fmt.Errorf("decoding a %s: %w", kind, err)
	}
	if h.Kind != kind {
		return fmt.Errorf("decoding a %s: %w %q", kind, ErrKind, h.Kind)
	}
	// The generated decoders are bounds-checked, yet the bytes come from outside:
	// what one of them should still trip over must not take the agent down.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("decoding a %s: %w: %v", kind, ErrMalformed, r)
		}
	}()
	if err := into.Unmarshal(payload); err != nil {
		return fmt.Errorf("decoding a %s: %w: %v", kind, ErrMalformed, err)
	}
	return nil
}

// Pod decodes a raw v1 Pod.
func Pod(raw []byte) (*v1.Pod, error) {
	p := new(v1.Pod)
	if err := decode(raw, "Pod", p); err != nil {
		return nil, err
	}
	return p, nil
}

// ConfigMap decodes a raw v1 ConfigMap.
func ConfigMap(raw []byte) (*v1.ConfigMap, error) {
	o := new(v1.ConfigMap)
	if err := decode(raw, "ConfigMap", o); err != nil {
		return nil, err
	}
	return o, nil
}

// Secret decodes a raw v1 Secret.
func Secret(raw []byte) (*v1.Secret, error) {
	o := new(v1.Secret)
	if err := decode(raw, "Secret", o); err != nil {
		return nil, err
	}
	return o, nil
}

// PersistentVolumeClaim decodes a raw v1 PersistentVolumeClaim.
func PersistentVolumeClaim(raw []byte) (*v1.PersistentVolumeClaim, error) {
	o := new(v1.PersistentVolumeClaim)
	if err := decode(raw, "PersistentVolumeClaim", o); err != nil {
		return nil, err
	}
	return o, nil
}

// PersistentVolume decodes a raw v1 PersistentVolume.
func PersistentVolume(raw []byte) (*v1.PersistentVolume, error) {
	o := new(v1.PersistentVolume)
	if err := decode(raw, "PersistentVolume", o); err != nil {
		return nil, err
	}
	return o, nil
}

// Service decodes a raw v1 Service.
func Service(raw []byte) (*v1.Service, error) {
	o := new(v1.Service)
	if err := decode(raw, "Service", o); err != nil {
		return nil, err
	}
	return o, nil
}

// RuntimeClassHandler returns the handler of a raw node.k8s.io/v1 RuntimeClass:
// field 2 of the message. The type itself is not linked for one string.
func RuntimeClassHandler(raw []byte) (string, error) {
	h, payload, err := Split(raw)
	if err != nil {
		return "", fmt.Errorf("decoding a RuntimeClass: %w", err)
	}
	if h.Kind != "RuntimeClass" {
		return "", fmt.Errorf("decoding a RuntimeClass: %w %q", ErrKind, h.Kind)
	}
	var handler string
	err = fields(payload, func(num protowire.Number, value []byte) error {
		if num == 2 {
			handler = string(value)
		}
		return nil
	})
	return handler, err
}

// EncodePod is the inverse of [Pod].
func EncodePod(p *v1.Pod) ([]byte, error) { return encode("Pod", p) }

// EncodeConfigMap is the inverse of [ConfigMap].
func EncodeConfigMap(o *v1.ConfigMap) ([]byte, error) { return encode("ConfigMap", o) }

// EncodeSecret is the inverse of [Secret].
func EncodeSecret(o *v1.Secret) ([]byte, error) { return encode("Secret", o) }

func encode(kind string, o interface{ Marshal() ([]byte, error) }) ([]byte, error) {
	payload, err := o.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding a %s: %w", kind, err)
	}
	return Join(Header{APIVersion: "v1", Kind: kind}, payload), nil
}
