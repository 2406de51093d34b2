package top

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
)

// Style is how a part of a line stands out. A screen without colours shows all of them alike: nothing is said by a style alone.
type Style int

const (
	Plain Style = iota
	Head        // of a table
	Good
	Warn
	Bad
	Dim // old
)

// Span is a part of a line.
type Span struct {
	Text  string
	Style Style
}

// Line is one of the screen.
type Line []Span

// String is the line's text.
func (l Line) String() string {
	var b strings.Builder
	for _, s := range l {
		b.WriteString(s.Text)
	}
	return b.String()
}

// width of a text in cells.
func width(s string) int { return ansi.StringWidth(s) }

// clean takes out what would move the cursor: a reason or a name may hold anything.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// cut shortens a text to so many cells.
func cut(s string, cells int) string {
	if cells <= 0 {
		return ""
	}
	return ansi.Truncate(s, cells, "~"[:min(1, cells-1)])
}

// fit shortens a line to so many cells.
func (l Line) fit(cells int) Line {
	var out Line
	for _, s := range l {
		s.Text = cut(clean(s.Text), cells)
		cells -= width(s.Text)
		out = append(out, s)
	}
	return out
}

// Fold breaks a text into lines of so many cells, at blanks where there are some, with a margin in front of each.
func Fold(text, margin string, cells int) (out []string) {
	room := max(1, cells-len(margin))
	line := ""
	for _, word := range strings.Fields(clean(text)) {
		for width(word) > room { // longer than a line: it is cut into pieces
			head := ansi.Truncate(word, room, "")
			if head == "" { // one letter wider than the room
				break
			}
			if line != "" {
				out, line = append(out, margin+line), ""
			}
			out = append(out, margin+head)
			word = word[len(head):]
		}
		switch {
		case word == "":
		case line == "":
			line = word
		case width(line)+1+width(word) <= room:
			line += " " + word
		default:
			out, line = append(out, margin+line), word
		}
	}
	if line != "" {
		out = append(out, margin+line)
	}
	return out
}

// pad fills a text up with blanks, in front of it with right.
func pad(s string, cells int, right bool) string {
	s = cut(s, cells)
	blanks := strings.Repeat(" ", cells-width(s))
	if right {
		return blanks + s
	}
	return s + blanks
}

// short writes a figure in at most five cells: 0.5, 44.9, 1.50k, 12.3M, 4.00G.
func short(v float64) string {
	if !known(v) {
		return "-"
	}
	if v < 0.05 { // nothing is below
		return "0"
	}
	if v = round(v); v < 100 {
		return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0")
	}
	for _, prefix := range []string{"", "k", "M", "G", "T", "P"} {
		if v < 1000 {
			return strconv.FormatFloat(v, 'f', 2-int(math.Floor(math.Log10(v))), 64) + prefix
		}
		v /= 1000
	}
	return "lots"
}

// hold writes a time in at most six cells: 850ns, 41.2us, 1.05ms.
func hold(ns float64) string {
	if !known(ns) {
		return "-"
	}
	units := []string{"ns", "us", "ms", "s"}
	i := 0
	for ns >= 999.5 && i < len(units)-1 {
		ns, i = ns/1000, i+1
	}
	return short(ns) + units[i]
}

// percent writes a share in at most four cells.
func percent(v float64) string {
	if !known(v) {
		return "-"
	}
	return strconv.FormatFloat(100*v, 'f', 0, 64) + "%"
}

// ago writes how long something has lasted.
func ago(d time.Duration) string { return max(0, d).Truncate(time.Second).String() }

// blocks are the heights of a sparkline, lowest first.
var (
	blocks      = []rune("▁▂▃▄▅▆▇█")
	asciiBlocks = []rune("_.-=+*#@")
)

// sparkline draws the last figures of a history, one a cell, the newest last. top is what the highest block stands for; a smaller
// one than the largest figure gives way to it. What is not known is blank.
func sparkline(h []float64, cells int, top float64, ascii bool) string {
	h = h[max(0, len(h)-cells):]
	for _, v := range h {
		if known(v) {
			top = max(top, v)
		}
	}
	marks := blocks
	if ascii {
		marks = asciiBlocks
	}
	var b strings.Builder
	b.WriteString(strings.Repeat(" ", cells-len(h)))
	for _, v := range h {
		switch {
		case !known(v):
			b.WriteByte(' ')
		case top <= 0:
			b.WriteRune(marks[0])
		default:
			b.WriteRune(marks[min(len(marks)-1, int(v/top*float64(len(marks))))])
		}
	}
	return b.String()
}
