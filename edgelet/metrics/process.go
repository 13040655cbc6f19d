package metrics

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// userHertz is the unit of /proc's times on all architectures of Linux.
const userHertz = 100

// Process writes what the kernel and Go's runtime know of this process, by the
// names that Prometheus' own libraries use. What can't be read is left out.
func Process(p *Page) { process(p, "/proc") }

func process(p *Page, proc string) {
	p.Gauge("go_goroutines", "Number of goroutines that currently exist.")
	p.Sample("go_goroutines", float64(runtime.NumGoroutine()))
	// The name in brackets may contain anything.
	raw, err := os.ReadFile(proc + "/self/stat")
	if f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:])); err == nil && len(f) > 21 {
		number := func(i int) float64 { n, _ := strconv.ParseFloat(f[i-3], 64); return n } // counted as in proc(5)
		p.Counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")
		p.Sample("process_cpu_seconds_total", (number(14)+number(15))/userHertz)
	}
	raw, err = os.ReadFile(proc + "/self/statm")
	if f := strings.Fields(string(raw)); err == nil && len(f) > 1 {
		pages, _ := strconv.ParseFloat(f[1], 64)
		p.Gauge("process_resident_memory_bytes", "Resident memory size in bytes.")
		p.Sample("process_resident_memory_bytes", pages*float64(os.Getpagesize()))
	}
	if list, err := os.ReadDir(proc + "/self/fd"); err == nil {
		p.Gauge("process_open_fds", "Number of open file descriptors.")
		p.Sample("process_open_fds", float64(len(list)))
	}
}
