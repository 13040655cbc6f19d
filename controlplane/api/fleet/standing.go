package fleet

// Refuses says whether s ends the node's sessions: so does every state that this
// version doesn't know, because a later one may have another reason.
func (s *Standing) Refuses() bool {
	switch s.GetState() {
	case StandingState_GOOD, StandingState_REMOVED:
		return false
	}
	return s != nil
}

// FeatureProbe in Hello.features says that the node answers a Probe.
const FeatureProbe = "probe"
