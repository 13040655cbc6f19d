package affinity

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
)

// sysCPU is how a kernel shows a processor.
type sysCPU struct {
	id              int
	siblings        string
	pkg             string
	node            int
	oldSiblingsName bool
}

// sysfs is a machine's /sys. nodes is memory in MiB of each; none: the kernel has no
// NUMA.
func sysfs(online string, cpus []sysCPU, nodes ...int) fstest.MapFS {
	out := fstest.MapFS{}
	put := func(name, text string) { out["sys/devices/system/"+name] = &fstest.MapFile{Data: []byte(text + "\n")} }
	put("cpu/online", online)
	list := make([][]string, len(nodes))
	for _, c := range cpus {
		at := fmt.Sprintf("cpu/cpu%d/topology/", c.id)
		name := "core_cpus_list"
		if c.oldSiblingsName {
			name = "thread_siblings_list"
		}
		if c.siblings != "" {
			put(at+name, c.siblings)
		}
		if c.pkg != "" {
			put(at+"physical_package_id", c.pkg)
		}
		if len(nodes) > 0 {
			list[c.node] = append(list[c.node], fmt.Sprint(c.id))
		}
	}
	for i, mib := range nodes {
		put("node/online", fmt.Sprintf("0-%d", len(nodes)-1))
		put(fmt.Sprintf("node/node%d/cpulist", i), strings.Join(list[i], ","))
		put(fmt.Sprintf("node/node%d/meminfo", i), fmt.Sprintf("\nNode %d MemTotal:       %d kB\nNode %d MemFree:  1 kB", i, mib<<10, i))
	}
	return out
}

// pi4 is a Raspberry Pi 4 with its own kernel: four cores, no NUMA.
func pi4() fstest.MapFS {
	var cpus []sysCPU
	for i := range 4 {
		cpus = append(cpus, sysCPU{id: i, siblings: fmt.Sprint(i), pkg: "0"})
	}
	return sysfs("0-3", cpus)
}

// rk3588 is a board with four small cores and two pairs of large ones, which its
// vendor's kernel (5.10) calls three packages.
func rk3588() fstest.MapFS {
	var cpus []sysCPU
	for i := range 8 {
		cpus = append(cpus, sysCPU{id: i, siblings: fmt.Sprint(i), pkg: fmt.Sprint([8]int{0, 0, 0, 0, 1, 1, 2, 2}[i]), oldSiblingsName: true})
	}
	return sysfs("0-7", cpus, 8000)
}

// server is a PC with two packages of two nodes of four cores of two threads.
func server() fstest.MapFS {
	var cpus []sysCPU
	for i := range 32 {
		c := i % 16
		cpus = append(cpus, sysCPU{id: i, siblings: fmt.Sprintf("%d,%d", c, c+16), pkg: fmt.Sprint(c / 8), node: c / 4})
	}
	return sysfs("0-31", cpus, 1024, 1024, 1024, 1024)
}

// laptop is a PC with one node, two cores of two threads and two small ones.
func laptop() fstest.MapFS {
	return sysfs("0-5", []sysCPU{{id: 0, siblings: "0-1", pkg: "0"}, {id: 1, siblings: "0-1", pkg: "0"}, {id: 2, siblings: "2-3", pkg: "0"},
		{id: 3, siblings: "2-3", pkg: "0"}, {id: 4, siblings: "4", pkg: "0"}, {id: 5, siblings: "5", pkg: "0"}}, 4096)
}

