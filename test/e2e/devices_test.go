package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/test/lab"
)

// draOnABoard has a DRA driver as vendors deploy it: a DaemonSet whose service account
// may write the slices of its own node only.
const draOnABoard = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: dra}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: dra}
rules:
- {apiGroups: [resource.k8s.io], resources: [resourceslices], verbs: [get, list, watch, create, update, patch, delete]}
- {apiGroups: [resource.k8s.io], resources: [resourceclaims], verbs: [get]}
- {apiGroups: [""], resources: [nodes], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: dra}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: dra}
subjects: [{kind: ServiceAccount, namespace: default, name: dra}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: dra}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [resource.k8s.io], apiVersions: [v1], operations: [CREATE, UPDATE, DELETE], resources: [resourceslices]}]
  matchConditions: [{name: driver, expression: 'request.userInfo.username == "system:serviceaccount:default:dra"'}]
  variables:
  - {name: user, expression: 'request.userInfo.extra[?"authentication.kubernetes.io/node-name"][0].orValue("")'}
  - {name: object, expression: '(request.operation == "DELETE" ? oldObject : object).spec.?nodeName.orValue("")'}
  validations:
  - {expression: 'variables.user != ""', message: "no node association found for user"}
  - {expression: 'variables.user == variables.object', message: "this driver may write the slices of its own node only"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: dra}
spec: {policyName: dra, validationActions: [Deny]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: dra}
spec:
  selector: {matchLabels: {app: dra}}
  template:
    metadata: {labels: {app: dra}}
    spec:
      serviceAccountName: dra
      terminationGracePeriodSeconds: 5
      volumes:
      - {name: plugins, hostPath: {path: /var/lib/kubelet/plugins, type: DirectoryOrCreate}}
      - {name: registry, hostPath: {path: /var/lib/kubelet/plugins_registry, type: DirectoryOrCreate}}
      - {name: cdi, hostPath: {path: /var/run/cdi, type: DirectoryOrCreate}}
      - {name: disk, hostPath: {path: %[1]q, type: Directory}}
      containers:
      - name: main
        image: example.org/dradriverd:1
        imagePullPolicy: Never
        args: [--name, dra.example, --dir, %[1]s, --asked, %[1]s/asked, --node-file, /dev/null, --devices, "d1,d2"]
        env: [{name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        securityContext: {privileged: true}
        volumeMounts:
        - {name: plugins, mountPath: /var/lib/kubelet/plugins}
        - {name: registry, mountPath: /var/lib/kubelet/plugins_registry}
        - {name: cdi, mountPath: /var/run/cdi}
        - {name: disk, mountPath: %[1]q}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: two}
spec:
  devices:
    requests:
    - {name: a, exactly: {deviceClassName: dra.example}}
    - {name: b, exactly: {deviceClassName: dra.example}}
---
apiVersion: v1
kind: Pod
metadata: {name: user}
spec:
  nodeName: board-1
  terminationGracePeriodSeconds: 1
  resourceClaims: [{name: c, resourceClaimName: two}]
  containers:
  - name: one
    image: example.org/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'echo "$DRA_CLAIM: a is $DRA_A, b is $DRA_B$(test -c /dev/d1 && echo , a node)" > /devices/d1/said; while test -e /devices/d1/said; do sleep 0.2; done']
    resources: {claims: [{name: c, request: a}]}
  - name: none
    image: example.org/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'echo "$DRA_CLAIM$(ls -d /devices 2>&1)"; exec sleep 3600']
`

// scheduled are pods whose claims are made and allocated by the cluster: of a template,
// and for a resource that a class of devices stands for.
const scheduled = `
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: dra.example}
spec:
  extendedResourceName: example.org/gadget
  selectors: [{cel: {expression: 'device.driver == "dra.example"'}}]
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: one}
spec: {spec: {devices: {requests: [{name: a, exactly: {deviceClassName: dra.example}}]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: templated}
spec:
  restartPolicy: Never
  resourceClaims: [{name: c, resourceClaimTemplateName: one}]
  containers:
  - name: main
    image: example.org/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'echo "has $DRA_A"; sleep 5']
    resources: {claims: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: extended}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: example.org/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'env | grep "^DRA_CONTAINER"; sleep 5']
    resources: {limits: {example.org/gadget: 1}}
