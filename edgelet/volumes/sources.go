package volumes

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// unsupported refuses a type of volume by the API's name for it.
func unsupported(name string) error {
	switch name {
	case "awsElasticBlockStore", "azureDisk", "azureFile", "cinder", "gcePersistentDisk", "portworxVolume", "vsphereVolume":
		return fmt.Errorf("%w: %s (upstream, too, has it only by its CSI driver: install that and use a volume of type csi)", ErrUnsupported, name)
	case "fc", "iscsi", "rbd", "cephfs", "glusterfs", "flexVolume", "storageos", "scaleIO", "quobyte", "flocker", "photonPersistentDisk":
		return fmt.Errorf("%w: %s (install a CSI driver for it and use a volume of type csi)", ErrUnsupported, name)
	case "gitRepo":
		return fmt.Errorf("%w: gitRepo (clone in an init container into an emptyDir)", ErrUnsupported)
	}
	return fmt.Errorf("%w: %s (supported: configMap, csi, downwardAPI, emptyDir, ephemeral, hostPath, image, nfs, persistentVolumeClaim, projected, secret)", ErrUnsupported, name)
}

// sourceName is the API's name of the type of a volume that this node has no case
// for.
func sourceName(s *v1.VolumeSource) string {
	for _, t := range []struct {
		name string
		set  bool
	}{
		{"gcePersistentDisk", s.GCEPersistentDisk != nil}, {"awsElasticBlockStore", s.AWSElasticBlockStore != nil}, {"gitRepo", s.GitRepo != nil},
		{"iscsi", s.ISCSI != nil}, {"glusterfs", s.Glusterfs != nil}, {"rbd", s.RBD != nil}, {"flexVolume", s.FlexVolume != nil},
		{"cinder", s.Cinder != nil}, {"cephfs", s.CephFS != nil}, {"flocker", s.Flocker != nil}, {"fc", s.FC != nil}, {"azureFile", s.AzureFile != nil},
		{"vsphereVolume", s.VsphereVolume != nil}, {"quobyte", s.Quobyte != nil}, {"azureDisk", s.AzureDisk != nil},
		{"photonPersistentDisk", s.PhotonPersistentDisk != nil}, {"portworxVolume", s.PortworxVolume != nil}, {"scaleIO", s.ScaleIO != nil},
		{"storageos", s.StorageOS != nil},
	} {
		if t.set {
			return t.name
		}
	}
	return "unknown"
}

func persistentSourceName(s *v1.PersistentVolumeSource) string {
	for _, t := range []struct {
		name string
		set  bool
	}{
		{"gcePersistentDisk", s.GCEPersistentDisk != nil}, {"awsElasticBlockStore", s.AWSElasticBlockStore != nil},
		{"iscsi", s.ISCSI != nil}, {"glusterfs", s.Glusterfs != nil}, {"rbd", s.RBD != nil}, {"flexVolume", s.FlexVolume != nil},
		{"cinder", s.Cinder != nil}, {"cephfs", s.CephFS != nil}, {"flocker", s.Flocker != nil}, {"fc", s.FC != nil}, {"azureFile", s.AzureFile != nil},
		{"vsphereVolume", s.VsphereVolume != nil}, {"quobyte", s.Quobyte != nil}, {"azureDisk", s.AzureDisk != nil},
		{"photonPersistentDisk", s.PhotonPersistentDisk != nil}, {"portworxVolume", s.PortworxVolume != nil}, {"scaleIO", s.ScaleIO != nil},
		{"storageos", s.StorageOS != nil},
	} {
		if t.set {
			return t.name
		}
	}
	return "unknown"
}