func machine(t *testing.T, fs fstest.MapFS) *Topology {
	t.Helper()
	m, err := Read(fs, 4<<30)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTopologiesOfBoards(t *testing.T) {
	show := func(m *Topology) string {
		var b strings.Builder
		for _, c := range m.CPUs {
			fmt.Fprintf(&b, "%d:%d/%d/%d ", c.ID, c.Core, c.Socket, c.Node)
		}
		return strings.TrimSpace(b.String())
	}
	offline := rk3588()
	offline["sys/devices/system/cpu/online"] = &fstest.MapFile{Data: []byte("0-2,4-6\n")}
	dt := pi4()
	dt["sys/devices/system/cpu/cpu1/topology/physical_package_id"] = &fstest.MapFile{Data: []byte("-1\n")}
	bare := fstest.MapFS{"sys/devices/system/cpu/online": {Data: []byte("0-1\n")}}
	half := laptop() // of the first core one thread is off
	half["sys/devices/system/cpu/online"] = &fstest.MapFile{Data: []byte("1-5\n")}
	for name, c := range map[string]struct {
		fs      fstest.MapFS
		want    string
		threads int
	}{
		"Raspberry Pi 4":             {pi4(), "0:0/0/0 1:1/0/0 2:2/0/0 3:3/0/0", 1},
		"without packages":           {dt, "0:0/0/0 1:1/0/0 2:2/0/0 3:3/0/0", 1},
		"RK3588":                     {rk3588(), "0:0/0/0 1:1/0/0 2:2/0/0 3:3/0/0 4:4/1/0 5:5/1/0 6:6/2/0 7:7/2/0", 1},
		"RK3588 with processors off": {offline, "0:0/0/0 1:1/0/0 2:2/0/0 4:4/1/0 5:5/1/0 6:6/2/0", 1},
		"a kernel that says no more": {bare, "0:0/0/0 1:1/0/0", 1},
		"cores of different kinds":   {laptop(), "0:0/0/0 1:0/0/0 2:2/0/0 3:2/0/0 4:4/0/0 5:5/0/0", 2},
		"a thread of a core is off":  {half, "1:1/0/0 2:2/0/0 3:2/0/0 4:4/0/0 5:5/0/0", 2},
	} {
		m := machine(t, c.fs)
		if got := show(m); got != c.want || m.threads() != c.threads {
			t.Errorf("%s: %s, %d threads a core", name, got, m.threads())
		}
	}
	m := machine(t, server())
	if len(m.CPUs) != 32 || *m.cpu(29) != (CPU{29, 13, 1, 3}) || m.nodes() != 15 || m.Nodes[2].Memory != 1<<30 {
		t.Errorf("a server: %v %v", m.CPUs, m.Nodes)
	}
	if m := machine(t, pi4()); m.Nodes[0].Memory != 4<<30 {
		t.Errorf("a kernel without nodes: %v", m.Nodes)
	}
	if _, err := Read(fstest.MapFS{}, 1); err == nil {
		t.Error("no processors at all")
	}
}

func TestSets(t *testing.T) {
	for in, want := range map[string]string{"": "", "0": "0", "0-3,6": "0-3,6", "6,0-1,1-3": "0-3,6", " 2\n": "2"} {
		if s, err := ParseSet(in); err != nil || s.String() != want {
			t.Errorf("%q: %s, %v", in, s, err)
		}
	}
	for _, in := range []string{"x", "-1", "1-", "3-1", "0,,1", "99999", "0-99999999999", "1 2", "+1"} {
		if s, err := ParseSet(in); err == nil {
			t.Errorf("%q is %s", in, s)
		}
	}
}

// Whatever a kernel, a file of another system, or an operator says.
func FuzzTopology(f *testing.F) {
	f.Add("0-3", "0-1", "2", "0", "0-1", "Node 0 MemTotal: 1024 kB")
	f.Add("0,2-8191", "0-8191", "-1", "7", "0-63", "Node 0 MemTotal: 18446744073709551615 kB")
	f.Fuzz(func(t *testing.T, online, siblings, pkg, node, list, meminfo string) {
		put := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
		fs := fstest.MapFS{cpuDir + "/online": put(online), nodeDir + "/online": put(node), nodeDir + "/node0/meminfo": put(meminfo), nodeDir + "/node0/cpulist": put(list),
			nodeDir + "/node0/hugepages/hugepages-2048kB/nr_hugepages": put(pkg)}
		for i := range 4 {
			fs[fmt.Sprintf("%s/cpu%d/topology/core_cpus_list", cpuDir, i)] = put(siblings)
			fs[fmt.Sprintf("%s/cpu%d/topology/physical_package_id", cpuDir, i)] = put(pkg)
		}
		m, err := Read(fs, 1<<30)
		if err != nil {
			return
		}
		for _, c := range m.CPUs {
			if core := m.cpu(c.Core); core == nil || core.Core != c.Core || core.ID > c.ID || !m.nodes().Has(c.Node) {
				t.Fatalf("processor %+v of %+v", c, m)
			}
		}
		all := m.All()
		again, err := ParseSet(all.String())
		if err != nil || len(again) != len(all) || len(m.CPUs) > 64 {
			if err != nil || len(again) != len(all) {
				t.Fatalf("%s became %s: %v", all, again, err)
			}
			return
		}
		for n := 0; n <= len(all); n++ {
			for _, spread := range []bool{false, true} {
				if got, err := m.take(all, n, spread); err != nil || len(got) != n || !got.Within(all) {
					t.Fatalf("%d of %s: %s, %v", n, all, got, err)
				}
			}
		}
	})
}

func FuzzRecords(f *testing.F) {
	f.Add(podGiven{"main": {CPUs: NewSet(1, 2), Memory: []Block{{"memory", 1 << 20, 1}}}}.encode())
	f.Add(machineRecord{CPU: CPUStatic, Online: "0-3"}.encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		if p, err := decodePod(raw); err == nil {
			again, err := decodePod(p.encode())
			if err != nil || len(again) != len(p) {
				t.Fatalf("%v became %v: %v", p, again, err)
			}
		}
		if m, err := decodeMachine(raw); err == nil {
			if again, err := decodeMachine(m.encode()); err != nil || again != m {
				t.Fatalf("%v became %v: %v", m, again, err)
			}
		}
		_, _ = ParseReservedMemory(string(raw))
	})
}
