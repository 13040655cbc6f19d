package job

import (
	"fmt"
	"slices"

	batch "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
)

// verdict is what a pod failure policy says of a failed pod. Without a policy, or if no rule matches, it counts.
type verdict struct {
	counts    bool   // towards backoffLimit and backoffLimitPerIndex
	failJob   string // not empty: the job fails, with this message
	failIndex bool   // the pod's index fails, whatever its limit
}

// judge applies the first rule that matches.
func judge(policy *batch.PodFailurePolicy, pod *v1.Pod) verdict {
	if policy == nil {
		return verdict{counts: true}
	}
	for i, rule := range policy.Rules {
		var message string
		switch {
		case rule.OnExitCodes != nil:
			container := exitMatch(&pod.Status, rule.OnExitCodes)
			if container == nil {
				continue
			}
			message = fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v matching %v rule at index %d",
				container.Name, pod.Namespace, pod.Name, container.State.Terminated.ExitCode, rule.Action, i)
		case rule.OnPodConditions != nil:
			cond := conditionMatch(&pod.Status, rule.OnPodConditions)
			if cond == nil {
				continue
			}
			message = fmt.Sprintf("Pod %s/%s has condition %v matching %v rule at index %d", pod.Namespace, pod.Name, cond.Type, rule.Action, i)
		default:
			continue
		}
		switch rule.Action {
		case batch.PodFailurePolicyActionIgnore:
			return verdict{}
		case batch.PodFailurePolicyActionFailIndex:
			return verdict{counts: true, failIndex: true}
		case batch.PodFailurePolicyActionCount:
			return verdict{counts: true}
		case batch.PodFailurePolicyActionFailJob:
			return verdict{counts: true, failJob: message}
		}
	}
	return verdict{counts: true}
}

// exitMatch returns the first container that ended with a code the rule is for.
func exitMatch(status *v1.PodStatus, rule *batch.PodFailurePolicyOnExitCodesRequirement) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{status.ContainerStatuses, status.InitContainerStatuses} {
		for i := range list {
			ended := list[i].State.Terminated
			if ended == nil || ended.ExitCode == 0 || rule.ContainerName != nil && *rule.ContainerName != list[i].Name {
				continue
			}
			listed := slices.Contains(rule.Values, ended.ExitCode)
			if rule.Operator == batch.PodFailurePolicyOnExitCodesOpIn && listed || rule.Operator == batch.PodFailurePolicyOnExitCodesOpNotIn && !listed {
				return &list[i]
			}
		}
	}
	return nil
}

func conditionMatch(status *v1.PodStatus, patterns []batch.PodFailurePolicyOnPodConditionsPattern) *v1.PodCondition {
	for i := range status.Conditions {
		for _, p := range patterns {
			if c := &status.Conditions[i]; c.Type == p.Type && c.Status == p.Status {
				return c
			}
		}
	}
	return nil
}

// succeeds reports whether the indexes that succeeded fulfil a rule of the success policy, and which.
func succeeds(policy *batch.SuccessPolicy, completions int, done intervals) (message string, ok bool) {
	if policy == nil || len(done) == 0 {
		return "", false
	}
	for i, rule := range policy.Rules {
		met := false
		if rule.SucceededIndexes != nil {
			wanted := parseIntervals(*rule.SucceededIndexes, completions)
			if len(wanted) == 0 {
				continue
			}
			n := wanted.overlap(done)
			met = n == wanted.total() || rule.SucceededCount != nil && n >= int(*rule.SucceededCount)
		} else {
			met = rule.SucceededCount != nil && done.total() >= int(*rule.SucceededCount)
		}
		if met {
			return fmt.Sprintf("Matched rules at index %d", i), true
		}
	}
	return "", false
}
