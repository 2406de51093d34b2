package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// printer lays out a page of lines and tables and writes it in one piece, so that a watched page never shows half.
type printer struct {
	to   io.Writer
	page bytes.Buffer
	tab  *tabwriter.Writer
}

func newPrinter(to io.Writer) *printer {
	p := &printer{to: to}
	p.tab = tabwriter.NewWriter(&p.page, 0, 0, 2, ' ', 0)
	return p
}

// row adds a line of aligned cells. Consecutive rows form one table.
func (p *printer) row(cells ...string) {
	fmt.Fprintln(p.tab, strings.Join(cells, "\t"))
}

// line ends the table and adds a line of running text.
func (p *printer) line(format string, args ...any) {
	p.tab.Flush()
	fmt.Fprintf(&p.page, format+"\n", args...)
}

func (p *printer) flush() error {
	p.tab.Flush()
	// The last cell of a row may be empty; nobody needs the blanks in front of it.
	var out bytes.Buffer
	for text := range bytes.Lines(p.page.Bytes()) {
		out.Write(bytes.TrimRight(text, " \n"))
		out.WriteByte('\n')
	}
	p.page.Reset()
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
