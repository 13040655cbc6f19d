package controllers_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	devices "k8s.io/api/resource/v1"
	storage "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// volume makes a volume of 1 GiB, named after the namespace, that is gone after the test.
func (c *cluster) volume(t *testing.T, namespace string) {
	t.Helper()
	_, err := c.client.CoreV1().PersistentVolumes().Create(t.Context(), &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: namespace}, Spec: v1.PersistentVolumeSpec{
		Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
		PersistentVolumeSource: v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/tmp/x"}}, StorageClassName: namespace,
	}}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		_ = c.client.CoreV1().PersistentVolumes().Delete(context.Background(), namespace, metav1.DeleteOptions{})
	})
}

// claim makes a claim on the volume named after the namespace and waits until it is bound.
func (c *cluster) claim(t *testing.T, namespace, name string) {
	t.Helper()
	_, err := c.client.CoreV1().PersistentVolumeClaims(namespace).Create(t.Context(), &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PersistentVolumeClaimSpec{
		StorageClassName: &namespace, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
		Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}},
	}}, metav1.CreateOptions{})
	must(t, err)
	eventually(t, "PersistentVolumeClaim "+name, func() error {
		claim, err := c.client.CoreV1().PersistentVolumeClaims(namespace).Get(t.Context(), name, metav1.GetOptions{})
		must(t, err)
		if claim.Status.Phase != v1.ClaimBound {
			return fmt.Errorf("phase %s", claim.Status.Phase)
		}
		return nil
	})
}

// running waits until the pod runs.
func (c *cluster) running(t *testing.T, namespace, name string) {
	t.Helper()
	eventually(t, "pod "+name+" runs", func() error {
		p, err := c.client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
		must(t, err)
		if p.Status.Phase != v1.PodRunning {
			return fmt.Errorf("phase %s", p.Status.Phase)
		}
		return nil
	})
}

func TestVolumesInUseAreProtected(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	c.nodes(t, 1, nil)
	c.volume(t, ns)
	c.claim(t, ns, "data")
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "user"}, Spec: template(nil, "one").Spec}
	pod.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	_, err := c.client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{})
	must(t, err)
	c.running(t, ns, "user")
	must(t, c.client.CoreV1().PersistentVolumes().Delete(t.Context(), ns, metav1.DeleteOptions{}))
	must(t, c.client.CoreV1().PersistentVolumeClaims(ns).Delete(t.Context(), "data", metav1.DeleteOptions{}))
	always(t, "claim and volume stay while a pod uses them", time.Second, func() error {
		claim, err := c.client.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data", metav1.GetOptions{})
		if err != nil || claim.DeletionTimestamp == nil || !slices.Contains(claim.Finalizers, "kubernetes.io/pvc-protection") {
			return fmt.Errorf("claim %+v, error: %v", claim, err)
		}
		volume, err := c.client.CoreV1().PersistentVolumes().Get(t.Context(), ns, metav1.GetOptions{})
		if err != nil || volume.DeletionTimestamp == nil || !slices.Contains(volume.Finalizers, "kubernetes.io/pv-protection") {
			return fmt.Errorf("volume %+v, error: %v", volume, err)
		}
		return nil
	})
	must(t, c.client.CoreV1().Pods(ns).Delete(t.Context(), "user", metav1.DeleteOptions{}))
	eventually(t, "the claim follows its last pod", func() error {
		_, err := c.client.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data", metav1.GetOptions{})
		return gone(err)
	})
	eventually(t, "the volume follows its claim", func() error {
		_, err := c.client.CoreV1().PersistentVolumes().Get(t.Context(), ns, metav1.GetOptions{})
		return gone(err)
	})
}

// Nothing in the control plane can make a volume larger; upstream says who has to.
func TestClaimThatIsToGrowWaitsForItsResizer(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	_, err := c.client.StorageV1().StorageClasses().Create(t.Context(), &storage.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: ns}, Provisioner: "example.com/boathouse", AllowVolumeExpansion: ptr.To(true),
	}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		_ = c.client.StorageV1().StorageClasses().Delete(context.Background(), ns, metav1.DeleteOptions{})
	})
	c.volume(t, ns)
	c.claim(t, ns, "data")
	_, err = c.client.CoreV1().PersistentVolumeClaims(ns).Patch(t.Context(), "data", "application/merge-patch+json",
		[]byte(`{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`), metav1.PatchOptions{})
	must(t, err)
	eventually(t, "an event says who is to expand the volume", func() error {
		events, err := c.client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=data"})
		must(t, err)
		for _, e := range events.Items {
			if e.Reason == "ExternalExpanding" && strings.Contains(e.Message, "waiting for an external controller to expand this PVC") {
				return nil
			}
		}
		return fmt.Errorf("%d other events", len(events.Items))
	})
}

// A driver that taints a device evicts the pod that uses it, and no other.
func TestPodsLeaveTaintedDevices(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	board := c.nodes(t, 1, nil)[0]
	driver := ns + ".example.com"
	for _, device := range []string{"sound", "broken"} {
		claim, err := c.client.ResourceV1().ResourceClaims(ns).Create(t.Context(), &devices.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: device}, Spec: devices.ResourceClaimSpec{
			Devices: devices.DeviceClaim{Requests: []devices.DeviceRequest{{Name: "r", Exactly: &devices.ExactDeviceRequest{DeviceClassName: driver}}}},
		}}, metav1.CreateOptions{})
		must(t, err)
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: device}, Spec: template(nil, "one").Spec}
		pod.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "d", ResourceClaimName: &claim.Name}}
		pod, err = c.client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{})
		must(t, err)
		// What a scheduler writes.
		claim.Status.Allocation = &devices.AllocationResult{Devices: devices.DeviceAllocationResult{Results: []devices.DeviceRequestAllocationResult{
			{Request: "r", Driver: driver, Pool: board, Device: device},
		}}}
		claim.Status.ReservedFor = []devices.ResourceClaimConsumerReference{{Resource: "pods", Name: pod.Name, UID: pod.UID}}
		_, err = c.client.ResourceV1().ResourceClaims(ns).UpdateStatus(t.Context(), claim, metav1.UpdateOptions{})
		must(t, err)
		c.running(t, ns, device)
	}
	slice, err := c.client.ResourceV1().ResourceSlices().Create(t.Context(), &devices.ResourceSlice{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
		Spec: devices.ResourceSliceSpec{
			Driver: driver, NodeName: &board, Pool: devices.ResourcePool{Name: board, Generation: 1, ResourceSliceCount: 1},
			Devices: []devices.Device{{Name: "sound"}, {Name: "broken", Taints: []devices.DeviceTaint{
				{Key: driver + "/health", Value: "bad", Effect: devices.DeviceTaintEffectNoExecute},
			}}},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		_ = c.client.ResourceV1().ResourceSlices().Delete(context.Background(), slice.Name, metav1.DeleteOptions{})
	})
	eventually(t, "the pod with the tainted device is evicted", func() error {
		_, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "broken", metav1.GetOptions{})
		return gone(err)
	})
	pod, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "sound", metav1.GetOptions{})
	if err != nil || pod.DeletionTimestamp != nil {
		t.Errorf("the pod with the sound device: %+v, %v", pod, err)
	}
}
