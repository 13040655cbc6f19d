// Package up runs a whole cluster on one machine: the registry, the control
// plane and any number of nodes, each a process of its own as it would be on a
// machine of its own, started again when it dies as an init system would. It
// knows processes, folders and what to print; it has no part in what they do.
package up
