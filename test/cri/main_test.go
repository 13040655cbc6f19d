package cri

import (
	"os"
	"testing"

	"github.com/coracle-edge/coracle/test/lab"
)

func TestMain(m *testing.M) {
	code := lab.Main(m)
	lab.Cleanup()
	os.Exit(code)
}
