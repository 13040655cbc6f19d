package volumes

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/csi"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

const (
	lifecyclePersistent = "Persistent"
	lifecycleEphemeral  = "Ephemeral"
	tokensKey           = "csi.storage.k8s.io/serviceAccount.tokens"
	// republishEvery is how often a driver that asks for it publishes again, as a
	// kubelet does with each sync of a pod.
	republishEvery = time.Minute
)

// persistentCSI makes a claimed volume of a CSI driver.
func (m *Manager) persistentCSI(ctx context.Context, pod *v1.Pod, name string, claim *v1.PersistentVolumeClaim, pv *v1.PersistentVolume, readOnly bool, out *Mounted) error {
	s := pv.Spec.CSI
	driver, err := m.csiDriver(s.Driver, lifecyclePersistent)
	if err != nil {
		return err
	}
	v := &csi.Volume{PodUID: string(pod.UID), Name: pv.Name, PodVolume: name, Driver: s.Driver, Handle: s.VolumeHandle,
		Block:    pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == v1.PersistentVolumeBlock,
		ReadOnly: readOnly || s.ReadOnly, Attach: driver.AttachRequired, FSType: s.FSType, MountOptions: pv.Spec.MountOptions,
		AccessMode: string(v1.ReadWriteOnce), StageAttributes: s.VolumeAttributes, FSGroup: fsGroup(pod)}
	if len(pv.Spec.AccessModes) > 0 {
		v.AccessMode = string(pv.Spec.AccessModes[0])
	}
	if driver.AttachRequired {
		if v.PublishContext, err = m.attached(pod.Spec.NodeName, v); err != nil {
			return err
		}
	}
	for _, x := range []struct {
		what string
		ref  *v1.SecretReference
		to   *map[string]string
	}{{"NodeStageSecretRef", s.NodeStageSecretRef, &v.StageSecrets}, {"NodePublishSecretRef", s.NodePublishSecretRef, &v.PublishSecrets},
		{"NodeExpandSecretRef", s.NodeExpandSecretRef, &v.ExpandSecrets}} {
		if x.ref != nil {
			if *x.to, err = m.credentials(x.what, x.ref.Namespace, x.ref.Name); err != nil {
				return err
			}
		}
	}
	groups := fsGroupByKubelet(driver.FSGroupPolicy, s.FSType, pv.Spec.AccessModes, v.ReadOnly || readOnly)
	fresh, err := m.publish(ctx, pod, name, v, driver, s.VolumeAttributes, lifecyclePersistent, groups, out)
	if err != nil {
		return err
	}
	return m.grow(pod, claim, pv, v.ReadOnly, !fresh, out, func(bytes int64) error { return m.CSI.Expand(ctx, v, bytes) })
}

// inlineCSI makes a volume of a CSI driver that lives as long as the pod.
func (m *Manager) inlineCSI(ctx context.Context, pod *v1.Pod, name string, s *v1.CSIVolumeSource, out *Mounted) error {
	driver, err := m.csiDriver(s.Driver, lifecycleEphemeral)
	if err != nil {
		return err
	}
	v := &csi.Volume{PodUID: string(pod.UID), Name: name, PodVolume: name, Driver: s.Driver, Ephemeral: true,
		Handle:   fmt.Sprintf("csi-%x", sha256.Sum256([]byte(string(pod.UID)+name))), // csi_plugin.go: makeVolumeHandle
		ReadOnly: deref(s.ReadOnly), FSType: deref(s.FSType), AccessMode: string(v1.ReadWriteOnce), FSGroup: fsGroup(pod)}
	if ref := s.NodePublishSecretRef; ref != nil {
		if v.PublishSecrets, err = m.credentials("NodePublishSecretRef", pod.Namespace, ref.Name); err != nil {
			return err
		}
	}
	groups := fsGroupByKubelet(driver.FSGroupPolicy, v.FSType, []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}, v.ReadOnly)
	_, err = m.publish(ctx, pod, name, v, driver, s.VolumeAttributes, lifecycleEphemeral, groups, out)
	return err
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// csiDriver is the CSIDriver object, or what holds of a driver without one.
func (m *Manager) csiDriver(name, lifecycle string) (kubeobj.CSIDriver, error) {
	if m.CSI == nil {
		return kubeobj.CSIDriver{}, fmt.Errorf("%w: csi (without root nothing can be mounted)", ErrUnsupported)
	}
	driver := kubeobj.CSIDriver{AttachRequired: true}
	raw, found, err := m.Objects.Object(kindDriver, "", name)
	if err == nil && found {
		driver, err = kubeobj.DecodeCSIDriver(raw)
	}
	if err != nil {
		return driver, err
	}
	if !found && lifecycle != lifecyclePersistent {
		return driver, fmt.Errorf("volume mode %q not supported by driver %s (no CSIDriver object)", lifecycle, name)
	}
	modes := driver.LifecycleModes
	if len(modes) == 0 {
		modes = []string{lifecyclePersistent}
	}
	if !slices.Contains(modes, lifecycle) {
		return driver, fmt.Errorf("volume mode %q not supported by driver %s (only supports %q)", lifecycle, name, modes)
	}
	return driver, nil
}

// attachmentName is how upstream's controller names attachments (csi_attacher.go).
func attachmentName(handle, driver, node string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(handle+driver+node)))
}

