package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

var sigPattern = regexp.MustCompile(`\[sig-[a-z-]+\]`)

// sig of a spec, as its name says.
func sig(name string) string {
	if s := sigPattern.FindString(name); s != "" {
		return strings.Trim(s, "[]")
	}
	return "others"
}

// combine has what a later run says of the specs that it ran.
func combine(first, later []spec) []spec {
	out := slices.Clone(first)
	at := map[string]int{}
	for i, s := range out {
		at[s.name] = i
	}
	for _, s := range later {
		i, known := at[s.name]
		switch {
		case !known:
			at[s.name] = len(out)
			out = append(out, s)
		case s.outcome != notRun:
			out[i] = s
		}
	}
	return out
}

// choose takes the specs of the report that were meant: those that names lists, in
// its order, or, without a list, those whose name has the word.
func choose(all []spec, names []string, word string) []spec {
	var out []spec
	if len(names) == 0 {
		for _, s := range all {
			if s.outcome != notRun || word != "" && strings.Contains(s.name, word) {
				out = append(out, s)
			}
		}
		return out
	}
	have := map[string]spec{}
	for _, s := range all {
		have[s.name] = s
	}
	for _, name := range names {
		s, ok := have[name]
		if !ok {
			s = spec{name: name}
		}
		out = append(out, s)
	}
	return out
}

// print writes the table of all SIGs, in Markdown, and below it each spec that
// didn't pass with its reason. Those that were not run are listed if there are at
// most maxListed.
func print(w io.Writer, specs []spec) {
	type row struct{ n [4]int }
	rows, total := map[string]*row{}, &row{}
	for _, s := range specs {
		name := sig(s.name)
		if rows[name] == nil {
			rows[name] = &row{}
		}
		rows[name].n[s.outcome]++
		total.n[s.outcome]++
	}
	names := make([]string, 0, len(rows))
	for name := range rows {
		names = append(names, name)
	}
	slices.Sort(names)
	fmt.Fprintln(w, "| SIG | passed | failed | skipped itself | not run |\n|---|---|---|---|---|")
	line := func(name string, r *row) {
		fmt.Fprintf(w, "| %s | %d | %d | %d | %d |\n", name, r.n[passed], r.n[failed], r.n[skipped], r.n[notRun])
	}
	for _, name := range names {
		line(name, rows[name])
	}
	line("all", total)
	for _, o := range []struct {
		outcome outcome
		title   string
	}{{failed, "Failed"}, {skipped, "Skipped itself"}, {notRun, "Not run"}} {
		if n := total.n[o.outcome]; n == 0 || o.outcome == notRun && n > maxListed {
			continue
		}
		fmt.Fprintf(w, "\n%s:\n\n| Spec | Reason |\n|---|---|\n", o.title)
		for _, s := range specs {
			if s.outcome == o.outcome {
				fmt.Fprintf(w, "| %s | %s |\n", cell(s.name), cell(shorten(s.reason)))
			}
		}
	}
}

const (
	maxListed = 60
	maxReason = 300 // bytes
)

func shorten(s string) string {
	if len(s) > maxReason {
		return strings.ToValidUTF8(s[:maxReason], "") + " ..."
	}
	return s
}

// cell is text in a table of Markdown.
func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
