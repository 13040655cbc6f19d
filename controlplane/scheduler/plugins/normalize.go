package plugins

import (
	"slices"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// normalize scales non-negative scores so that the largest becomes MaxScore, or
// with reverse 0 becomes MaxScore and the largest 0.
func normalize(scores []int64, reverse bool) {
	if len(scores) == 0 {
		return
	}
	most := slices.Max(scores)
	for i, s := range scores {
		if most > 0 {
			s = framework.MaxScore * s / most
		}
		if reverse {
			s = framework.MaxScore - s
		}
		scores[i] = s
	}
}
