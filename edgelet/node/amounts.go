package node

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/coracle-edge/coracle/boards"
)

// amounts are what an administrator may change while the machine runs, in bytes.
type amounts struct {
	disk      int64 // of the data folder's file system; 0 if it can't be told
	swap      int64
	hugepages map[int64]int64 // all pages of a size, by that size
}

// readAmounts reads them. The size of the disk is read once: some file systems
// say another one whenever something is written.
func readAmounts(m *boards.Machine, before amounts) amounts {
	a := amounts{disk: before.disk, swap: meminfo(m.Root)["SwapTotal"], hugepages: hugepages(m.Root)}
	if a.disk == 0 && m.Space != nil {
		if _, total, err := m.Space(m.DataDir); err == nil {
			a.disk = int64(total)
		}
	}
	return a
}

// maxHugepages bounds what is believed of the kernel: 2^50 bytes.
const maxHugepages = 1 << 50

// hugepages reads the pools of huge pages: sysfs has a folder
// hugepages-2048kB for each size that the processor knows, with the number of
// pages in nr_hugepages, 0 unless somebody reserved some.
func hugepages(root fs.FS) map[int64]int64 {
	const dir = "sys/kernel/mm/hugepages"
	entries, err := fs.ReadDir(root, dir)
	if err != nil {
		return nil // a kernel without them
	}
	out := map[int64]int64{}
	for _, e := range entries {
		size, ok := pageSize(e.Name())
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(firstLine(root, dir+"/"+e.Name()+"/nr_hugepages"), 10, 64)
		if err == nil && n >= 0 && n <= maxHugepages/size {
			out[size] = n * size
		}
	}
	return out
}

// pageSize reads "hugepages-2048kB".
func pageSize(name string) (bytes int64, ok bool) {
	text, ok := strings.CutPrefix(name, "hugepages-")
	text, ok2 := strings.CutSuffix(text, "kB")
	n, err := strconv.ParseInt(text, 10, 64)
	if !ok || !ok2 || err != nil || n <= 0 || n > maxHugepages>>10 {
		return 0, false
	}
	return n << 10, true
}

// hugepageResource is the resource of a page size: "hugepages-2Mi".
func hugepageResource(bytes int64) v1.ResourceName {
	return v1.ResourceName(v1.ResourceHugePagesPrefix + resource.NewQuantity(bytes, resource.BinarySI).String())
}

// pressure says of what is short now why; what isn't, is empty.
type pressure struct{ memory, disk, pids string }

func readPressure(m *boards.Machine, disk boards.Storage, f facts) pressure {
	var p pressure
	if mem := meminfo(m.Root); mem["MemTotal"] > 0 {
		if available, ok := mem["MemAvailable"]; ok && available < memoryFloor(mem["MemTotal"]) {
			p.memory = fmt.Sprintf("%d MiB available, less than %d", available>>20, memoryFloor(mem["MemTotal"])>>20)
		}
	}
	p.disk = diskPressure(m, disk)
	// The fourth field of loadavg is RUNNING/TOTAL tasks.
	if fields := strings.Fields(firstLine(m.Root, "proc/loadavg")); len(fields) > 3 && f.maxPIDs > 0 {
		_, total, _ := strings.Cut(fields[3], "/")
		if n, err := strconv.ParseInt(total, 10, 64); err == nil && f.maxPIDs-n < f.maxPIDs/100*pidFloorPercent {
			p.pids = fmt.Sprintf("%d of %d process ids taken", n, f.maxPIDs)
		}
	}
	return p
}

// diskPressure compares with a kubelet's nodefs.available and nodefs.inodesFree:
// a disk full of small files is full, whatever room there is.
func diskPressure(m *boards.Machine, disk boards.Storage) string {
	short := func(what string, ask func(string) (free, total uint64, err error), percent uint64, unit func(uint64) string) string {
		if ask == nil {
			return ""
		}
		free, total, err := ask(m.DataDir)
		if err != nil || total == 0 || float64(free) >= float64(total)*float64(percent)/100 {
			return ""
		}
		return fmt.Sprintf("%s of %s %s free on %s, where %s is; less than %d %%", unit(free), unit(total), what, disk, m.DataDir, percent)
	}
	if s := short("space", m.Space, diskFloorPercent, func(n uint64) string { return fmt.Sprintf("%d MiB", n>>20) }); s != "" {
		return s
	}
	return short("inodes", m.Inodes, inodeFloorPercent, func(n uint64) string { return strconv.FormatUint(n, 10) })
}
