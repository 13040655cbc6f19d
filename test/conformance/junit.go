package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// outcome is what came of a spec.
type outcome int

const (
	notRun outcome = iota // not selected, or the run ended before
	passed
	failed
	skipped // by itself: it has not passed
)

// spec is one of the suite's.
type spec struct {
	name    string // as the suite lists it: texts of its containers and its own
	outcome outcome
	reason  string // of one that failed or skipped itself: the first line that says why
}

// report is what is read of ginkgo's JUnit report.
type report struct {
	Suites []struct {
		Cases []struct {
			Name    string   `xml:"name,attr"`
			Status  string   `xml:"status,attr"`
			Time    string   `xml:"time,attr"`
			Failure *message `xml:"failure"`
			Error   *message `xml:"error"`
			Skipped *message `xml:"skipped"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

type message struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// maxReport bounds a report in bytes: that of the whole suite, with the output of
// every spec, has some hundred MB.
const maxReport = 1 << 30

// readReport reads a JUnit report as ginkgo writes it. Specs are those that the
// suite has, whether they were selected or not.
func readReport(r io.Reader) ([]spec, error) {
	var all report
	if err := xml.NewDecoder(io.LimitReader(r, maxReport)).Decode(&all); err != nil {
		return nil, fmt.Errorf("JUnit report: %w", err)
	}
	var out []spec
	for _, suite := range all.Suites {
		for _, c := range suite.Cases {
			name, ok := strings.CutPrefix(c.Name, "[It] ")
			if !ok {
				continue // what prepares the suite
			}
			s := spec{name: withoutLabels(name)}
			switch c.Status {
			case "passed":
				s.outcome = passed
			case "skipped":
				// One that wasn't selected took no time and has nothing to say.
				if c.Time != "0" && c.Time != "0.000000" && c.Time != "" {
					s.outcome, s.reason = skipped, because(c.Skipped)
				}
			case "pending", "":
			default: // failed, panicked, timedout, interrupted, aborted
				s.outcome, s.reason = failed, because(c.Failure, c.Error)
				if s.reason == "" {
					s.reason = c.Status
				}
			}
			out = append(out, s)
		}
	}
	return out, nil
}

// withoutLabels takes away the list of labels that ginkgo appends to a name.
func withoutLabels(name string) string {
	if i := strings.LastIndex(name, " ["); i > 0 && strings.HasSuffix(name, "]") && strings.HasPrefix(name[i:], " [sig-") {
		return name[:i]
	}
	return name
}

// because is the first line of a message that says something.
func because(all ...*message) string {
	for _, m := range all {
		if m == nil {
			continue
		}
		for _, text := range []string{m.Message, m.Text} {
			for line := range strings.Lines(text) {
				if line = strings.TrimSpace(line); line != "" && line != "skipped" {
					return strings.TrimPrefix(line, "skipped - ") // ginkgo says so of all
				}
			}
		}
	}
	return ""
}
