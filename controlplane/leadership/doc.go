// Package leadership says which of several control planes on one etcd works, by a
// Lease in the API: its hub gives orders, its scheduler and controllers write. The
// others serve the API and wait.
//
// Who holds the Lease is decided by client-go's election, on etcd's compare and
// swap. What is added is the other half: [Leadership.Held] says at any moment, by a
// clock that runs on while the process is frozen or the machine asleep, whether the
// lease may still be counted on. Whatever acts in its name asks before it acts, so
// a deposed control plane that wakes up does nothing more, even before it has heard
// of its successor. [Leadership.Gate] asks for clients of the API.
//
// The Lease says where its holder is reached, so that the others can pass on what
// only it can do: [Leadership.Leader].
//
// It imports client-go and nothing of ours; cmd/controlplane runs it where etcd is
// external. With an embedded etcd there is nobody to compete with, and no Lease,
// because renewing it would be all that an idle cluster writes.
package leadership
