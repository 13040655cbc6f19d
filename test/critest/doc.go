// Package critest runs the CRI's own validation suite against crishim: with OCI
// images and containerd behind it, held against containerd alone, and with Wasm
// images in place of the suite's.
//
// It has tests only, and what they read. `make critest` builds critest and
// containerd into bin/tools/cri and runs them; by hand:
//
//	go test ./test/critest -run TestSuite -args -full -focus='execSync' -runs=containerd,crishim
package critest
