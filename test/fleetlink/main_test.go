package fleetlink

import (
	"flag"
	"os"
	"testing"
)

// Nearly all that these tests do is wait: more of them run at once than there are
// processors, unless it is said otherwise.
func TestMain(m *testing.M) {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		_ = flag.Set("test.parallel", "8")
	}
	os.Exit(m.Run())
}
