package pods

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// warnMemoryLimits says of containers whose memory is limited that it isn't,
// because the kernel can't: a pod must not find out by taking the board down.
func (w *worker) warnMemoryLimits(todo []*v1.Container) {
	if w.m.cfg.NoMemoryLimits == "" {
		return
	}
	for _, c := range todo {
		if limit := c.Resources.Limits.Memory(); !limit.IsZero() {
			w.eventOnce("", v1.EventTypeWarning, "MemoryLimitNotEnforced",
				fmt.Sprintf("Container %s is limited to %s of memory, but %s", c.Name, limit, w.m.cfg.NoMemoryLimits))
		}
	}
}
