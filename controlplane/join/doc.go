// Package join owns the fleet endpoint: the one HTTPS server that boards dial
// besides the broker. Here they join, renew, bring tunnels and fetch large objects.
//
// Nothing here is authenticated by the API server: a join token, the possession
// of a recorded key, or a node's certificate is what a request stands on, and
// each handler asks for its own. Tokens and records are Secrets in coracle-system,
// reached through kubernetes.Interface.
//
// It imports pki, noderecord and the contract in controlplane/api/enrollment;
// cmd/controlplane runs it, cmd/coracle calls CreateToken.
package join
