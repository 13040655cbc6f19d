package snapshots

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ErrName is returned for a file name that no snapshot has.
var ErrName = errors.New("not the name of a snapshot")

// Reason is why a snapshot was taken.
type Reason string

const (
	// Scheduled by the interval.
	Scheduled Reason = "scheduled"
	// Requested by an operator.
	Requested Reason = "requested"
	// Upgrade: before another version of the control plane writes for the first time.
	Upgrade Reason = "upgrade"
)

// Info of a snapshot.
type Info struct {
	Name string `json:"name"`
	// Taken by the clock of that machine, which may have been wrong.
	Taken time.Time `json:"taken"`
	// Revision of etcd up to which it goes.
	Revision int64  `json:"revision"`
	Reason   Reason `json:"reason"`
	// Size in bytes.
	Size int64 `json:"size"`
}

const (
	suffix = ".db"
	// stamp sorts as text and has no character that a file system refuses.
	stamp = "20060102T150405.000Z"
)

// name is TAKEN-rREVISION-REASON.db.
func name(taken time.Time, revision int64, reason Reason) string {
	return fmt.Sprintf("%s-r%d-%s%s", taken.UTC().Format(stamp), revision, reason, suffix)
}

// ParseName reads what a snapshot's name says; the size isn't in it.
func ParseName(file string) (Info, error) {
	bad := func(what string) (Info, error) {
		return Info{}, fmt.Errorf("%w: %q: %s; want TIME-rREVISION-REASON%s", ErrName, file, what, suffix)
	}
	base, ok := strings.CutSuffix(file, suffix)
	parts := strings.Split(base, "-")
	if !ok || len(parts) != 3 {
		return bad("its form is another")
	}
	taken, err := time.Parse(stamp, parts[0])
	if err != nil {
		return bad("it doesn't begin with a time")
	}
	digits, ok := strings.CutPrefix(parts[1], "r")
	revision, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || revision < 0 {
		return bad("it has no revision")
	}
	reason := Reason(parts[2])
	switch reason {
	case Scheduled, Requested, Upgrade:
	default:
		return bad("its reason is unknown")
	}
	// One snapshot has one name.
	if name(taken, revision, reason) != file {
		return bad("it is written in another way")
	}
	return Info{Name: file, Taken: taken, Revision: revision, Reason: reason}, nil
}
