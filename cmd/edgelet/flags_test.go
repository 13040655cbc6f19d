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

func TestPoliciesThatThisAgentLacksAreRefused(t *testing.T) {
	for _, args := range [][]string{{"--cpu-manager-policy", "static"}, {"--memory-manager-policy", "Static"}, {"--topology-manager-policy", "best-effort"}} {
		if _, err := parse(args, nil); !errors.Is(err, errPolicy) || !strings.Contains(err.Error(), args[0]) || !strings.Contains(err.Error(), args[1]) {
			t.Errorf("%s: %v", args, err)
		}
	}
	if _, err := parse([]string{"--cpu-manager-policy", "none", "--memory-manager-policy", "None"}, nil); err != nil {
		t.Error(err)
	}
}
