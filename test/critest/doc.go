// Package critest runs the CRI's own validation suite against crishim: with OCI
// images and containerd behind it, held against containerd alone, and with Wasm
// images in place of the suite's.
//
// It has tests only, and what they read. `make critest` (test/critest.sh) builds
// critest and containerd into bin/tools/cri and runs them; then, by hand:
//
//	go test -tags grpcnotrace,slow ./test/critest -run TestSuite -args -focus=execSync -runs=containerd,crishim
//
// wasm-skips.txt lists the specs that don't apply to Wasm, each with the reason; one
// that is neither run nor listed is a failure. box is what stands for busybox there.
package critest
