package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// hostLocal gives out the addresses of one range, in the files of the plugin
// host-local and by its rules: round robin, one file per address that holds the
// pod's ID and interface, a lock file, and the last address given.
type hostLocal struct {
	dir     string // of the network
	subnet  netip.Prefix
	from    netip.Addr
	to      netip.Addr
	gateway netip.Addr
}

// hostLocalDir is where the plugin keeps its files if the configuration names
// no dataDir.
const hostLocalDir = "/var/lib/cni/networks"

// rangeConf is a range as host-local's manual has it.
type rangeConf struct {
	Subnet     netip.Prefix `json:"subnet"`
	RangeStart netip.Addr   `json:"rangeStart"`
	RangeEnd   netip.Addr   `json:"rangeEnd"`
	Gateway    netip.Addr   `json:"gateway"`
}

// newHostLocal fills in what the plugin does; false if the range isn't IPv4 or
// the plugin would refuse it.
func newHostLocal(dataDir, network string, r rangeConf) (*hostLocal, bool) {
	if !r.Subnet.IsValid() || !r.Subnet.Addr().Is4() || r.Subnet.Bits() > 30 || r.Subnet != r.Subnet.Masked() {
		return nil, false
	}
	if dataDir == "" {
		dataDir = hostLocalDir
	}
	h := &hostLocal{dir: filepath.Join(dataDir, network), subnet: r.Subnet, from: r.RangeStart, to: r.RangeEnd, gateway: r.Gateway}
	first := r.Subnet.Addr().Next()
	if !h.from.IsValid() {
		h.from = first
	}
	if !h.to.IsValid() {
		h.to = broadcast(r.Subnet).Prev()
	}
	if !h.gateway.IsValid() {
		h.gateway = first
	}
	ok := h.subnet.Contains(h.from) && h.subnet.Contains(h.to) && h.gateway.Is4() && !h.to.Less(h.from)
	return h, ok
}

func broadcast(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(a)
}

// locked runs f with the plugin's lock held.
func (h *hostLocal) locked(f func() error) error {
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(h.dir, "lock"), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // and so unlocked
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if err == nil {
			return f()
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
	}
}

// get reserves an address for a pod.
func (h *hostLocal) get(id string) (given netip.Addr, err error) {
	err = h.locked(func() error {
		has, err := h.of(id)
		if err != nil {
			return err
		}
		if len(has) > 0 {
			return fmt.Errorf("%s has the address %s already", id, filepath.Base(has[0]))
		}
		lastFile := filepath.Join(h.dir, "last_reserved_ip.0")
		raw, err := os.ReadFile(lastFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		last, err := netip.ParseAddr(string(raw))
		if err != nil || last.Less(h.from) || h.to.Less(last) {
			last = h.to
		}
		for a := h.after(last); ; a = h.after(a) {
			if a != h.gateway {
				reserved, err := h.reserve(a, id)
				if err != nil {
					return err
				}
				if reserved {
					given = a
					return os.WriteFile(lastFile, []byte(a.String()), 0o600)
				}
			}
			if a == last {
				return fmt.Errorf("all addresses from %s to %s are in use, see %s", h.from, h.to, h.dir)
			}
		}
	})
	return given, err
}

// after is the next address of the range, which begins again at its end.
func (h *hostLocal) after(a netip.Addr) netip.Addr {
	if a == h.to {
		return h.from
	}
	return a.Next()
}

// reserve makes an address's file, whole or not at all: one without an owner
// could never be given back. The lock is held.
func (h *hostLocal) reserve(a netip.Addr, id string) (bool, error) {
	whole := filepath.Join(h.dir, "reserve.tmp")
	if err := os.WriteFile(whole, []byte(owner(id)), 0o600); err != nil {
		return false, errors.Join(err, os.Remove(whole))
	}
	err := os.Link(whole, filepath.Join(h.dir, a.String()))
	if gone := os.Remove(whole); err == nil {
		err = gone
	}
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// owner is what the plugin writes into an address's file.
func owner(id string) string { return id + "\r\n" + ifName }

// of lists the files of a pod's addresses.
func (h *hostLocal) of(id string) ([]string, error) {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue
		}
		file := filepath.Join(h.dir, e.Name())
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if string(bytes.TrimSpace(raw)) == owner(id) {
			found = append(found, file)
		}
	}
	return found, nil
}

// release gives back what a pod has; it may have nothing.
func (h *hostLocal) release(id string) error {
	return h.locked(func() error {
		has, err := h.of(id)
		for _, file := range has {
			err = errors.Join(err, os.Remove(file))
		}
		return err
	})
}
