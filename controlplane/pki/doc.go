// Package pki owns the cluster's keys and certificates: one root that boards
// pin for decades, and everything that it signs.
//
// The files under the control plane's data folder, all 0600:
//
//	ca.crt ca.key                          root: ECDSA P-256, 30 years
//	front-proxy-ca.crt front-proxy-ca.key  a root of its own for request headers
//	sa.key sa.pub                          signs service account tokens (ES256)
//	NAME.crt NAME.key                      leaves; the key stays when the certificate is renewed
//
// The roots and sa.key are made once, together, by renaming a finished folder
// into place; afterwards nothing of them is ever made again: a file that is
// missing or corrupt is an error that names it. A leaf that is missing is issued
// again, one that is corrupt is an error.
//
// The root is ECDSA P-256 and not Ed25519 because every TLS library a client of
// the API may use accepts it; nodes and the hub have Ed25519 keys, which only
// our own code, Go and OpenSSL (mosquitto) have to verify.
//
// pki imports the standard library, internal/durable and the contract in
// controlplane/api/enrollment. cmd/controlplane opens it; apiserver, broker,
// hub and join are handed leaves.
package pki
