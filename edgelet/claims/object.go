package claims

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/rawcall"
)

// Kind of the objects that controlplane/fleethub sends with pods that have claims.
const Kind = "ResourceClaim"

// object is what a node needs of a ResourceClaim. The API's generated code would
// cost every board memory; field numbers are those of k8s.io/api/resource/v1,
// generated.proto.
type object struct {
	metav1.ObjectMeta
	allocated bool
	drivers   []string // of the allocated devices, each once, in their order
	reserved  []string // UIDs of those who may use it
	// allocation tells one allocation from another.
	allocation string
}

func decodeObject(raw []byte) (*object, error) {
	h, payload, err := kubeobj.Split(raw)
	if err != nil {
		return nil, fmt.Errorf("decoding a %s: %w", Kind, err)
	}
	if h.Kind != Kind {
		return nil, fmt.Errorf("decoding a %s: %w %q", Kind, kubeobj.ErrKind, h.Kind)
	}
	o := new(object)
	sum := fnv.New64a()
	err = rawcall.Fields(payload, func(field protowire.Number, value []byte) error {
		switch field {
		case 1:
			return unmarshalMeta(&o.ObjectMeta, value)
		case 3:
			return o.decodeStatus(value, sum)
		}
		return nil
	}, nil)
	if err == nil && (o.Name == "" || o.UID == "") {
		err = fmt.Errorf("%w: no name or no uid", kubeobj.ErrMalformed)
	}
	if err != nil {
		return nil, fmt.Errorf("decoding a %s: %w", Kind, err)
	}
	o.allocation = strconv.FormatUint(sum.Sum64(), 36)
	return o, nil
}

// unmarshalMeta is the generated decoder, whose panics are errors here: the bytes
// come from outside.
func unmarshalMeta(m *metav1.ObjectMeta, raw []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", kubeobj.ErrMalformed, p)
		}
	}()
	return m.Unmarshal(raw)
}

func (o *object) decodeStatus(raw []byte, sum io.Writer) error {
	return rawcall.Fields(raw, func(field protowire.Number, value []byte) error {
		switch field {
		case 1: // allocation
			o.allocated = true
			return within(value, 1, func(devices []byte) error {
				return within(devices, 1, func(one []byte) error {
					return o.decodeDevice(one, sum)
				})
			})
		case 2: // reservedFor
			return within(value, 5, func(uid []byte) error {
				o.reserved = append(o.reserved, string(uid))
				return nil
			})
		}
		return nil
	}, nil)
}

// decodeDevice reads a DeviceRequestAllocationResult: request, driver, pool and
// device say which it is.
func (o *object) decodeDevice(raw []byte, sum io.Writer) error {
	return rawcall.Fields(raw, func(field protowire.Number, value []byte) error {
		if field > 4 {
			return nil
		}
		fmt.Fprintf(sum, "%d %q ", field, value)
		if d := string(value); field == 2 && d != "" && !slices.Contains(o.drivers, d) {
			o.drivers = append(o.drivers, d)
		}
		return nil
	}, nil)
}

// within calls do for each field of one number.
func within(raw []byte, number protowire.Number, do func([]byte) error) error {
	return rawcall.Fields(raw, func(field protowire.Number, value []byte) error {
		if field == number {
			return do(value)
		}
		return nil
	}, nil)
}

var (
	// ErrNotCreated is returned while the claim that a pod's template stands for
	// doesn't exist.
	ErrNotCreated = errors.New("ResourceClaim not created yet")
	// ErrNotFound is returned while the node doesn't have a pod's claim.
	ErrNotFound = errors.New("not found")
)

// Reference is a claim of a pod's by the name that the API knows it by.
type Reference struct {
	// Of is what the pod calls it; empty for that of its extended resources.
	Of   string
	Name string
	// Owned says that it was made for the pod, which has to be its owner.
	Owned bool
}

// Of lists the claims of a pod that exist: those of templates that were not needed
// are left out. A claim that isn't made yet is an error; the others come with it.
func Of(pod *v1.Pod) (out []Reference, err error) {
	for i := range pod.Spec.ResourceClaims {
		c := &pod.Spec.ResourceClaims[i]
		switch {
		case c.ResourceClaimName != nil:
			out = append(out, Reference{Of: c.Name, Name: *c.ResourceClaimName})
		case c.ResourceClaimTemplateName != nil:
			at := slices.IndexFunc(pod.Status.ResourceClaimStatuses, func(s v1.PodResourceClaimStatus) bool { return s.Name == c.Name })
			switch {
			case at < 0:
				err = errors.Join(err, fmt.Errorf("pod %q: %w", pod.Namespace+"/"+pod.Name, ErrNotCreated))
			case pod.Status.ResourceClaimStatuses[at].ResourceClaimName != nil:
				out = append(out, Reference{Of: c.Name, Name: *pod.Status.ResourceClaimStatuses[at].ResourceClaimName, Owned: true})
			}
		default:
			err = errors.Join(err, fmt.Errorf("pod %q, spec.resourceClaim %q: none of the supported fields are set", pod.Namespace+"/"+pod.Name, c.Name))
		}
	}
	if s := pod.Status.ExtendedResourceClaimStatus; s != nil {
		out = append(out, Reference{Name: s.ResourceClaimName})
	}
	return out, err
}

// Has says whether a pod has claims at all.
func Has(pod *v1.Pod) bool {
	return len(pod.Spec.ResourceClaims) > 0 || pod.Status.ExtendedResourceClaimStatus != nil
}

// check says why a pod may not use a claim, in a kubelet's words.
func (o *object) check(pod *v1.Pod, r Reference) error {
	if r.Owned && !metav1.IsControlledBy(&o.ObjectMeta, pod) {
		return fmt.Errorf("ResourceClaim %s/%s was not created for Pod %s/%s (Pod is not owner)", o.Namespace, o.Name, pod.Namespace, pod.Name)
	}
	if !slices.Contains(o.reserved, string(pod.UID)) {
		return fmt.Errorf("pod %s (%s) is not allowed to use ResourceClaim %s (%s)", pod.Name, pod.UID, o.Name, o.UID)
	}
	if !o.allocated {
		return fmt.Errorf("ResourceClaim %s: not allocated", o.Name)
	}
	return nil
}
