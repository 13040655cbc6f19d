package wasm

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// inNetNS runs a function on a thread of a network namespace, or here for "".
func inNetNS(path string, do func() error) error {
	if path == "" {
		return do()
	}
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("network namespace %s: %w", path, err)
			return
		}
		done <- do()
	}()
	return <-done
}

// netCounters are what the kernel counts of an interface.
type netCounters struct {
	name                                 string
	rxBytes, rxPackets, rxErrors, rxDrop uint64
	txBytes, txPackets, txErrors, txDrop uint64
}

// readNetDev reads the counters of a network namespace, without those of lo.
func readNetDev(netns string) (out []netCounters, err error) {
	err = inNetNS(netns, func() error {
		f, err := os.Open("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		defer f.Close()
		out, err = parseNetDev(f)
		return err
	})
	return out, err
}

// parseNetDev reads the format of /proc/net/dev, proc(5).
func parseNetDev(r io.Reader) ([]netCounters, error) {
	var out []netCounters
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		name, rest, ok := strings.Cut(sc.Text(), ":")
		f := strings.Fields(rest)
		name = strings.TrimSpace(name)
		if !ok || len(f) < 12 || name == "lo" || name == "" {
			continue
		}
		num := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 64); return n }
		out = append(out, netCounters{name, num(0), num(1), num(2), num(3), num(8), num(9), num(10), num(11)})
	}
	return out, sc.Err()
}

// networkUsage is what ListPodSandboxStats says of a network namespace.
func networkUsage(netns string, at int64) *runtimeapi.NetworkUsage {
	all, err := readNetDev(netns)
	if err != nil {
		return nil
	}
	u := &runtimeapi.NetworkUsage{Timestamp: at}
	for _, c := range all {
		i := &runtimeapi.NetworkInterfaceUsage{Name: c.name, RxBytes: u64(c.rxBytes), RxErrors: u64(c.rxErrors), TxBytes: u64(c.txBytes), TxErrors: u64(c.txErrors)}
		if u.DefaultInterface == nil && c.name == defaultInterface {
			u.DefaultInterface = i
			continue
		}
		u.Interfaces = append(u.Interfaces, i)
	}
	return u
}

// defaultInterface is what CNI calls a pod's first one.
const defaultInterface = "eth0"
