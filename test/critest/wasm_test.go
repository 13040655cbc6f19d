package critest

import (
	"testing"

	"github.com/coracle-edge/coracle/test/lab"
)

func wasmImages(t *testing.T) map[string]*lab.Image { return nil }
