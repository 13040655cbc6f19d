package oci

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A question without an answer is one that nobody is there for; the next ones
// don't wait as long, until there is an answer.
func TestQuestionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if answerTimeout != 5*time.Second || suspectTimeout != 300*time.Millisecond {
			t.Errorf("%s and %s aren't what docs/failures.md promises", answerTimeout, suspectTimeout)
		}
		c := &Client{}
		hangs := func(ctx context.Context) error { <-ctx.Done(); return status.FromContextError(ctx.Err()).Err() }
		ask := func(f func(context.Context) error) (time.Duration, error) {
			began := time.Now()
			err := c.bounded(t.Context(), "/runtime.v1.RuntimeService/ListContainers", f)
			return time.Since(began), err
		}
		for i, want := range []time.Duration{answerTimeout, suspectTimeout, suspectTimeout} {
			if took, err := ask(hangs); took != want || status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no answer to ListContainers") {
				t.Errorf("question %d: %v after %s, want %s", i, err, took, want)
			}
		}
		if _, err := ask(func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
		if took, _ := ask(hangs); took != answerTimeout {
			t.Errorf("it answered since, and was waited for %s", took)
		}
		// Whoever asked and gives up says nothing of containerd.
		c.suspect.Store(false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := c.bounded(ctx, "ListContainers", hangs); status.Code(err) != codes.DeadlineExceeded || c.suspect.Load() {
			t.Errorf("%v, suspect %t", err, c.suspect.Load())
		}
	})
}

func TestWhatOnlyAsks(t *testing.T) {
	for method, want := range map[string]bool{"ListPodSandbox": true, "ListContainers": true, "ListImages": true, "ContainerStatus": true, "PodSandboxStatus": true,
		"ImageStatus": true, "Status": true, "Version": true, "RuntimeConfig": true,
		"RunPodSandbox": false, "PullImage": false, "StopContainer": false, "ExecSync": false, "GetContainerEvents": false, "UpdateRuntimeConfig": false} {
		if got := reads("/runtime.v1.RuntimeService/" + method); got != want {
			t.Errorf("%s: %t", method, got)
		}
	}
}
