// Package state is what a node knows durably: what it should run (the desired
// set and the version of the order it came with), what it last said of each
// object (the outbox), its journal, one opaque runtime record per pod, the
// number of this start, and the time floor. One bbolt file, one transaction per
// durable write.
//
// # What is durable when
//
// [Store.Apply], [Store.PutPodRecord], [Store.RaiseTimeFloor] and
// [Store.PutSetting] return when their change is on the disk: callers that come
// at the same time share one transaction. Reports and journal entries are kept
// in memory and written together, [Options.FlushDelay] after the first of them or
// with the next durable write, whichever is earlier. A power cut in that time
// loses a report that the node makes again when it starts, or the newest journal
// entries. Acknowledgements never cause a write: they go along with the next
// one; if they are lost, what was acknowledged is sent once more and found
// obsolete. So a node on which nothing changes writes nothing.
//
// Every transaction costs two fdatasync: data pages, then the meta page.
// [Store.Written] counts them and their bytes.
//
// # Full and broken disks
//
// A write that finds the disk full returns [ErrFull]; what was there before stays,
// what is buffered stays in memory and is tried again. A file that can't be read
// is set aside as NAME.corrupt-N, never deleted, and the node starts with an
// empty one: its version is zero then, which means that nobody has said yet what
// the node should run, and nothing may be stopped for being absent.
//
// Secrets stay sealed as they came; [Options.Unseal] opens them on reading.
//
// It imports controlplane/api only. edgelet/link writes the desired set and
// empties the outbox; edgelet/pods reads the one and fills the other.
package state
