package pods

import (
	v1 "k8s.io/api/core/v1"
)

func isSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

func hasSidecar(pod *v1.Pod) bool {
	for i := range pod.Spec.InitContainers {
		if isSidecar(&pod.Spec.InitContainers[i]) {
			return true
		}
	}
	return false
}

// restartsAfter reports whether the container is to run again after it ended
// with exitCode. Rules of the container come before its own policy, that before
// the pod's.
func restartsAfter(pod *v1.Pod, c *v1.Container, exitCode int32) bool {
	for _, rule := range c.RestartPolicyRules {
		if ruleMatches(&rule, exitCode) {
			return rule.Action == v1.ContainerRestartRuleActionRestart ||
				rule.Action == v1.ContainerRestartRuleActionRestartAllContainers
		}
	}
	policy := pod.Spec.RestartPolicy
	init := isInit(pod, c.Name)
	if c.RestartPolicy != nil {
		policy = v1.RestartPolicy(*c.RestartPolicy)
	} else if init && policy == v1.RestartPolicyAlways {
		policy = v1.RestartPolicyOnFailure // an init container runs to completion
	}
	switch policy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return exitCode != 0
	}
	return true
}

func ruleMatches(rule *v1.ContainerRestartRule, exitCode int32) bool {
	if rule.ExitCodes == nil {
		return false
	}
	in := false
	for _, v := range rule.ExitCodes.Values {
		in = in || v == exitCode
	}
	switch rule.ExitCodes.Operator {
	case v1.ContainerRestartRuleOnExitCodesOpIn:
		return in
	case v1.ContainerRestartRuleOnExitCodesOpNotIn:
		return !in
	}
	return false
}

func isInit(pod *v1.Pod, name string) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return true
		}
	}
	return false
}

// containerSpec finds a container of the pod by name, and nil if there is none.
func containerSpec(pod *v1.Pod, name string) *v1.Container {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return ephemeral(pod, i)
		}
	}
	return nil
}

// shouldRun reports whether a container that isn't running is to be started.
func shouldRun(pod *v1.Pod, c *v1.Container, o *observation) bool {
	if pod.DeletionTimestamp != nil {
		return false
	}
	got := o.find(c.Name)
	switch {
	case got == nil, got.state == stateCreated, got.state == stateUnknown:
		return true
	case got.state == stateRunning:
		return false
	}
	return restartsAfter(pod, c, got.exitCode)
}

// qosClass is upstream's (pkg/apis/core/v1/helper/qos, ComputePodQOS): Guaranteed
// if every container has limits for CPU and memory and all together ask for as much
// as they may have, BestEffort if nobody asks for anything. What a pod asks for as a
// whole counts instead of what its containers do.
func qosClass(pod *v1.Pod) v1.PodQOSClass {
	names := [...]v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory}
	requests, limits := v1.ResourceList{}, v1.ResourceList{}
	guaranteed := true
	add := func(r *v1.ResourceRequirements) {
		for _, name := range names {
			for from, to := range map[*v1.ResourceList]v1.ResourceList{&r.Requests: requests, &r.Limits: limits} {
				if q, ok := (*from)[name]; ok && q.Sign() > 0 {
					sum := to[name]
					sum.Add(q)
					to[name] = sum
				}
			}
		}
	}
	bounded := func(l v1.ResourceList) bool { return l.Cpu().Sign() > 0 && l.Memory().Sign() > 0 }
	if r := pod.Spec.Resources; r != nil {
		add(r)
		guaranteed = len(r.Limits) == 0 || bounded(r.Limits)
	} else {
		for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				add(&list[i].Resources)
				guaranteed = guaranteed && bounded(list[i].Resources.Limits)
			}
		}
	}
	if len(requests) == 0 && len(limits) == 0 {
		return v1.PodQOSBestEffort
	}
	for name, request := range requests {
		if limit, ok := limits[name]; !ok || limit.Cmp(request) != 0 {
			guaranteed = false
		}
	}
	if guaranteed && len(requests) == len(limits) {
		return v1.PodQOSGuaranteed
	}
	return v1.PodQOSBurstable
}
