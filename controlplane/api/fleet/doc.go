// Package fleet is the wire contract between the fleet hub (controlplane) and
// the node's link (edgelet): the messages, the signed envelope around them, the
// sealing of secrets, the digest of a set of objects, the order of versions, the
// MQTT topics and who may use them, and all size limits.
//
// It is the only package that both sides import, so it is light: protobuf, zstd
// and the standard library, nothing of Kubernetes and nothing of ours. What the
// messages mean is written down in docs/fleet-protocol.md; golden fixtures in
// testdata pin the bytes.
//
// Generate after a change of fleet.proto (protoc 3.21, protoc-gen-go v1.36.11):
//
//	protoc --go_out=. --go_opt=paths=source_relative fleet.proto
//
//go:generate protoc --go_out=. --go_opt=paths=source_relative fleet.proto
package fleet
