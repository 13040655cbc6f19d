package main

import (
	"fmt"
	"sync"

	"github.com/coracle-edge/coracle/edgelet/csi"
)

// abnormal is what drivers last said of volumes that are not well, so that each word
// of theirs is told once and not whenever somebody asks for figures (upstream:
// pkg/kubelet/server/stats/volume_stat_calculator.go). The zero value is empty.
type abnormal struct {
	mu   sync.Mutex
	said map[abnormalKey]string // only of volumes that are not well
}

// maxAbnormal is how many volumes are remembered; with more, of pods that are gone,
// all is told again.
const maxAbnormal = 256

type abnormalKey struct{ pod, volume string }

// news returns what is new, and forgets what is well again or gone.
func (a *abnormal) news(pod string, used []csi.VolumeUsage) (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := map[abnormalKey]string{}
	for _, u := range used {
		if u.Abnormal {
			now[abnormalKey{pod, u.Volume}] = fmt.Sprintf("Volume %s: %s", u.Volume, u.Message)
		}
	}
	for key := range a.said {
		if _, still := now[key]; key.pod == pod && !still {
			delete(a.said, key)
		}
	}
	if len(a.said) > maxAbnormal {
		a.said = nil
	}
	for key, message := range now {
		if a.said[key] != message {
			out = append(out, message)
		}
		if a.said == nil {
			a.said = map[abnormalKey]string{}
		}
		a.said[key] = message
	}
	return out
}
