package identity

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/standing"
)

// A card that was copied: both boards are refused and named, whichever starts
// more often; the board that stays is readmitted, the copy becomes a node of its own.
func TestACopiedCardIsRefusedAndNamed(t *testing.T) {
	p := newPlane(t)
	one := newBoard(t, "pi-1")
	one.join(p.line("pi-1", false))
	p.ready("pi-1", corev1.ConditionTrue)
	// An agent that crashes is still one board.
	for range 4 {
		one.restart()
		one.live()
	}
	one.stop(syscall.SIGTERM)
	dir, err := os.MkdirTemp("", "id")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", one.dir+"/.", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	two := boardIn(t, "pi-1", dir)
	one.start()
	one.live()
	two.start()
	for _, b := range []*board{one, two} {
		s := b.stands("Cloned")
		if !strings.Contains(s.Message, "data in "+one.dir) || !strings.Contains(s.Message, "data in "+two.dir) {
			t.Errorf("told %q", s.Message)
		}
	}
	p.event(t, "pi-1", "Cloned", two.dir)
	p.ready("pi-1", corev1.ConditionUnknown)
	if list := p.must("node", "list"); !strings.Contains(list, "pi-1  cloned    Unknown") || !strings.Contains(list, one.dir) {
		t.Errorf("coracle node list:\n%s", list)
	}

	two.stop(syscall.SIGTERM)
	out := two.reset(t)
	if !strings.Contains(out, `node "pi-1"`) {
		t.Errorf("reset says %q", out)
	}
	p.must("node", "readmit", "pi-1")
	one.restart()
	one.stands(standing.Good)
	p.ready("pi-1", corev1.ConditionTrue)
	two.name = "pi-2"
	two.start("--join", p.line("pi-2", false))
	p.ready("pi-2", corev1.ConditionTrue)
	one.live()
	one.stands(standing.Good)
	if c := one.identity().Certificate().Leaf.PublicKey; c == nil {
		t.Error("no key")
	}
}

// The other way out: the card's second life is the one that stays, with a key of
// its own, and the first is refused for its old one.
func TestRejoiningReplacesBothBoards(t *testing.T) {
	p := newPlane(t)
	b := newBoard(t, "pi-1")
	b.join(p.line("pi-1", false))
	b.live()
	b.stop(syscall.SIGTERM)
	old := b.identity()
	b.reset(t)
	b.start("--join", p.line("pi-1", true))
	b.live()
	p.ready("pi-1", corev1.ConditionTrue)
	if code, body := p.fleetGet(t, old, "/v1/objects/00"); code != 409 || !strings.Contains(body, "NodeKey") {
		t.Errorf("the former key: %d %s", code, body)
	}
	if err := p.mqttConnects(old); err == nil {
		t.Error("the broker takes the former key")
	}
	b.stands(standing.Good)
}
