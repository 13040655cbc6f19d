package node

import (
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
