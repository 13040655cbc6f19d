package pods

import (
	"context"
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
)

const reasonStrictGroups = "SupplementalGroupsPolicyNotSupported"

var (
	// errStrictGroups is returned when a pod wants no groups but those that it names and
	// the runtime, which doesn't know of that, would add those of the image.
	errStrictGroups = fmt.Errorf("SupplementalGroupsPolicy=%s is not supported in this node", v1.SupplementalGroupsPolicyStrict)
	// errGroupsUnknown is returned when the runtime doesn't say whether it can.
	errGroupsUnknown = errors.New("the runtime doesn't say whether it keeps to SupplementalGroupsPolicy=Strict")
)

// conditionOCI is false while a part of the runtime that OCI containers need doesn't
// answer: what it can is not known then.
const conditionOCI = "coracle.dev/OCIReady"

// strictGroups says whether the pod can have the groups that it asks for. A kubelet
// refuses it where it can't (KEP-3619; pkg/kubelet/lifecycle/predicate.go). Wasm
// containers know both policies.
func (m *Manager) strictGroups(ctx context.Context, pod *v1.Pod, kind string) error {
	sc := pod.Spec.SecurityContext
	if sc == nil || deref(sc.SupplementalGroupsPolicy, v1.SupplementalGroupsPolicyMerge) != v1.SupplementalGroupsPolicyStrict || kind == kindWasm {
		return nil
	}
	if handler, err := m.handler(pod); err == nil && handler == handlerWasm {
		return nil
	}
	status, err := m.runtimeStatus(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errGroupsUnknown, err)
	}
	for _, c := range status.GetStatus().GetConditions() {
		if c.GetType() == conditionOCI && !c.GetStatus() && !status.GetFeatures().GetSupplementalGroupsPolicy() {
			return fmt.Errorf("%w: %s", errGroupsUnknown, c.GetMessage())
		}
	}
	if !status.GetFeatures().GetSupplementalGroupsPolicy() {
		return errStrictGroups
	}
	return nil
}
