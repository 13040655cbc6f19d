package devices

import (
	"k8s.io/component-base/featuregate"
	"k8s.io/dynamic-resource-allocation/structured"
	"k8s.io/kubernetes/pkg/features"
)

// Gates are the features that are on. They must be those of the API server: it
// drops the fields of features that are off.
type Gates struct {
	structured.Features
	// ExtendedResources: a device class can stand behind a resource in
	// spec.containers[].resources (KEP-5004).
	ExtendedResources bool
	// TaintRules: DeviceTaintRules change what slices say (KEP-5055).
	TaintRules bool
	// FilterTimeout: looking for devices for one node ends after a time.
	FilterTimeout bool
}

// GatesOf reads the gates. Claims of pod groups (DRAWorkloadResourceClaims) and
// claims for what nodes allocate (DRANodeAllocatableResources), both alpha, are
// never on.
func GatesOf(gate featuregate.FeatureGate) Gates {
	return Gates{
		Features: structured.Features{
			AdminAccess:            gate.Enabled(features.DRAAdminAccess),
			ConsumableCapacity:     gate.Enabled(features.DRAConsumableCapacity),
			DeviceBindingAndStatus: gate.Enabled(features.DRADeviceBindingConditions) && gate.Enabled(features.DRAResourceClaimDeviceStatus),
			DeviceTaints:           gate.Enabled(features.DRADeviceTaints),
			ListTypeAttributes:     gate.Enabled(features.DRAListTypeAttributes),
			PartitionableDevices:   gate.Enabled(features.DRAPartitionableDevices),
			PrioritizedList:        gate.Enabled(features.DRAPrioritizedList),
		},
		ExtendedResources: gate.Enabled(features.DRAExtendedResource),
		TaintRules:        gate.Enabled(features.DRADeviceTaintRules),
		FilterTimeout:     gate.Enabled(features.DRASchedulerFilterTimeout),
	}
}
