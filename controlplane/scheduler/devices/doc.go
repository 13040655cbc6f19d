// Package devices owns the scheduler's plugin DynamicResources (KEP-4381 and what
// came after it): which devices of the cluster's ResourceSlices a pod's resource
// claims get, and on which node that can be.
//
// What is allocated is decided by upstream's allocator; owned here is when it is
// asked, what it is told is taken, and how its answer becomes durable: kept in
// memory from the decision on, written to the claim before the pod is bound, and
// taken back when the pod isn't bound after all.
//
// Nothing is watched before the first pod asks for devices.
//
// It imports the framework, client-go and k8s.io/dynamic-resource-allocation;
// package plugins puts it into the set.
package devices
