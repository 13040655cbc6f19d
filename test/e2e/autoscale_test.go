package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// scaled is a Deployment of one Wasm pod that asks for a twentieth of a core and may
// have four times as much, and an autoscaler that wants half of what is asked for.
const scaled = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 1
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      runtimeClassName: wasm
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: %[2]q
        resources: {requests: {cpu: 50m}, limits: {cpu: 200m, memory: 32Mi}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: %[1]s}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: %[1]s}
  minReplicas: 1
  maxReplicas: 2
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
`

// An autoscaler finds what pods use in metrics.k8s.io, which is ours: pods that compute
// become more, one that waits stays alone.
func TestAutoscaling(t *testing.T) {
	ns := shared.namespace(t)
	computes := push(t, shared, wat(t, `(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))`), "computes")
	waits := push(t, shared, cModule(t, "ticker"), "ticker")
	shared.apply(t, ns, fmt.Sprintf(scaled, "computes", computes))
	shared.apply(t, ns, fmt.Sprintf(scaled, "waits", waits))
	// The autoscaler passes over a pod's first minutes, in which it starts, unless it has
	// been ready; it looks every 15 seconds, and figures are a minute's at most.
	eventually(t, 4*time.Minute, func() error {
		d, err := shared.client.AppsV1().Deployments(ns).Get(t.Context(), "computes", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if d.Status.ReadyReplicas != 2 {
			out, _ := shared.kubectl("", "-n", ns, "get", "hpa,pods")
			return fmt.Errorf("%d pods compute:\n%s", d.Status.ReadyReplicas, out)
		}
		return nil
	})
	shared.shows(t, 30*time.Second, []string{"SuccessfulRescale", "New size: 2; reason: cpu resource utilization (percentage of request) above target"},
		"-n", ns, "get", "events", "--field-selector", "involvedObject.kind=HorizontalPodAutoscaler,involvedObject.name=computes")
	eventually(t, 2*time.Minute, func() error {
		h, err := shared.client.AutoscalingV2().HorizontalPodAutoscalers(ns).Get(t.Context(), "waits", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(h.Status.CurrentMetrics) == 0 || h.Status.CurrentMetrics[0].Resource == nil || h.Status.CurrentMetrics[0].Resource.Current.AverageUtilization == nil {
			return errors.New("what the pod that waits uses isn't known yet")
		}
		if used := *h.Status.CurrentMetrics[0].Resource.Current.AverageUtilization; used > 50 || h.Status.DesiredReplicas != 1 {
			t.Errorf("the pod that waits uses %d %% and should be %d", used, h.Status.DesiredReplicas)
		}
		return nil
	})
}
