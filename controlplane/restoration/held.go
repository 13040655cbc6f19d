package restoration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// kubeletPort is the one port that nodes have.
const kubeletPort = "10250"

// held is what a node was last ordered to have.
type held struct {
	pods       []*corev1.Pod
	references map[fleethub.Ref]runtime.Object
}

// fetch asks the node, through its tunnel.
func (a *adopter) fetch(ctx context.Context, node string) (*held, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(node, kubeletPort)+fleet.HeldPath, nil)
	if err != nil {
		return nil, err
	}
	response, err := a.s.c.Nodes.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("what node %s holds: %w", node, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1024))
		return nil, fmt.Errorf("what node %s holds: it answered %s: %s", node, response.Status, text)
	}
	h := &held{references: map[fleethub.Ref]runtime.Object{}}
	if err := fleet.ReadHeld(response.Body, h.take); err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	slices.SortFunc(h.pods, func(a, b *corev1.Pod) int {
		return strings.Compare(a.Namespace+"/"+a.Name+"/"+string(a.UID), b.Namespace+"/"+b.Name+"/"+string(b.UID))
	})
	return h, nil
}

// take reads one object and checks that it is what it says.
func (h *held) take(o *fleet.Object) error {
	name := fmt.Sprintf("%s %s/%s", o.GetKind(), o.GetNamespace(), o.GetName())
	if hash, err := fleet.HashFrom(o.GetHash()); err != nil || o.GetKind() != "Secret" && fleet.HashObject(o.GetRaw()) != hash {
		return fmt.Errorf("%w: %s: its bytes don't have its hash", fleet.ErrMalformed, name)
	}
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(o.GetRaw(), nil, nil)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", fleet.ErrMalformed, name, err)
	}
	m, ok := obj.(metav1.Object)
	if !ok || string(m.GetUID()) != o.GetUid() || m.GetNamespace() != o.GetNamespace() || m.GetName() != o.GetName() {
		return fmt.Errorf("%w: %s (%s): it has another name or UID inside", fleet.ErrMalformed, name, o.GetUid())
	}
	// Who creates it is asked for neither of these.
	m.SetResourceVersion("")
	m.SetManagedFields(nil)
	switch obj := obj.(type) {
	case *corev1.Pod:
		h.pods = append(h.pods, obj)
	case *corev1.ConfigMap, *corev1.Secret:
		h.references[fleethub.Ref{Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName()}] = obj
	}
	return nil
}
