package critest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strings"
	"time"
)

// Outcome is how a spec of critest ended.
type Outcome struct {
	State   string // passed, skipped, failed, panicked ...
	Message string // of a failure, or why it skipped itself; empty: it wasn't selected
	Took    time.Duration
}

// Passed, Skipped: what became of it.
func (o Outcome) Passed() bool { return o.State == "passed" }

// Skipped says that the spec found itself that it doesn't apply.
func (o Outcome) Skipped() bool { return o.State == "skipped" && o.Message != "" }

// Selected is false for a spec that -focus or -skip left out.
func (o Outcome) Selected() bool {
	return o.State != "skipped" && o.State != "pending" || o.Message != ""
}

// verdict is what counts in a comparison: passed, skipped, failed or nothing.
func (o Outcome) verdict() string {
	switch {
	case !o.Selected() || o.State == "":
		return ""
	case o.Passed(), o.Skipped():
		return o.State
	}
	return "failed"
}

func (o Outcome) String() string {
	if !o.Selected() {
		return "-"
	}
	return o.State
}

// Outcomes of a run, by the whole names of its specs.
type Outcomes map[string]Outcome

// Names in order.
func (o Outcomes) Names() []string {
	names := make([]string, 0, len(o))
	for n := range o {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// ParseReport reads ginkgo's JSON report.
func ParseReport(r io.Reader) (Outcomes, error) {
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeType            string
			LeafNodeText            string
			State                   string
			RunTime                 time.Duration
			Failure                 struct{ Message string }
		}
	}
	if err := json.NewDecoder(r).Decode(&suites); err != nil {
		return nil, fmt.Errorf("ginkgo's report: %w", err)
	}
	out := Outcomes{}
	for _, s := range suites {
		for _, spec := range s.SpecReports {
			name := strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")
			if spec.LeafNodeType != "It" {
				if spec.State != "passed" {
					return nil, fmt.Errorf("%s: %s: %s", spec.LeafNodeType, spec.State, spec.Failure.Message)
				}
				continue
			}
			if _, twice := out[name]; twice {
				return nil, fmt.Errorf("ginkgo's report: two specs are called %q", name)
			}
			out[name] = Outcome{State: spec.State, Message: spec.Failure.Message, Took: spec.RunTime}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("ginkgo's report has no specs")
	}
	return out, nil
}

// ParseSkips reads a list of specs that don't apply: names in lines of their own,
// the reason in the lines before that begin with "#". A reason holds for all names
// until the next one.
func ParseSkips(r io.Reader) (map[string]string, error) {
	out := map[string]string{}
	reason, open := "", false
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		rest, isReason := strings.CutPrefix(line, "#")
		switch {
		case line == "":
			reason, open = "", false
		case isReason && open:
			reason += " " + strings.TrimSpace(rest)
		case isReason:
			reason, open = strings.TrimSpace(rest), true
		case reason == "":
			return nil, fmt.Errorf("line %d: %q has no reason before it (# WHY)", n, line)
		case out[line] != "":
			return nil, fmt.Errorf("line %d: %q is there twice", n, line)
		default:
			out[line], open = reason, false
		}
	}
	return out, lines.Err()
}

// namePattern selects the specs with these very names, as ginkgo looks for
// patterns: at the end of a place and the name.
func namePattern(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = regexp.QuoteMeta(n)
	}
	return "(?:" + strings.Join(quoted, "|") + ")$"
}
