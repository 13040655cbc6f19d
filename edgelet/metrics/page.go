package metrics

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// ContentType of a page.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Page is one answer in the making. All samples of a name follow its Family.
type Page struct {
	buf bytes.Buffer
	to  io.Writer // nil: all is kept
	err error     // of to
}

// piece is how much of a streamed page is held.
const piece = 8 << 10

// drain hands on what is held once it is enough.
func (p *Page) drain(least int) {
	if p.to == nil || p.buf.Len() < least {
		return
	}
	if p.err == nil {
		_, p.err = p.to.Write(p.buf.Bytes())
	}
	p.buf.Reset()
}

// Counter and Gauge begin a family.
func (p *Page) Counter(name, help string) { p.family(name, "counter", help) }
func (p *Page) Gauge(name, help string)   { p.family(name, "gauge", help) }

// Histogram begins one; its samples are those of NAME_bucket, whose last label le is
// the upper bound and whose values grow, NAME_sum and NAME_count.
func (p *Page) Histogram(name, help string) { p.family(name, "histogram", help) }

func (p *Page) family(name, kind, help string) {
	fmt.Fprintf(&p.buf, "# HELP %s %s\n# TYPE %s %s\n", name, strings.NewReplacer("\\", `\\`, "\n", `\n`).Replace(help), name, kind)
}

// Sample adds a value; labels are names and values by turns.
func (p *Page) Sample(name string, value float64, labels ...string) {
	p.buf.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		p.buf.WriteByte("{,"[min(i, 1)])
		fmt.Fprintf(&p.buf, `%s="%s"`, labels[i], strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`).Replace(strings.ToValidUTF8(labels[i+1], "?")))
	}
	if len(labels) > 1 {
		p.buf.WriteByte('}')
	}
	p.buf.WriteByte(' ')
	p.buf.WriteString(strconv.FormatFloat(value, 'g', -1, 64))
	p.buf.WriteByte('\n')
	p.drain(piece)
}

// Bytes of the page.
func (p *Page) Bytes() []byte { return p.buf.Bytes() }

// Stream writes a page to w, a few kilobytes of it held at a time.
func Stream(w io.Writer, fill func(*Page)) error {
	p := &Page{to: w}
	fill(p)
	p.drain(1)
	return p.err
}

// Handler serves what fill writes.
func Handler(fill func(*Page)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var p Page
		fill(&p)
		w.Header().Set("Content-Type", ContentType)
		w.Header().Set("Content-Length", strconv.Itoa(p.buf.Len()))
		_, _ = w.Write(p.Bytes())
	})
}
