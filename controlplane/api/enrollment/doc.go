// Package enrollment is the contract by which a board becomes a node and stays
// one: the join line, the requests and answers of /v1/join and /v1/renew, the
// names certificates carry, and how each side proves who it is.
//
// Both controlplane and edgelet import it. It imports the standard library only,
// because every board links it.
package enrollment
