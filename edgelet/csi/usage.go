package csi

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// statsTimeout bounds one driver's answer to how full a volume is: figures of
	// all pods wait for it.
	statsTimeout = 5 * time.Second
	// statsPause is how long a driver that didn't answer in time isn't asked again.
	statsPause = time.Minute
)

// VolumeUsage is how full a volume of a pod is.
type VolumeUsage struct {
	// Volume is what the pod calls it, empty if that isn't known; Name is the
	// PersistentVolume's, or the same of an inline volume.
	Volume, Name string
	Usage
}

// Usage asks drivers how full the volumes of a pod are. Volumes of drivers that
// can't tell are left out, as by a kubelet (csi_metrics.go). The error is about
// those that could and didn't; the others are there all the same.
func (m *Manager) Usage(ctx context.Context, podUID string) ([]VolumeUsage, error) {
	records, err := m.of(podUID)
	if err != nil {
		return nil, err
	}
	var out []VolumeUsage
	var errs []error
	for _, r := range records {
		u, ok, err := m.usage(ctx, r)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("NodeGetVolumeStats of volume %s: %w", r.Name, err))
		case ok:
			out = append(out, VolumeUsage{r.PodVolume, r.Name, u})
		}
	}
	return out, errors.Join(errs...)
}

func (m *Manager) usage(ctx context.Context, r *record) (Usage, bool, error) {
	if r.Boot != m.Boot { // it isn't there yet, or no more
		return Usage{}, false, nil
	}
	d, err := m.driver(r.Driver)
	if err != nil || !d.caps.has(capStats) {
		return Usage{}, false, nil
	}
	m.mu.Lock()
	silent := time.Now().Before(d.silent)
	m.mu.Unlock()
	if silent {
		return Usage{}, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	raw, err := d.call(ctx, "NodeGetVolumeStats", statsRequest(r.Handle, r.Target, r.Staging))
	if err != nil {
		if ctx.Err() != nil {
			m.mu.Lock()
			d.silent = time.Now().Add(statsPause)
			m.mu.Unlock()
		}
		return Usage{}, false, err
	}
	u, err := decodeUsage(raw)
	return u, err == nil, err
}
