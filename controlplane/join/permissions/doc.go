// Package permissions is the table of what a node may do, for every API verb and
// resource, every MQTT topic and every path of the fleet endpoint. Nothing in
// production reads it: it says what the authorizers, the admission plugins, the
// brokers' rules and the handlers come to together, docs/security.md shows it, and
// tests walk it against all of them, as that node, as another one, and as one that
// was revoked.
//
// It imports nothing of ours.
package permissions