// attached is what the controller's half of the driver said when it attached the
// volume to this node.
func (m *Manager) attached(node string, v *csi.Volume) (map[string]string, error) {
	name := attachmentName(v.Handle, v.Driver, node)
	raw, found, err := m.Objects.Object(kindAttachment, "", name)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("%w: waiting for VolumeAttachment %s of driver %s", ErrNotAttached, name, v.Driver)
	}
	a, err := kubeobj.DecodeVolumeAttachment(raw)
	switch {
	case err != nil:
		return nil, err
	case a.Attached:
		return a.Metadata, nil
	case a.Error != "":
		return nil, fmt.Errorf("%w: %s", ErrNotAttached, a.Error)
	}
	return nil, fmt.Errorf("%w: VolumeAttachment %s of driver %s is not attached", ErrNotAttached, name, v.Driver)
}

func (m *Manager) credentials(what, namespace, name string) (map[string]string, error) {
	fail := func(err error) error { return fmt.Errorf("fetching %s %s/%s failed: %w", what, namespace, name, err) }
	raw, found, err := m.Objects.Object("Secret", namespace, name)
	if err != nil {
		return nil, fail(err)
	}
	if !found {
		return nil, fail(fmt.Errorf("secret %q %w", name, ErrNotFound))
	}
	s, err := kubeobj.Secret(raw)
	if err != nil {
		return nil, fail(err)
	}
	out := make(map[string]string, len(s.Data))
	for k, v := range s.Data {
		out[k] = string(v)
	}
	return out, nil
}

// fsGroupByKubelet says whether the node gives a volume to the pod's group, if
// the driver doesn't do it itself (csi_mounter.go: supportsFSGroup).
func fsGroupByKubelet(policy, fstype string, modes []v1.PersistentVolumeAccessMode, readOnly bool) bool {
	switch {
	case readOnly, policy == "None":
		return false
	case policy == "File":
		return true
	case fstype == "":
		return false
	}
	return slices.Contains(modes, v1.ReadWriteOnce) || slices.Contains(modes, v1.ReadWriteOncePod)
}

// publish adds what the driver wants to know of the pod and has the volume
// published. fresh says that it wasn't before.
func (m *Manager) publish(ctx context.Context, pod *v1.Pod, name string, v *csi.Volume, driver kubeobj.CSIDriver, attributes map[string]string, lifecycle string, groups bool, out *Mounted) (fresh bool, err error) {
	v.Attributes = maps.Clone(attributes)
	if v.Attributes == nil {
		v.Attributes = map[string]string{}
	}
	v.Republish = driver.RequiresRepublish
	if driver.PodInfoOnMount {
		maps.Copy(v.Attributes, map[string]string{
			"csi.storage.k8s.io/pod.name":            pod.Name,
			"csi.storage.k8s.io/pod.namespace":       pod.Namespace,
			"csi.storage.k8s.io/pod.uid":             string(pod.UID),
			"csi.storage.k8s.io/serviceAccount.name": pod.Spec.ServiceAccountName,
			"csi.storage.k8s.io/ephemeral":           fmt.Sprint(lifecycle == lifecycleEphemeral),
		})
	}
	if len(driver.TokenRequests) > 0 {
		tokens, err := m.driverTokens(ctx, pod, driver.TokenRequests)
		if err != nil {
			return false, err
		}
		if driver.TokenInSecrets {
			v.PublishSecrets = maps.Clone(v.PublishSecrets)
			if v.PublishSecrets == nil {
				v.PublishSecrets = map[string]string{}
			}
			v.PublishSecrets[tokensKey] = tokens
		} else {
			v.Attributes[tokensKey] = tokens
		}
	}
	done, err := m.CSI.SetUp(ctx, v)
	if err != nil {
		return false, err
	}
	if done.Fresh {
		if groups && !v.Block && !done.GroupDone {
			if err := m.ownershipOf(pod, done.Path).apply(done.Path); err != nil {
				return false, err
			}
		}
		if err := m.CSI.Ready(v); err != nil {
			return false, err
		}
	}
	if v.Republish {
		out.refreshBy(m.Now().Add(republishEvery))
	}
	out.ReadOnly[name] = v.ReadOnly
	if v.Block {
		out.Devices[name] = done.Path
	} else {
		out.Paths[name] = done.Path
	}
	return done.Fresh, nil
}

// driverTokens are the pod's tokens that a driver asks for, as upstream encodes
// them: TokenRequestStatus by audience.
func (m *Manager) driverTokens(ctx context.Context, pod *v1.Pod, requests []kubeobj.TokenRequest) (string, error) {
	if m.Token == nil {
		return "", fmt.Errorf("%w: tokenRequests of a CSIDriver (this node has no identity; join it to a cluster first)", ErrUnsupported)
	}
	type status struct {
		Token   string    `json:"token"`
		Expires time.Time `json:"expirationTimestamp"`
	}
	out := map[string]status{}
	for _, r := range requests {
		life := time.Hour
		if r.ExpirationSeconds > 0 {
			life = time.Duration(r.ExpirationSeconds) * time.Second
		}
		token, expires, err := m.Token(ctx, TokenRequest{Namespace: pod.Namespace, Pod: pod.Name, PodUID: string(pod.UID),
			ServiceAccount: pod.Spec.ServiceAccountName, Node: pod.Spec.NodeName, Audience: r.Audience, Lifetime: life})
		if err != nil {
			return "", fmt.Errorf("failed to fetch token: %w", err)
		}
		out[r.Audience] = status{token, expires.UTC().Truncate(time.Second)}
	}
	raw, err := json.Marshal(out)
	return string(raw), err
}
