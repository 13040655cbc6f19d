// Package shutdown ends pods in order when the machine goes down: systemd's
// logind is asked to wait (a delay lock), tells when somebody presses the power
// button or calls `systemctl poweroff`, and goes on when the lock is let go.
//
// Order, reasons and words are a kubelet's (KEP-2000, KEP-2712;
// k8s.io/kubernetes/pkg/kubelet/nodeshutdown). Without grace periods nothing of
// this runs: pods are killed with the machine, and run again after it.
//
// The client of the bus is our own, three hundred lines: what libraries for it
// have for serving objects keeps every exported method of the whole program in
// the binary, because it calls them by name.
//
// It imports edgelet/pods. cmd/edgelet runs it and asks it for admission and for
// the node's readiness.
package shutdown