`

// allocated is what the scheduler writes into a claim for a pod.
const allocated = `{"status": {"reservedFor": [{"resource": "pods", "name": "user", "uid": %q}], "allocation": {"devices": {"results": [
  {"request": "a", "driver": "dra.example", "pool": "board-1", "device": "d1"}, {"request": "b", "driver": "dra.example", "pool": "board-1", "device": "d2"}]}}}}`

// A driver in a pod publishes what its board has, and a pod whose claim is allocated
// gets it; the devices are given back before the cluster hears that the pod ended, and
// what a driver that is gone offered goes with it.
func TestDynamicResourcesOnABoard(t *testing.T) {
	c, disk := boardWithDriver(t, lab.DRADriver(t))
	c.apply(t, "default", fmt.Sprintf(draOnABoard, disk))
	file := func(name, want string) func() error {
		return func() error {
			raw, err := os.ReadFile(filepath.Join(disk, name))
			if err == nil && string(raw) != want {
				err = fmt.Errorf("%s has %q, want %q", name, raw, want)
			}
			return err
		}
	}
	c.shows(t, 120*time.Second, []string{"dra.example board-1 d1 d2\n"}, "get", "resourceslices", "-o",
		`jsonpath={range .items[*]}{.spec.driver} {.spec.nodeName} {.spec.devices[*].name}{"\n"}{end}`)

	// Nobody has allocated the claim: the pod says what it waits for.
	uid := c.must(t, "get", "pod", "user", "-o", "jsonpath={.metadata.uid}")
	waits := fmt.Sprintf("Failed to prepare dynamic resources: prepare dynamic resources: pod user (%s) is not allowed to use ResourceClaim two", uid)
	c.shows(t, 60*time.Second, []string{waits}, "get", "pod", "user", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.message}")
	c.must(t, "patch", "resourceclaim", "two", "--type=merge", "-p", `{"metadata": {"finalizers": ["resource.kubernetes.io/delete-protection"]}}`)
	c.must(t, "patch", "resourceclaim", "two", "--subresource=status", "--type=merge", "-p", fmt.Sprintf(allocated, uid))
	eventually(t, 120*time.Second, file("d1/said", "two: a is d1, b is , a node\n"))
	c.shows(t, 60*time.Second, []string{"ls: /devices: No such file"}, "logs", "user", "-c", "none")
	c.shows(t, 60*time.Second, []string{"claim:c/a", `"health":"Unknown","resourceID":"dra.example/device=`}, "get", "pod", "user", "-o",
		"jsonpath={.status.containerStatuses[?(@.name==\"one\")].allocatedResourcesStatus[0].name} {.status.containerStatuses[?(@.name==\"one\")].allocatedResourcesStatus[0].resources[0]}")

	// The agent is killed, and the container ends: it starts again with what was
	// prepared, and nobody asks the driver.
	c.kill(t, "board-1")
	if err := os.Remove(filepath.Join(disk, "d1", "said")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 120*time.Second, file("d1/said", "two: a is d1, b is , a node\n"))
	if err := file("asked", "prepare two\n")(); err != nil {
		t.Error(err)
	}

	c.must(t, "delete", "pod", "user", "--timeout=60s")
	if err := file("asked", "prepare two\nunprepare two\n")(); err != nil {
		t.Error("the pod is gone:", err)
	}
	// The cluster takes the claim back from a pod that is no more.
	c.shows(t, 60*time.Second, []string{"allocation: reserved:"}, "get", "resourceclaim", "two", "-o", "jsonpath=allocation:{.status.allocation} reserved:{.status.reservedFor}")

	// The whole way, by the cluster's scheduler and controllers.
	c.apply(t, "default", scheduled)
	c.shows(t, 120*time.Second, []string{"Succeeded Succeeded"}, "get", "pods", "templated", "extended", "-o", "jsonpath={.items[*].status.phase}")
	got := c.must(t, "logs", "templated") + c.must(t, "logs", "extended")
	if m := regexp.MustCompile(`^has (d[12])\nDRA_CONTAINER[^=]*=(d[12])\n$`).FindStringSubmatch(got); m == nil || m[1] == m[2] {
		t.Errorf("the pods had %q", got)
	}
	raw, err := os.ReadFile(filepath.Join(disk, "asked"))
	if err != nil || strings.Count(string(raw), "unprepare templated-c-") != 1 || strings.Count(string(raw), "unprepare extended-") != 1 {
		t.Errorf("the driver was asked %q, %v", raw, err)
	}
	c.must(t, "delete", "daemonset", "dra", "--timeout=60s")
	eventually(t, 120*time.Second, func() error {
		if out := c.must(t, "get", "resourceslices", "-o", "name"); out != "" {
			return fmt.Errorf("a driver that is gone still offers %s", out)
		}
		return nil
	})
}
