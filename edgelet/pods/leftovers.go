package pods

import (
	"context"
	"maps"
	"slices"
)

// cleanVolumes removes what pods that are no more have left on the node: an agent
// was killed, or a board lost its power, between a pod's end and the end of its
// volumes. keep are the pods that are here or should be. It is called once all of
// these are known.
func (m *Manager) cleanVolumes(ctx context.Context, keep map[string]bool) {
	uids, err := m.cfg.Volumes.Pods()
	if err != nil {
		m.log.Warn("what pods have left can't be read", "err", err)
		return
	}
	if m.cfg.Claims != nil {
		uids = append(uids, m.cfg.Claims.Pods()...)
		slices.Sort(uids)
		uids = slices.Compact(uids)
	}
	uids = slices.DeleteFunc(uids, func(uid string) bool { return keep[uid] })
	if len(uids) == 0 || !m.cleaning.CompareAndSwap(false, true) {
		return
	}
	// Not in the caller's way: a driver may take its time, or not be there yet.
	m.wg.Go(func() {
		defer m.cleaning.Store(false)
		for _, uid := range uids {
			if ctx.Err() != nil {
				return
			}
			if err := m.unprepareLeft(ctx, uid); err != nil {
				m.log.Warn("resource claims of a pod that is no more stay prepared for now", "uid", uid, "err", err)
			}
			if err := m.cfg.Volumes.TearDown(uid); err != nil {
				m.log.Warn("volumes of a pod that is no more stay for now", "uid", uid, "err", err)
				continue
			}
			m.log.Info("removed the volumes of a pod that is no more", "uid", uid)
		}
	})
}

// keepLocked are the UIDs that have something to lose; it needs m.mu.
func (m *Manager) keepLocked(want map[string]bool, seen map[string]seenPod) map[string]bool {
	keep := maps.Clone(want)
	for uid := range m.workers {
		keep[uid] = true
	}
	for uid := range seen {
		keep[uid] = true
	}
	return keep
}

// VolumesChanged has every pod look at its volumes again: a driver came, or a
// volume grew.
func (m *Manager) VolumesChanged() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		w.dirty.Store(true)
		w.signal()
	}
}
