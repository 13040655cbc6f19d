package runner

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/coracle-edge/coracle/wasmruntime/internal/wasi"
)

// errOutbound is for a module that would make connections and may not.
var errOutbound = errors.New("the module imports functions of the socket extension")

// allowOutbound holds what the module imports against what the guest may, and
// reads, while files of the host can be seen, where names are looked up.
func (s *stage) allowOutbound() error {
	if s.spec.Outbound == nil {
		for _, name := range s.order.Imports {
			if fn, _, socket := strings.Cut(name, " "); socket {
				return fmt.Errorf("%w, %s among them", errOutbound, fn)
			}
		}
		return nil
	}
	spec := s.spec.Outbound
	o := &wasi.Outbound{Searches: spec.Searches, Ndots: spec.Ndots}
	for _, server := range spec.Servers {
		addr, err := nameServer(server)
		if err != nil {
			return fmt.Errorf("name server %q: %w", server, err)
		}
		o.Servers = append(o.Servers, addr)
	}
	if err := readFile(spec.ResolvConf, func(r io.Reader) { resolvConf(r, o) }); err != nil {
		return err
	}
	if err := readFile(spec.Hosts, func(r io.Reader) { hosts(r, o) }); err != nil {
		return err
	}
	s.order.Outbound = o
	return nil
}

// mostLines bounds what of a file is read; the rest counts for nothing.
const mostLines = 4 << 20

func readFile(path string, f func(io.Reader)) error {
	if path == "" {
		return nil
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // as for any program of the host
	}
	if err != nil {
		return err
	}
	defer file.Close()
	f(io.LimitReader(file, mostLines))
	return nil
}

// nameServer reads an address, with a port if it isn't 53.
func nameServer(text string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(addr, 53), nil
	}
	return netip.ParseAddrPort(text)
}

// fields gives the words of each line up to a comment.
func fields(r io.Reader, f func([]string)) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		if words := strings.Fields(line); len(words) > 1 {
			f(words)
		}
	}
}

// resolvConf reads resolv.conf(5). What the specification says itself stays.
func resolvConf(r io.Reader, o *wasi.Outbound) {
	var searches []string
	ndots, servers := 0, []netip.AddrPort(nil)
	fields(r, func(words []string) {
		switch words[0] {
		case "nameserver":
			if addr, err := nameServer(words[1]); err == nil && len(servers) < 3 {
				servers = append(servers, addr)
			}
		case "search", "domain":
			searches = words[1:]
		case "options":
			for _, w := range words[1:] {
				if n, ok := strings.CutPrefix(w, "ndots:"); ok {
					ndots, _ = strconv.Atoi(n)
				}
			}
		}
	})
	if len(o.Servers) == 0 {
		o.Servers = servers
	}
	if len(o.Searches) == 0 {
		o.Searches = searches
	}
	if o.Ndots == 0 {
		o.Ndots = ndots
	}
}

// hosts reads hosts(5).
func hosts(r io.Reader, o *wasi.Outbound) {
	fields(r, func(words []string) {
		addr, err := netip.ParseAddr(words[0])
		if err != nil {
			return
		}
		for _, name := range words[1:] {
			if name = strings.TrimSuffix(name, "."); name != "" { // the root has no address
				o.Hosts = append(o.Hosts, wasi.Host{Name: strings.ToLower(name), Addr: addr.WithZone("")})
			}
		}
	})
}
