// Command fleet measures what a fleet costs that loses its broker and comes back,
// and how soon a node that died is known to have.
//
// The control plane is the real program, in a process of its own; so is the
// broker, mosquitto, unless it is the embedded one. The nodes share one more
// process: each has the agent's own identity, link and state, files included, and
// pods that are only said to run (agent.go). They join as boards do.
//
// -broker says what is lost:
//
//	mosquitto     the broker, SIGKILL; the control plane knows, and calls nobody away
//	controlplane  the control plane, SIGKILL, and with it the embedded broker
//	network       the nodes' connections to the embedded broker; the control plane
//	              sees each of them break, and calls all nodes away: it can't tell
//	              this from their deaths
package main
