package probes

import (
	"errors"
	"testing"
)

func TestCounts(t *testing.T) {
	var c Counts
	c.add(succeeded, nil)
	c.add(warned, nil)
	c.add(failed, nil)
	c.add(unknown, nil)
	c.add(failed, errors.New("the runtime doesn't answer"))
	if want := (Counts{Successful: 2, Failed: 1, Unknown: 2}); c != want {
		t.Errorf("%+v, want %+v", c, want)
	}
}
