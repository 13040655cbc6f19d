package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

func TestLinkClassFlag(t *testing.T) {
	o, err := parse([]string{"--data-dir", t.TempDir(), "--link-class", "satellite"}, nil)
	if err != nil || o.linkClass != "satellite" {
		t.Errorf("%v, %+v", err, o)
	}
	if _, err := parse([]string{"--link-class", "lora"}, nil); !errors.Is(err, fleet.ErrClass) || !strings.Contains(err.Error(), "satellite") {
		t.Errorf("an unknown class: %v", err)
	}
	if _, err := keyValues("a=b," + fleet.LabelLinkClass + "=lte"); err == nil || !strings.Contains(err.Error(), "--link-class") {
		t.Errorf("the class as a label of the node's own: %v", err)
	}
}
