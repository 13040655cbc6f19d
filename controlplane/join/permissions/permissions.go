package permissions

import (
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Doors are where a node may ask.
const (
	API   = "api"   // RESOURCE[/SUBRESOURCE][.GROUP], or a path that is no resource
	MQTT  = "mqtt"  // a topic, or a filter; NODE stands for the node's name
	Fleet = "fleet" // METHOD PATH of the fleet endpoint
)

// ErrTable is returned when a line of the table can't be understood.
var ErrTable = errors.New("table of permissions")

//go:embed table.tsv
var source string

// Rule is a line of the table: what a node may do to what is its own, and to what
// is another node's or nobody's. A revoked node may do nothing of it.
type Rule struct {
	Door, What  string
	Verbs       []string
	Own, Others bool
	Note        string
}

// Table is the table. What no line names, a node may not do.
func Table() ([]Rule, error) { return Parse(source) }

// Parse reads lines of five or six columns, separated by tabs: door, what, verbs
// (separated by commas), own, others (yes or no), note. Lines that begin with # are
// comments.
func Parse(text string) ([]Rule, error) {
	var rules []Rule
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrTable, n, err)
		}
		for _, verb := range r.Verbs {
			key := r.Door + "\t" + r.What + "\t" + verb
			if seen[key] {
				return nil, fmt.Errorf("%w: line %d: %s of %s is there twice", ErrTable, n, verb, r.What)
			}
			seen[key] = true
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func parseLine(line string) (Rule, error) {
	f := strings.Split(line, "\t")
	if len(f) != 5 && len(f) != 6 {
		return Rule{}, fmt.Errorf("%d columns, want 5 or 6", len(f))
	}
	r := Rule{Door: f[0], What: f[1], Verbs: strings.Split(f[2], ",")}
	if !slices.Contains([]string{API, MQTT, Fleet}, r.Door) {
		return r, fmt.Errorf("door %q", r.Door)
	}
	if r.What == "" || slices.Contains(r.Verbs, "") {
		return r, errors.New("what or a verb is empty")
	}
	for i, to := range []*bool{&r.Own, &r.Others} {
		switch f[3+i] {
		case "yes":
			*to = true
		case "no":
		default:
			return r, fmt.Errorf("%q, want yes or no", f[3+i])
		}
	}
	if len(f) == 6 {
		r.Note = f[5]
	}
	return r, nil
}

// Find returns the rule for a verb, and whether a line names it; if none does,
// nothing is allowed.
func Find(rules []Rule, door, what, verb string) (Rule, bool) {
	for _, r := range rules {
		if r.Door == door && r.What == what && slices.Contains(r.Verbs, verb) {
			return r, true
		}
	}
	return Rule{Door: door, What: what, Verbs: []string{verb}}, false
}

// Markdown shows the lines of one door.
func Markdown(rules []Rule, door string) string {
	var b strings.Builder
	b.WriteString("| What | Verbs | Its own | Others' | |\n|---|---|---|---|---|\n")
	word := map[bool]string{true: "yes", false: "no"}
	for _, r := range rules {
		if r.Door == door {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", r.What, strings.Join(r.Verbs, ", "), word[r.Own], word[r.Others], r.Note)
		}
	}
	return b.String()
}
