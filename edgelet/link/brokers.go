package link

import (
	"errors"
	"io"
	"slices"
	"time"
)

// nextBroker is the upper bound of the random wait before the next of several
// addresses is tried.
const nextBroker = 250 * time.Millisecond

// brokers chooses the address of the next attempt. Of several control planes one
// takes nodes; which one is found out by asking.
type brokers struct {
	last string // tried
	at   int    // where it was in the list
	stay bool   // the next attempt is of last, too
	// asked are the addresses that failed since one was live, or since all had.
	asked int
}

// next is the address after the last one, as the list is now; the first at first.
func (b *brokers) next(list []string) string {
	i := b.at
	if i >= len(list) || list[i] != b.last { // it is another list
		i = slices.Index(list, b.last)
	}
	if i < 0 || !b.stay {
		i = (i + 1) % len(list)
	}
	b.last, b.at, b.stay = list[i], i, false
	return b.last
}

// ended is told how a connection, or the attempt at one, ended. It says whether there
// are addresses that weren't asked yet: then the next is tried without the wait that
// follows a failure.
func (b *brokers) ended(list []string, live bool, err error) (more bool) {
	if live || errors.Is(err, errReconnect) {
		b.asked = 0
		// Who closed the connection may be back, or refuses the next at once. Who fell
		// silent would be waited for.
		b.stay = errors.Is(err, errReconnect) || errors.Is(err, io.EOF)
		return false
	}
	if b.asked++; b.asked < len(list) {
		return true
	}
	b.asked = 0
	return false
}
