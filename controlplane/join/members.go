package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/retry"

	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
)

const (
	// EndpointNamespace and EndpointMap name the ConfigMap that tells token creators
	// and nodes where the cluster's control planes are.
	EndpointNamespace = noderecord.Namespace
	EndpointMap       = endpointMap

	memberPrefix = "member."
)

// ErrOtherRoot is returned when the cluster in this etcd has another root: a second
// control plane needs the keys of the first.
var ErrOtherRoot = errors.New("the cluster in this etcd has another root certificate")

// Addresses of one control plane or several, in the order in which to try them:
// https://, mqtts:// (or tls://) and https:// URLs.
type Addresses struct {
	API   []string `json:"api,omitempty"`
	MQTT  []string `json:"mqtt,omitempty"`
	Fleet []string `json:"fleet,omitempty"`
}

// Member is one control plane of the cluster.
type Member struct {
	// ID of its data folder.
	ID string
	Addresses
	// Alone: there are no others, and those that are published are its own past.
	Alone bool
}

// Publish stores in the cluster what join lines and nodes are told of this control
// plane. Called once the API answers. It returns ErrOtherRoot if others of the
// cluster have another root.
func (s *Server) Publish(ctx context.Context, m Member) error {
	return publishMember(ctx, s.cfg.Client, m, s.cfg.Authority.RootHash())
}

func publishMember(ctx context.Context, client kubernetes.Interface, m Member, caHash string) error {
	if err := ensureNamespace(ctx, client); err != nil {
		return err
	}
	own, err := json.Marshal(m.Addresses)
	if err != nil {
		return err
	}
	cms := client.CoreV1().ConfigMaps(EndpointNamespace)
	err = retry.OnError(retry.DefaultRetry, func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }, func() error {
		have, err := cms.Get(ctx, EndpointMap, metav1.GetOptions{})
		missing := apierrors.IsNotFound(err)
		if err != nil && !missing {
			return err
		}
		next := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: EndpointMap, Namespace: EndpointNamespace}, Data: map[string]string{}}
		if !missing {
			next = have.DeepCopy()
			if next.Data == nil {
				next.Data = map[string]string{}
			}
			if !m.Alone {
				if err := sameRoot(next.Data, caHash); err != nil {
					return err
				}
			}
		}
		if m.Alone {
			maps.DeleteFunc(next.Data, func(k, _ string) bool { return strings.HasPrefix(k, memberPrefix) })
		}
		next.Data[memberPrefix+m.ID] = string(own)
		urls, err := json.Marshal(AllAddresses(next.Data, "").Fleet)
		if err != nil {
			return err
		}
		next.Data["urls"], next.Data["ca-hash"] = string(urls), caHash
		switch {
		case missing:
			_, err = cms.Create(ctx, next, metav1.CreateOptions{})
		case !maps.Equal(have.Data, next.Data):
			_, err = cms.Update(ctx, next, metav1.UpdateOptions{})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("publish the fleet endpoint in ConfigMap %s/%s: %w", EndpointNamespace, EndpointMap, err)
	}
	return nil
}

func sameRoot(data map[string]string, caHash string) error {
	if theirs := data["ca-hash"]; theirs != "" && theirs != caHash {
		return fmt.Errorf("%w: its key has the hash %.16s, this control plane's %.16s; copy ca.*, front-proxy-ca.* and sa.* of the other control plane's pki folder into an empty folder, name it with --pki-dir, and start again", ErrOtherRoot, theirs, caHash)
	}
	return nil
}

// CheckRoot is what Publish checks, of EndpointMap as etcd has it: before anything of
// a control plane with other keys runs on it.
func CheckRoot(stored []byte, caHash string) error {
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(stored, nil, nil)
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s in etcd: %w", EndpointNamespace, EndpointMap, err)
	}
	m, ok := obj.(*corev1.ConfigMap)
	if !ok {
		return fmt.Errorf("ConfigMap %s/%s in etcd is a %T", EndpointNamespace, EndpointMap, obj)
	}
	return sameRoot(m.Data, caHash)
}

// AllAddresses reads the data of EndpointMap: the addresses of all control planes,
// those of the member named first before the others'. What can't be read is passed
// over.
func AllAddresses(data map[string]string, first string) Addresses {
	keys := slices.Sorted(maps.Keys(data))
	if i := slices.Index(keys, memberPrefix+first); i >= 0 {
		keys = slices.Insert(slices.Delete(keys, i, i+1), 0, memberPrefix+first)
	}
	var all Addresses
	for _, key := range keys {
		var one Addresses
		if !strings.HasPrefix(key, memberPrefix) || json.Unmarshal([]byte(data[key]), &one) != nil {
			continue
		}
		all.API, all.MQTT, all.Fleet = union(all.API, one.API), union(all.MQTT, one.MQTT), union(all.Fleet, one.Fleet)
	}
	return all
}

func union(to, from []string) []string {
	for _, s := range from {
		if !slices.Contains(to, s) {
			to = append(to, s)
		}
	}
	return to
}
