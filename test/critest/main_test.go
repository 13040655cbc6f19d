package critest

import (
	"os"
	"testing"

	"github.com/coracle-edge/coracle/test/lab"
)

func TestMain(m *testing.M) {
	rc := lab.Main(m)
	lab.Cleanup()
	os.Exit(rc)
}
