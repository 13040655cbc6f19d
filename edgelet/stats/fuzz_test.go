package stats

import (
	"os"
	"path/filepath"
	"testing"
)

// What /proc says of the machine and of the agent's own group.
func FuzzProc(f *testing.F) {
	f.Add("0.1 0.2 0.3 2/345 6\n", "0::/system.slice/edgelet.service\n", "8 0 1024 sda\n", "4194304\n")
	f.Add("a b c d", "4:memory:/x\n3:cpu", "8 0 1", "-1")
	proc := f.TempDir()
	for _, dir := range []string{"sys/kernel", "self"} {
		if err := os.MkdirAll(filepath.Join(proc, dir), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	c := &Collector{Config: Config{Proc: proc}, cgroups: OpenCgroups(f.TempDir())}
	f.Fuzz(func(t *testing.T, load, cgroup, partitions, most string) {
		for name, text := range map[string]string{"loadavg": load, "self/cgroup": cgroup, "partitions": partitions, "sys/kernel/pid_max": most,
			"sys/kernel/threads-max": most, "meminfo": load, "stat": load} {
			if err := os.WriteFile(filepath.Join(proc, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ReadTasks(proc)
		m := ReadMachine(proc)
		_ = m.Available()
		blockDevices(proc)
		if own := c.ownCgroup(); own == "/" {
			t.Error("the root is nobody's own group")
		}
	})
}
