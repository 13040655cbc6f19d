package claims

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coracle-edge/coracle/edgelet/rawcall"
)

// The messages of the DRA plugin API that a node uses; field numbers are those of
// k8s.io/kubelet/pkg/apis/dra/v1 and v1beta1 (the same, but for the share of a
// device) and k8s.io/kubelet/pkg/apis/dra-health/v1alpha1, api.proto.

// Services as drivers list them when they register, the newest first, with the
// names that gRPC knows them by.
const (
	serviceV1      = "v1.DRAPlugin"
	serviceV1beta1 = "v1beta1.DRAPlugin"
	serviceHealth  = "v1alpha1.DRAResourceHealth"

	methodWatch = "/v1alpha1.DRAResourceHealth/NodeWatchResources"
)

func methodOf(service, method string) string {
	version, _, _ := strings.Cut(service, ".")
	return "/k8s.io.kubelet.pkg.apis.dra." + version + ".DRAPlugin/" + method
}

// Bounds of what a driver says.
const (
	maxDevices = 1024 // of a claim, and of a health report
	maxText    = 4096 // bytes
)

// device is a device that a driver prepared.
type device struct {
	Requests []string `json:"requests,omitempty"` // none: of all
	Pool     string   `json:"pool"`
	Device   string   `json:"device"`
	CDI      []string `json:"cdi,omitempty"`
	Share    string   `json:"share,omitempty"`
}

// named is a claim as drivers are told of it.
type named struct{ namespace, uid, name string }

// request is a NodePrepareResourcesRequest or a NodeUnprepareResourcesRequest.
func request(claims []named) rawcall.Message {
	var m rawcall.Message
	for _, c := range claims {
		var one rawcall.Message
		one.String(1, c.namespace)
		one.String(2, c.uid)
		one.String(3, c.name)
		m.Bytes(1, one)
	}
	return m
}

// result is what a driver says of one claim.
type result struct {
	devices []device
	failure string
}

// decodeResults reads a NodePrepareResourcesResponse, by claim UID, or with
// errorField 1 a NodeUnprepareResourcesResponse.
func decodeResults(raw []byte, errorField protowire.Number) (map[string]result, error) {
	out := map[string]result{}
	err := rawcall.Fields(raw, func(field protowire.Number, entry []byte) error {
		if field != 1 {
			return nil
		}
		var uid string
		var r result
		err := rawcall.Fields(entry, func(field protowire.Number, value []byte) error {
			switch field {
			case 1:
				uid = string(value)
			case 2:
				var err error
				r, err = decodeResult(value, errorField)
				return err
			}
			return nil
		}, nil)
		out[uid] = r
		return err
	}, nil)
	return out, err
}

// errorOfPrepare and errorOfUnprepare are where the answers have their error.
const (
	errorOfPrepare   = 2
	errorOfUnprepare = 1
)

func decodeResult(raw []byte, errorField protowire.Number) (result, error) {
	var r result
	err := rawcall.Fields(raw, func(field protowire.Number, value []byte) error {
		switch {
		case field == errorField:
			r.failure = cut(string(value))
		case field == 1:
			if len(r.devices) == maxDevices {
				return fmt.Errorf("%w: more than %d devices of one claim", rawcall.ErrMalformed, maxDevices)
			}
			d, err := decodeDevice(value)
			r.devices = append(r.devices, d)
			return err
		}
		return nil
	}, nil)
	return r, err
}

func decodeDevice(raw []byte) (device, error) {
	var d device
	err := rawcall.Fields(raw, func(field protowire.Number, value []byte) error {
		if len(value) > maxText {
			return fmt.Errorf("%w: %d bytes in field %d of a device", rawcall.ErrMalformed, len(value), field)
		}
		switch s := string(value); field {
		case 1:
			d.Requests = append(d.Requests, s)
		case 2:
			d.Pool = s
		case 3:
			d.Device = s
		case 4:
			d.CDI = append(d.CDI, s)
		case 5:
			d.Share = s
		}
		return nil
	}, nil)
	return d, err
}

// health is what a driver says of a device.
type health struct {
	pool, device string
	state        uint64 // healthUnknown, healthGood, healthBad
	timeout      int64  // seconds; 0: the default
	message      string
}

// HealthStatus.
const (
	healthUnknown = 0
	healthGood    = 1
	healthBad     = 2
)

// decodeHealth reads a NodeWatchResourcesResponse.
func decodeHealth(raw []byte) ([]health, error) {
	var out []health
	err := rawcall.Fields(raw, func(field protowire.Number, value []byte) error {
		if field != 1 {
			return nil
		}
		if len(out) == maxDevices {
			return fmt.Errorf("%w: the health of more than %d devices", rawcall.ErrMalformed, maxDevices)
		}
		var h health
		err := rawcall.Fields(value, func(field protowire.Number, value []byte) error {
			switch field {
			case 1:
				return rawcall.Fields(value, func(field protowire.Number, value []byte) error {
					switch field {
					case 1:
						h.pool = cut(string(value))
					case 2:
						h.device = cut(string(value))
					}
					return nil
				}, nil)
			case 5:
				h.message = cut(string(value))
			}
			return nil
		}, func(field protowire.Number, n uint64) {
			switch field {
			case 2:
				h.state = n
			case 4:
				h.timeout = max(int64(n), 0)
			}
		})
		out = append(out, h)
		return err
	}, nil)
	return out, err
}

// cut bounds a text of somebody else's, and makes it fit for the API.
func cut(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.ToValidUTF8(s, "�")
}
