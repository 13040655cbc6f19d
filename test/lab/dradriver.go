package lab

import "testing"

// DRADriver builds test/dradriver's program and returns its path.
func DRADriver(t testing.TB) string {
	t.Helper()
	return buildPath(t, "dradriverd", "./test/dradriver/dradriverd")
}
