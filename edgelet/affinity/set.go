package affinity

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ErrSet is returned for text that is no list of processors.
var ErrSet = errors.New("not a list of processors such as 0-3,6")

// maxID bounds the number of a processor; the kernel's largest NR_CPUS is 8192.
const maxID = 8191

// Set is a sorted set of processors' numbers. Its methods leave it as it is.
type Set []int

// NewSet returns the set of these numbers.
func NewSet(ids ...int) Set {
	s := slices.Clone(ids)
	slices.Sort(s)
	return slices.Compact(s)
}

// ParseSet reads the kernel's list format (cpuset(7)): "0-3,6". Empty text is the
// empty set. It returns [ErrSet].
func ParseSet(text string) (Set, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, nil
	}
	var ids []int
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := parseID(from)
		b := a
		if err == nil && isRange {
			b, err = parseID(to)
		}
		// Overlapping ranges are refused before they are as many as somebody likes.
		if err != nil || b < a || len(ids)+b-a > maxID {
			return nil, fmt.Errorf("%q: %w", part, ErrSet)
		}
		for id := a; id <= b; id++ {
			ids = append(ids, id)
		}
	}
	return NewSet(ids...), nil
}

func parseID(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n > maxID {
		return 0, ErrSet
	}
	return int(n), nil
}

// String is the list format.
func (s Set) String() string {
	var b strings.Builder
	for i := 0; i < len(s); {
		j := i
		for j+1 < len(s) && s[j+1] == s[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(s[i]))
		if j > i {
			b.WriteString("-" + strconv.Itoa(s[j]))
		}
		i = j + 1
	}
	return b.String()
}

// Has reports whether id is in the set.
func (s Set) Has(id int) bool {
	_, ok := slices.BinarySearch(s, id)
	return ok
}

// Union is what is in either.
func (s Set) Union(o Set) Set { return NewSet(append(slices.Clone(s), o...)...) }

// Minus is what is in s and not in o.
func (s Set) Minus(o Set) Set { return s.where(func(id int) bool { return !o.Has(id) }) }

// And is what is in both.
func (s Set) And(o Set) Set { return s.where(o.Has) }

// Within reports whether all of s is in o.
func (s Set) Within(o Set) bool { return len(s.Minus(o)) == 0 }

func (s Set) where(is func(int) bool) Set {
	var out Set
	for _, id := range s {
		if is(id) {
			out = append(out, id)
		}
	}
	return out
}
