// Package identity tests who is let in, with the real programs: a control plane,
// agents with Wasm pods, the operator's tool, each a process of its own.
package identity
