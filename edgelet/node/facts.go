package node

import (
	"bufio"
	"bytes"
	"io/fs"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
)

// facts don't change while the machine runs.
type facts struct {
	memory                  int64 // bytes
	cpus                    int
	machineID, systemUUID   string
	bootID, kernel, osImage string
}

func readFacts(root fs.FS, cores int) facts {
	f := facts{
		cpus:       cores,
		memory:     meminfo(root)["MemTotal"],
		machineID:  firstLine(root, "etc/machine-id"),
		bootID:     firstLine(root, "proc/sys/kernel/random/boot_id"),
		kernel:     firstLine(root, "proc/sys/kernel/osrelease"),
		systemUUID: firstLine(root, "sys/class/dmi/id/product_uuid"),
		osImage:    osRelease(root),
	}
	if f.machineID == "" {
		f.machineID = firstLine(root, "var/lib/dbus/machine-id")
	}
	if f.systemUUID == "" {
		f.systemUUID = strings.TrimRight(firstLine(root, "proc/device-tree/serial-number"), "\x00")
	}
	if f.systemUUID == "" {
		f.systemUUID = f.machineID
	}
	if f.cpus == 0 {
		f.cpus = runtime.NumCPU()
	}
	return f
}

func firstLine(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

// meminfo in bytes.
func meminfo(root fs.FS) map[string]int64 {
	b, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return nil
	}
	out := map[string]int64{}
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		name, rest, ok := strings.Cut(s.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 || (name != "MemTotal" && name != "MemAvailable" && name != "SwapTotal") {
			continue
		}
		if kb, err := strconv.ParseUint(fields[0], 10, 52); err == nil {
			out[name] = int64(kb) << 10
		}
	}
	return out
}

func osRelease(root fs.FS) string {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		b, err := fs.ReadFile(root, name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				return strings.Trim(v, `"'`)
			}
		}
	}
	return "Linux"
}

// hostIPs returns the addresses of the interface with the default route, else
// of the first one that is up, else loopback: a board without a network runs
// pods, and they have a host. At most one of each family, IPv4 first.
func hostIPs(root fs.FS) []string {
	if ips := interfaceIPs(defaultInterface(root)); len(ips) > 0 {
		return ips
	}
	interfaces, err := net.Interfaces()
	if err == nil {
		for _, i := range interfaces {
			if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || podsOwn(root, i.Name) {
				continue
			}
			if ips := interfaceIPs(i.Name); len(ips) > 0 {
				return ips
			}
		}
	}
	return []string{"127.0.0.1"}
}

// podsOwn: bridges and their ends come and go with pods; they are not the node's
// way to the world unless the default route says so.
func podsOwn(root fs.FS, name string) bool {
	if strings.HasPrefix(name, "veth") {
		return true
	}
	_, err := fs.Stat(root, "sys/class/net/"+name+"/bridge")
	return err == nil
}

func defaultInterface(root fs.FS) string {
	b, err := fs.ReadFile(root, "proc/net/route")
	if err != nil {
		return ""
	}
	return parseRoute(b)
}

// parseRoute returns the interface of the default route with the lowest metric.
func parseRoute(b []byte) string {
	best, metric := "", int64(-1)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		if m, err := strconv.ParseInt(f[6], 10, 64); err == nil && (metric < 0 || m < metric) {
			best, metric = f[0], m
		}
	}
	return best
}

func interfaceIPs(name string) []string {
	if name == "" {
		return nil
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil
	}
	var v4, v6 string
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().IsGlobalUnicast() {
			continue
		}
		switch ip := p.Addr(); {
		case ip.Is4() && v4 == "":
			v4 = ip.String()
		case ip.Is6() && v6 == "":
			v6 = ip.String()
		}
	}
	var out []string
	for _, ip := range []string{v4, v6} {
		if ip != "" {
			out = append(out, ip)
		}
	}
	return out
}
