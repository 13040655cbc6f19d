// Package report is the table of figures that the programs of test/bench print and
// write to a file, each beside a peer's and beside its mark.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// Row is one measured figure.
type Row struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Anchor is a peer's figure and where it comes from.
	Anchor string `json:"anchor"`
	// Mark is what Value should not exceed; nil if nothing was promised.
	Mark *float64 `json:"mark"`
	OK   *bool    `json:"ok"`
}

// Report collects rows in the order in which they are measured.
type Report struct{ rows []Row }

// Add notes a figure without a mark.
func (r *Report) Add(name string, value float64, unit, anchor string) {
	r.rows = append(r.rows, Row{Name: name, Value: value, Unit: unit, Anchor: anchor})
}

// AddMarked notes a figure that should not exceed mark.
func (r *Report) AddMarked(name string, value float64, unit, anchor string, mark float64) {
	ok := value <= mark
	r.rows = append(r.rows, Row{Name: name, Value: value, Unit: unit, Anchor: anchor, Mark: &mark, OK: &ok})
}

// Anchor gives those rows that stand beside was another anchor: a peer that was
// measured in the same run, but later.
func (r *Report) Anchor(was, is string) {
	for i := range r.rows {
		if r.rows[i].Anchor == was {
			r.rows[i].Anchor = is
		}
	}
}

// Print writes the table.
func (r *Report) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tHERE\tUNIT\tMARK\t\tPEER")
	for _, row := range r.rows {
		mark, verdict := "-", ""
		if row.Mark != nil {
			mark, verdict = fmt.Sprintf("%.4g", *row.Mark), "ok"
			if !*row.OK {
				verdict = "MISSED"
			}
		}
		fmt.Fprintf(w, "%s\t%.4g\t%s\t%s\t%s\t%s\n", row.Name, row.Value, row.Unit, mark, verdict, row.Anchor)
	}
	return w.Flush()
}

// Write replaces file by the rows, one JSON object a line.
func (r *Report) Write(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(f)
	for _, row := range r.rows {
		if err := enc.Encode(row); err != nil {
			_ = f.Close()
			return err
		}
	}
	return f.Close()
}
