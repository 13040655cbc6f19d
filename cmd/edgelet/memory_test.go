package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// programRSS is what this process has mapped of its program's read-only segments, in
// bytes.
func programRSS(t *testing.T) (sum int) {
	t.Helper()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	mine := false
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) >= 5 && strings.Contains(f[0], "-") {
			mine = strings.HasSuffix(strings.TrimSpace(line), self) && f[1][1] == '-'
		}
		if rest, ok := strings.CutPrefix(line, "Rss:"); ok && mine {
			kb := 0
			if _, err := fmt.Sscan(rest, &kb); err != nil {
				t.Fatal(err)
			}
			sum += kb << 10
		}
	}
	return sum
}

func TestUnmapProgram(t *testing.T) {
	before := programRSS(t)
	if before == 0 {
		t.Fatal("no pages of the program are mapped")
	}
	for range 3 { // what was given back comes back
		if err := unmapProgram(); err != nil {
			t.Fatal(err)
		}
	}
	// The test's own reading needs some of it again.
	if after := programRSS(t); after > before*3/4 {
		t.Errorf("%d KiB of the program are mapped, %d were before", after>>10, before>>10)
	}
}

func TestReadOnlySegments(t *testing.T) {
	const maps = `00400000-00f00000 r-xp 00000000 fe:00 9994486                            /opt/edge let
00f00000-01a76000 r--p 00b00000 fe:00 9994486                            /opt/edge let
01a76000-01afa000 rw-p 01676000 fe:00 9994486                            /opt/edge let
01afa000-03b47000 rw-p 00000000 00:00 0 
7f7c8ee30000-7f7c8ef30000 r--s 00000000 fe:00 10002622                   /var/lib/state.db
7f7cd5a08000-7f7cd5a09000 r-xp 00000000 00:00 0                          [vdso]
`
	got, err := readOnlySegments(strings.NewReader(maps), "/opt/edge let")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprint([]segment{{0x400000, 0xf00000}, {0xf00000, 0x1a76000}}); fmt.Sprint(got) != want {
		t.Errorf("%x, not %s", got, want)
	}
	for _, bad := range []string{"5-zz", "00f00000-00400000", "x"} {
		if got, err := readOnlySegments(strings.NewReader(bad+" r-xp 0 fe:00 1 /x\n"), "/x"); err == nil {
			t.Errorf("%q gave %v", bad, got)
		}
	}
}
