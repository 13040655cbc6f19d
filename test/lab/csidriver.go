package lab

import "testing"

// CSIDriver builds test/csidriver's program and returns its path.
func CSIDriver(t testing.TB) string {
	t.Helper()
	return buildPath(t, "csidriverd", "./test/csidriver/csidriverd")
}

// HostPathDriver builds Kubernetes' hostpath CSI driver and returns its path.
func HostPathDriver(t testing.TB) string {
	t.Helper()
	return buildIn(t, "hostpathplugin", "test/csidriver/hostpath", "-ldflags", "-s -w -X main.version=v1.7.2", "tool")
}
