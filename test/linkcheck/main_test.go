package linkcheck

import (
	"os"
	"runtime/debug"
	"testing"
)

// TestMain trades memory for speed, up to a bound: most of it is short-lived.
func TestMain(m *testing.M) {
	debug.SetGCPercent(300)
	debug.SetMemoryLimit(3 << 30)
	os.Exit(m.Run())
}
