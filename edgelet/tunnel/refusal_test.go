package tunnel

import (
	"net/url"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

func TestLogRunSaysWhatTheKubeletSays(t *testing.T) {
	waiting := func(reason string) v1.ContainerState {
		return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}
	}
	running := v1.ContainerState{Running: &v1.ContainerStateRunning{}}
	ended := func(id string) v1.ContainerState {
		return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ContainerID: id}}
	}
	tests := map[string]struct {
		status   v1.ContainerStatus
		previous bool
		id, err  string
	}{
		"running":                 {v1.ContainerStatus{State: running, ContainerID: "r://2"}, false, "r://2", ""},
		"creating":                {v1.ContainerStatus{State: waiting("ContainerCreating")}, false, "", `container "main" in pod "hello" is waiting to start: ContainerCreating`},
		"pull failed":             {v1.ContainerStatus{State: waiting("ErrImagePull")}, false, "", `container "main" in pod "hello" is waiting to start: image can't be pulled`},
		"pull backs off":          {v1.ContainerStatus{State: waiting("ImagePullBackOff")}, false, "", `container "main" in pod "hello" is waiting to start: trying and failing to pull image`},
		"nothing known":           {v1.ContainerStatus{}, false, "", `container "main" in pod "hello" is waiting to start - no logs yet`},
		"ended":                   {v1.ContainerStatus{State: ended("r://1")}, false, "r://1", ""},
		"ended before it began":   {v1.ContainerStatus{State: ended("")}, false, "", `container "main" in pod "hello" is terminated`},
		"crash loop":              {v1.ContainerStatus{State: waiting("CrashLoopBackOff"), LastTerminationState: ended("r://1")}, false, "r://1", ""},
		"previous":                {v1.ContainerStatus{State: running, ContainerID: "r://2", LastTerminationState: ended("r://1")}, true, "r://1", ""},
		"previous, there is none": {v1.ContainerStatus{State: running, ContainerID: "r://2"}, true, "", `previous terminated container "main" in pod "hello" not found`},
	}
	for name, test := range tests {
		test.status.Name = "main"
		for place, status := range map[string]*v1.PodStatus{
			"container": {ContainerStatuses: []v1.ContainerStatus{test.status}},
			"init":      {InitContainerStatuses: []v1.ContainerStatus{test.status}},
			"ephemeral": {EphemeralContainerStatuses: []v1.ContainerStatus{test.status}},
		} {
			id, err := LogRun("hello", status, "main", test.previous)
			if id != test.id || (err == nil) != (test.err == "") || err != nil && err.Error() != test.err {
				t.Errorf("%s, %s: %q, %v; want %q, %s", name, place, id, err, test.id, test.err)
			}
		}
	}
	if _, err := LogRun("hello", &v1.PodStatus{}, "main", false); err == nil || err.Error() != `container "main" in pod "hello" is not available` {
		t.Errorf("no status: %v", err)
	}
}

func FuzzLogQuery(f *testing.F) {
	f.Add("follow=true&tailLines=10&sinceSeconds=5&timestamps&stream=Stderr")
	f.Add("tail=all&sinceTime=2026-10-06T00:17:09.669794202Z&limitBytes=1")
	now := time.Unix(1e9, 0)
	f.Fuzz(func(t *testing.T, text string) {
		query, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		q, status, err := parseLogQuery(query, now)
		if err != nil {
			if status != 400 && status != 422 {
				t.Fatalf("status %d for %v", status, err)
			}
			return
		}
		if q.options.Tail != nil && *q.options.Tail < 0 || q.options.Limit != nil && *q.options.Limit < 1 || !q.stdout && !q.stderr {
			t.Fatalf("accepted %q: %+v", text, q)
		}
	})
}
