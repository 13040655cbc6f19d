package images

import (
	"os"
	"testing"

	"github.com/coracle-edge/coracle/test/lab"
)

func TestMain(m *testing.M) {
	code := m.Run()
	lab.Cleanup()
	os.Exit(code)
}
