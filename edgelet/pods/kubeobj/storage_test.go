package kubeobj

import (
	"reflect"
	"testing"

	storagev1 "k8s.io/api/storage/v1"
)

func wrapped(t testing.TB, kind string, o interface{ Marshal() ([]byte, error) }) []byte {
	t.Helper()
	payload, err := o.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return Join(Header{APIVersion: "storage.k8s.io/v1", Kind: kind}, payload)
}

// What is read by hand is what upstream's code writes.
func TestStorageObjects(t *testing.T) {
	yes, no, file, seconds := true, false, storagev1.FileFSGroupPolicy, int64(600)
	raw := wrapped(t, "CSIDriver", &storagev1.CSIDriver{Spec: storagev1.CSIDriverSpec{AttachRequired: &no, PodInfoOnMount: &yes, RequiresRepublish: &yes,
		ServiceAccountTokenInSecrets: &yes, FSGroupPolicy: &file, VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{"Persistent", "Ephemeral"},
		TokenRequests: []storagev1.TokenRequest{{Audience: "a", ExpirationSeconds: &seconds}, {Audience: ""}}}})
	want := CSIDriver{PodInfoOnMount: true, RequiresRepublish: true, TokenInSecrets: true, FSGroupPolicy: "File", LifecycleModes: []string{"Persistent", "Ephemeral"},
		TokenRequests: []TokenRequest{{"a", 600}, {"", 0}}}
	if got, err := DecodeCSIDriver(raw); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if got, err := DecodeCSIDriver(wrapped(t, "CSIDriver", &storagev1.CSIDriver{})); err != nil || !got.AttachRequired {
		t.Errorf("a driver that says nothing attaches: %+v, %v", got, err)
	}
	raw = wrapped(t, "VolumeAttachment", &storagev1.VolumeAttachment{Status: storagev1.VolumeAttachmentStatus{Attached: true,
		AttachmentMetadata: map[string]string{"lun": "3", "empty": ""}, AttachError: &storagev1.VolumeError{Message: "before"}}})
	attachment := VolumeAttachment{Attached: true, Metadata: map[string]string{"lun": "3", "empty": ""}, Error: "before"}
	if got, err := DecodeVolumeAttachment(raw); err != nil || !reflect.DeepEqual(got, attachment) {
		t.Errorf("%+v, %v, want %+v", got, err, attachment)
	}
	if _, err := DecodeCSIDriver(raw); err == nil {
		t.Error("an object of another kind was taken")
	}
}

func FuzzStorageObjects(f *testing.F) {
	f.Add(wrapped(f, "CSIDriver", &storagev1.CSIDriver{}))
	f.Add(wrapped(f, "VolumeAttachment", &storagev1.VolumeAttachment{Status: storagev1.VolumeAttachmentStatus{AttachmentMetadata: map[string]string{"a": "b"}}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = DecodeCSIDriver(raw)
		_, _ = DecodeVolumeAttachment(raw)
		_, _ = PersistentVolume(raw)
		_, _ = PersistentVolumeClaim(raw)
	})
}
