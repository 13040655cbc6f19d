//go:build tools

// Package tools names what go.mod alone can't: critest is a test binary.
package tools

import _ "sigs.k8s.io/cri-tools/cmd/critest"
