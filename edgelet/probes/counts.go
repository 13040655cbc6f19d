package probes

// Counts is how often a probe of a container ran, by result.
type Counts struct{ Successful, Failed, Unknown uint64 }

func (c *Counts) add(v verdict, err error) {
	switch {
	case err != nil || v == unknown:
		c.Unknown++
	case v == failed:
		c.Failed++
	default: // a warning is a success, as upstream
		c.Successful++
	}
}

// Each calls visit with every probe that is watched, in no order. It must not call
// the Manager.
func (m *Manager) Each(visit func(podUID, container string, kind Kind, c Counts)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, p := range m.pods {
		for _, c := range p.containers {
			for _, pr := range c.probes {
				if pr != nil {
					visit(uid, c.name, pr.kind, pr.counts)
				}
			}
		}
	}
}
