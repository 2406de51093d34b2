package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/rscctl/rscctl/controller/top"
)

// page is a page of a watch: it is written in one piece, for a terminal of a size and with colours or not.
type page struct {
	bytes.Buffer
	width   int
	colours bool
}

// printer lays out a page of lines and tables and writes it in one piece, so that a watched page never shows half.
type printer struct {
	to      io.Writer
	out     bytes.Buffer
	table   [][]string
	width   int  // columns at which text is folded, and that a table of fitting rows keeps to
	fitting bool // rows keep to the width
	colours bool
}

// foldAt is the width where there is no terminal, or a wider one: longer lines are hard to read.
const foldAt = 80

func newPrinter(to io.Writer) *printer {
	p := &printer{to: to, width: foldAt, colours: colours(to)}
	if pg, ok := to.(*page); ok {
		p.width, p.colours = pg.width, pg.colours
	} else if width, _, ok := window(to); ok {
		p.width = min(p.width, width)
	}
	return p
}

// row adds a line of aligned cells. Consecutive rows form one table.
func (p *printer) row(cells ...string) { p.table = append(p.table, cells) }

// line ends the table and adds a line of running text.
func (p *printer) line(format string, args ...any) {
	p.endTable()
	fmt.Fprintf(&p.out, format+"\n", args...)
}

// text ends the table and adds a text, folded, with a label in front of its first line and a margin as wide before the others.
func (p *printer) text(label, text string) {
	p.endTable()
	for i, l := range top.Fold(text, strings.Repeat(" ", cells(label)), p.width) {
		if i == 0 {
			l = label + strings.TrimLeft(l, " ")
		}
		fmt.Fprintln(&p.out, l)
	}
}

// paint gives a text a colour where there are some.
func (p *printer) paint(colour, text string) string {
	if !p.colours || colour == "" {
		return text
	}
	return colour + text + colourNone
}

const gap = 2 // blanks between two cells

// endTable lays out the rows so far. A cell is as wide as the widest of its column among the rows around it that have one there;
// the last one of a row takes what it needs.
func (p *printer) endTable() {
	widths := make([][]int, len(p.table))
	for r := range p.table {
		widths[r] = make([]int, len(p.table[r]))
	}
	for column, more := 0, true; more; column++ {
		more = false
		for from := 0; from < len(p.table); from++ {
			to, widest := from, 0
			for ; to < len(p.table) && len(p.table[to]) > column+1; to++ {
				widest = max(widest, cells(p.table[to][column])+gap)
			}
			for r := from; r < to; r++ {
				widths[r][column], more = widest, true
			}
			from = max(from, to)
		}
	}
	over := 0
	for r, row := range p.table {
		over = max(over, cells(joined(row, widths[r]))-p.width)
	}
	for r, row := range p.table {
		if p.fitting && over > 0 && len(row) > 1 {
			p.narrow(row, widths[r], over)
		} else {
			fmt.Fprintln(&p.out, joined(row, widths[r]))
		}
	}
	p.table = nil
}

// narrow writes a row of a table that is too wide: its first cell, a name, has fewer cells, or a line of its own.
func (p *printer) narrow(row []string, widths []int, over int) {
	widths[0] = max(0, widths[0]-over)
	if cells(row[0])+gap > widths[0] {
		fmt.Fprintln(&p.out, row[0])
		row = append([]string{""}, row[1:]...)
	}
	fmt.Fprintln(&p.out, joined(row, widths))
}

// joined is a row as a line.
func joined(row []string, widths []int) string {
	var b strings.Builder
	for i, c := range row {
		b.WriteString(c)
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", max(0, widths[i]-cells(c))))
		}
	}
	return b.String()
}

// cells is how many a text takes on the screen.
func cells(text string) int { return ansi.StringWidth(text) }

func (p *printer) flush() error {
	p.endTable()
	// The last cell of a row may be empty; nobody needs the blanks in front of it.
	var out bytes.Buffer
	for text := range bytes.Lines(p.out.Bytes()) {
		out.Write(bytes.TrimRight(text, " \n"))
		out.WriteByte('\n')
	}
	p.out.Reset()
	_, err := p.to.Write(out.Bytes())
	return err
}

// printJSON prints what the controller served, indented.
func printJSON(to io.Writer, v any) error {
	enc := json.NewEncoder(to)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// grouped writes 1234567 as 1,234,567.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// many is grouped, for a table: 10^12 and more are written with three digits. JSON has them whole.
func many(n uint64) string {
	if n >= 1e12 {
		return scaled(float64(n), "")
	}
	return grouped(n)
}

// scaled writes v with a decimal prefix: 1 GB = 10^9 bytes, as everywhere in this program.
func scaled(v float64, unit string) string {
	prefixes := []string{"", "k", "M", "G", "T", "P"}
	i := 0
	for v >= 999.95 && i < len(prefixes)-1 {
		v, i = v/1000, i+1
	}
	digits := 2
	switch {
	case i == 0 && v == float64(int64(v)):
		digits = 0
	case v >= 100:
		digits = 0
	case v >= 10:
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + prefixes[i] + unit
}

func size(n uint64) string { return scaled(float64(n), "B") }

func bitrate(v float64) string { return scaled(v, "bit/s") }

// percent writes part of whole, "-" of nothing.
func percent(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	return strconv.FormatFloat(100*float64(part)/float64(whole), 'f', 1, 64) + "%"
}

// duration writes three significant digits: 50 us, 1.25 ms, 12.3 s, 3m5s.
func duration(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	switch {
	case d == 0:
		return "0"
	case d >= time.Minute:
		return d.Round(time.Second).String()
	}
	units := []struct {
		name string
		size time.Duration
	}{{"s", time.Second}, {"ms", time.Millisecond}, {"us", time.Microsecond}, {"ns", 1}}
	for _, u := range units {
		if d >= u.size {
			v := strconv.FormatFloat(float64(d)/float64(u.size), 'g', 3, 64)
			if float64(d)/float64(u.size) >= 999.5 { // 'g' would write 1e+03
				v = "1000"
			}
			return v + " " + u.name
		}
	}
	return ""
}

func total(m map[string]uint64) (sum uint64) {
	for _, n := range m {
		sum += n
	}
	return sum
}
