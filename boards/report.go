package boards

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Level is how bad a finding is.
type Level string

const (
	OK   Level = "ok"
	Warn Level = "warn" // works, with less
	Fail Level = "fail" // something won't work
)

// Finding is one thing that was looked at.
type Finding struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	What  string `json:"what"`          // as it is
	Why   string `json:"why,omitempty"` // it matters
	Do    string `json:"do,omitempty"`  // about it
	Fix   *Fix   `json:"fix,omitempty"` // the exact line of the exact file
}

// Report is what `coracle doctor` prints.
type Report struct {
	Findings []Finding `json:"findings"`
}

// Count returns the number of findings of a level.
func (r Report) Count(level Level) (n int) {
	for _, f := range r.Findings {
		if f.Level == level {
			n++
		}
	}
	return n
}

// Get returns the finding with this name.
func (r Report) Get(name string) (Finding, bool) {
	for _, f := range r.Findings {
		if f.Name == name {
			return f, true
		}
	}
	return Finding{}, false
}

// WriteText writes the report for people: a line for each finding, and what to
// do below those that aren't fine.
func (r Report) WriteText(w io.Writer) error {
	var b strings.Builder
	width := 0
	for _, f := range r.Findings {
		width = max(width, len(f.Name))
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%-4s  %-*s  %s\n", strings.ToUpper(string(f.Level)), width, f.Name, f.What)
		indent := strings.Repeat(" ", 8+width)
		if f.Why != "" {
			fmt.Fprintf(&b, "%swhy: %s\n", indent, f.Why)
		}
		if f.Do != "" {
			fmt.Fprintf(&b, "%sdo:  %s\n", indent, f.Do)
		}
		if f.Fix != nil {
			f.Fix.write(&b, indent+"     ")
		}
	}
	fmt.Fprintf(&b, "\n%d ok, %d to look at, %d wrong\n", r.Count(OK), r.Count(Warn), r.Count(Fail))
	_, err := io.WriteString(w, b.String())
	return err
}

func (f *Fix) write(b *strings.Builder, indent string) {
	switch {
	case f.Line == 0:
		fmt.Fprintf(b, "%sadd to %s the line:\n%s  %s\n", indent, f.File, indent, f.New)
	case f.New != f.Old:
		fmt.Fprintf(b, "%s%s, line %d, now:\n%s  %s\n%schange it to:\n%s  %s\n", indent, f.File, f.Line, indent, strings.TrimSpace(f.Old), indent, indent, strings.TrimSpace(f.New))
	default:
		fmt.Fprintf(b, "%s%s, line %d, is right already\n", indent, f.File, f.Line)
	}
	if f.Then != "" {
		fmt.Fprintf(b, "%sthen: %s\n", indent, f.Then)
	}
}

// WriteJSON writes the report for programs.
func (r Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
