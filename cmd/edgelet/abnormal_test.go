package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/coracle-edge/coracle/edgelet/csi"
)

func TestAVolumeThatIsNotWellIsToldOnce(t *testing.T) {
	var a abnormal
	volume := func(message string) []csi.VolumeUsage {
		return []csi.VolumeUsage{{Volume: "data", Usage: csi.Usage{Abnormal: message != "", Message: message}}}
	}
	for i, step := range []struct {
		pod, message string
		news         []string
	}{
		{"a", "", nil},
		{"a", "bad blocks", []string{"Volume data: bad blocks"}},
		{"a", "bad blocks", nil},
		{"b", "bad blocks", []string{"Volume data: bad blocks"}},
		{"a", "worse", []string{"Volume data: worse"}},
		{"a", "", nil},
		{"a", "worse", []string{"Volume data: worse"}},
		{"b", "bad blocks", nil},
	} {
		if got := a.news(step.pod, volume(step.message)); !slices.Equal(got, step.news) {
			t.Errorf("step %d: %q, want %q", i, got, step.news)
		}
	}
	for i := range 2 * maxAbnormal {
		a.news(fmt.Sprint(i), volume("x"))
	}
	if len(a.said) > maxAbnormal+1 {
		t.Errorf("%d are remembered", len(a.said))
	}
}
