package link

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestBrokersAreAskedInTurn(t *testing.T) {
	list := []string{"a", "b", "c"}
	silent := errors.New("pingresp not received")
	refused := errors.New("connection refused")
	var b brokers
	step := func(want string, live bool, err error, more bool) {
		t.Helper()
		if got := b.next(list); got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
		if got := b.ended(list, live, err); got != more {
			t.Errorf("after %s: more %v, want %v", want, got, more)
		}
	}
	step("a", false, refused, true)
	step("b", false, refused, true)
	step("c", false, refused, false) // all were asked: wait
	step("a", false, refused, true)
	step("b", true, fmt.Errorf("connection lost: %w", io.EOF), false)
	step("b", false, refused, true) // it was closed: perhaps it is back
	step("c", true, errReconnect, false)
	step("c", true, silent, false)
	step("a", false, refused, true) // it fell silent: not the same again
	// The hub said other addresses, in another order, meanwhile.
	list = []string{"c", "a"}
	step("c", true, silent, false)
	step("a", true, silent, false)
	list = []string{"x", "y", "x", "z"} // even so
	for _, want := range []string{"x", "y", "x", "z", "x"} {
		if got := b.next(list); got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
	}
	list = []string{"x"}
	step("x", false, refused, false)
	step("x", false, refused, false)
}
