// Package upstream starts those of upstream's controllers whose answer nobody wants to be another here, each with the
// service account that upstream's RBAC bootstrap has a role for.
//
// What differs from kube-controller-manager is when and with how much they run:
//
//   - No leader election, so nothing is written while nothing happens.
//   - A controller whose kind has no object isn't built (gates.go): it costs nothing but the watch that garbage collection
//     has anyway. The first HorizontalPodAutoscaler, ResourceQuota, CSIDriver, ... starts its controller.
//   - Discovery is asked again when a CustomResourceDefinition or an APIService changed and not every 30 s (discovery.go).
//   - Garbage collection and quota watch metadata, except of the kinds that others hold in full anyway (informers.go).
//   - One worker each. Full resyncs are off; those that a controller has built in read caches and write nothing.
//   - Event handlers on shared informers are taken off when a controller ends, so that it can be started again.
//
// Which of upstream's default ones are left out, and why, is in RATIONALE.md; a test of package controllers compares the
// lists. Volume plugins linked: hostpath for recycling and CSI for attaching; local volumes need none here.
//
// It imports upstream's controllers; package controllers calls it.
package upstream
