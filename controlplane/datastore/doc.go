// Package datastore owns etcd: embedded by default, an external cluster by
// endpoints and TLS files. Everything above it sees one [Store] with one client
// that all API storages share.
//
// Embedded etcd opens no port and no socket: the client is a function call, and
// the one part of upstream that insists on dialing gets a socket pair. It is
// tuned for flash: small write-ahead segments, few entries kept in memory, no
// write without a cause (compaction is skipped when nothing changed).
//
// The fsync policy is etcd's own: every write is synced to the write-ahead log
// before it is acknowledged.
//
// It may import etcd, k8s.io/apiserver/pkg/storage and nothing of ours.
// controlplane/apiserver and cmd/controlplane call it.
package datastore
