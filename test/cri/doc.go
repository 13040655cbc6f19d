// Package cri holds the crishim program against the clients that it is for: the
// real crictl and a stock kubelet, with a real containerd behind it.
//
// It has tests only. bin/tools/crictl and bin/tools/kubelet are built by
// test/setup.sh, or by `make bin/tools/crictl bin/tools/kubelet`.
package cri
