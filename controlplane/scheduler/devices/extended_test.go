package devices

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestIsExtended(t *testing.T) {
	for name, want := range map[v1.ResourceName]bool{
		"cpu": false, "memory": false, "hugepages-2Mi": false, "example.com/npu": true,
		"kubernetes.io/x": false, "requests.example.com/x": false, "deviceclass.resource.kubernetes.io/npu": true,
		"example.com/": false,
	} {
		if isExtended(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

// containers is written as "init:2 side:1 main:3 other:"; the number is how many
// are asked for. Init containers before "|".
func containers(spec string) []user {
	pod := &v1.Pod{}
	init, rest, _ := strings.Cut(spec, "|")
	make := func(s string) (list []v1.Container) {
		for _, one := range strings.Fields(s) {
			name, n, _ := strings.Cut(one, ":")
			c := v1.Container{Name: name}
			if strings.HasPrefix(name, "side") {
				c.RestartPolicy = new(v1.ContainerRestartPolicyAlways)
			}
			if n != "" {
				c.Resources.Requests = v1.ResourceList{"example.com/npu": resource.MustParse(n), "cpu": resource.MustParse("1")}
			}
			list = append(list, c)
		}
		return list
	}
	pod.Spec.InitContainers, pod.Spec.Containers = make(init), make(rest)
	return containersOf(pod)
}

// Expectations are of upstream's createRequestsAndMappings.
func TestRequestsFor(t *testing.T) {
	for _, c := range []struct{ containers, requests, mappings string }{
		{"| a:1", "container-0=1", "a>container-0"},
		{"| a:1 b: c:2", "container-0=1 container-2=2", "a>container-0 c>container-2"},
		{"i:1 | a:1", "container-1=1", "a>container-1 i>container-1"},
		{"i:3 | a:1", "container-0=2 container-1=1", "a>container-1 i>container-1 i>container-0"},
		{"i:2 | a:", "container-0=2", "i>container-0"},
		// Two that end share the larger rest.
		{"i:2 j:4 | a:1", "container-1=3 container-2=1", "a>container-2 i>container-2 i>container-1 j>container-2 j>container-1"},
		// A sidecar before an init container isn't the init container's to use, one after it is.
		{"side:1 i:1 | a:", "container-1=1 container-0=1", "side>container-0 i>container-1"},
		{"i:1 side:1 | a:", "container-1=1", "side>container-1 i>container-1"},
	} {
		requests, mappings := requestsFor(containers(c.containers), "example.com/npu", "class")
		var got, maps []string
		for _, r := range requests {
			got = append(got, fmt.Sprintf("%s=%d", strings.TrimSuffix(r.Name, "-request-1"), r.Exactly.Count))
			if r.Exactly.DeviceClassName != "class" || r.Exactly.AllocationMode != "ExactCount" {
				t.Errorf("%s: %+v", c.containers, r.Exactly)
			}
		}
		for _, m := range mappings {
			maps = append(maps, m.ContainerName+">"+strings.TrimSuffix(m.RequestName, "-request-1"))
		}
		if s := strings.Join(got, " "); s != c.requests {
			t.Errorf("%s: requests %s, want %s", c.containers, s, c.requests)
		}
		if s := strings.Join(maps, " "); s != c.mappings {
			t.Errorf("%s: mappings %s, want %s", c.containers, s, c.mappings)
		}
	}
}
