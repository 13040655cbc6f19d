package main

import (
	"testing"
	"time"

	fleetapi "github.com/coracle-edge/coracle/controlplane/api/fleet"
)

func TestLinkClassFlags(t *testing.T) {
	o, err := parseFlags([]string{"--data-dir", t.TempDir(), "--link-class", "lte:keepalive=2m", "--link-class", "satellite:gather=1s,slots=5"})
	if err != nil {
		t.Fatal(err)
	}
	if c := o.linkClasses; c["lte"].Keepalive != 2*time.Minute || c["satellite"].Gather != time.Second || c["satellite"].Slots != 5 || c["lan"] != fleetapi.DefaultClasses()["lan"] {
		t.Errorf("%+v", c)
	}
	if _, err := parseFlags([]string{"--data-dir", t.TempDir(), "--link-class", "lte:keepalive=1s"}); err == nil {
		t.Error("a keepalive of one second was taken")
	}
}
