// Package snapshots keeps copies of the cluster's state in a folder: taken on a
// schedule, on request and before an upgrade, a bounded number of them in a
// bounded number of bytes.
//
// A snapshot is the file that etcd's own tools write and read: the database and
// its SHA-256. It holds every Secret in clear, so folder and files are their
// owner's alone. Its name says when it was taken, up to which revision it goes
// and why it was taken; there is no index that could disagree with the files.
//
// A snapshot is written beside its place, synced, checked and then renamed, so
// that what is in the folder is whole; older ones are removed only afterwards. If
// nothing changed since the newest one, none is taken: an idle cluster costs no
// flash.
//
// It imports bbolt and nothing of ours but internal/durable; where the bytes come
// from is a [Source], which datastore.Store is. cmd/controlplane runs a [Keeper];
// putting a snapshot back is datastore.Restore.
package snapshots
