// Package identity owns who a node is: its two keys, which never leave it, its
// certificate, the roots it trusts, and where its control plane is.
//
// keys.pem is made once, before the first word to the control plane, so that a
// lost answer is asked for again with the same key. identity.json is what the
// control plane granted, replaced as a whole by every renewal. Both are 0600 and
// written durably.
//
// Nothing here needs a right clock. Certificates are verified at the later of
// the clock and the persisted time floor, and one that is authentic but not
// valid yet is taken as news about the time: its NotBefore raises the floor.
//
// It imports the standard library, x/sys, internal/durable and the contracts in
// controlplane/api. cmd/edgelet joins and loads; link, tunnel, pods
// and volumes are handed the Identity.
package identity
