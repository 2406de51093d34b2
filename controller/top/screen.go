package top

import (
	"fmt"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// Screen lays out what is to be seen: at most height lines, none of more than width cells. It is for the moment now.
func (m *Model) Screen(width, height int, now time.Time) []Line {
	if width <= 0 || height <= 0 {
		return nil
	}
	lines := m.head(width, now)
	last := m.foot(width)
	room := height - len(lines) - 1
	if room < 2 { // nothing but the head
		lines = append(lines, last)
		return fitAll(lines[:min(height, len(lines))], width)
	}
	var body []Line
	if v := m.underCursor(); m.detail && v != nil {
		body = m.details(v, width, room)
	} else {
		body = m.tables(width, room)
	}
	for len(body) < room {
		body = append(body, Line{})
	}
	lines = append(append(lines, body[:room]...), last)
	return fitAll(lines, width)
}

func fitAll(lines []Line, width int) []Line {
	for i := range lines {
		lines[i] = lines[i].fit(width)
	}
	return lines
}

// head says what is shown, of when, and what is wrong.
func (m *Model) head(width int, now time.Time) (out []Line) {
	s := m.shown()
	if s.status == nil {
		return []Line{{{"nothing was seen yet", Plain}}}
	}
	h := s.status.Health
	first := Line{{s.at.Format("15:04:05"), Plain}, {" ", Plain}, {string(h.State), healthStyle(h.State)}}
	if m.gone != nil { // that was so
		first[2].Style = Dim
	}
	for _, more := range []string{oneOrMany(len(h.Reasons), "reason", "reasons"), "by " + m.order(), "up " + ago(s.at.Sub(s.status.StartedAt)), "rscctl " + s.status.Version, fmt.Sprintf("pid %d", s.status.PID)} {
		if more != "0 reasons" && first.width()+2+len(more) <= width {
			first = append(first, Span{"  " + more, Plain})
		}
	}
	out = append(out, first)
	switch {
	case m.gone != nil:
		out = append(out, Line{{fmt.Sprintf("NO CONTROLLER %s, trying again: %v", ago(now.Sub(m.since)), m.gone), Bad}})
	case m.stopped != nil:
		out = append(out, Line{{fmt.Sprintf("PAUSED %s: p goes on", ago(now.Sub(m.paused))), Warn}})
	}
	if m.filter != "" || m.typing {
		text := "filter: " + m.filter
		if m.typing {
			text += "_"
		}
		out = append(out, Line{{text, Warn}})
	}
	return append(out, m.totals(width))
}

func (l Line) width() (n int) {
	for _, s := range l {
		n += width(s.Text)
	}
	return n
}

func (m *Model) order() string {
	if m.reverse {
		return string(m.sort) + " reversed"
	}
	return string(m.sort)
}

func oneOrMany(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// totals sums the rows that the filter lets through.
func (m *Model) totals(width int) (out Line) {
	vms, queues := m.VMs(), m.Queues()
	bits, lost, packets, cpu := unknown, unknown, unknown, unknown
	add := func(sum *float64, v float64) {
		if !known(*sum) {
			*sum = v
		} else if known(v) {
			*sum += v
		}
	}
	for i := range vms {
		add(&bits, vms[i].Bits)
		add(&lost, vms[i].Drops)
		add(&packets, vms[i].Packets)
	}
	for i := range queues {
		add(&cpu, queues[i].CPU)
		add(&lost, queues[i].Lost)
	}
	for _, text := range []string{
		oneOrMany(len(vms), "VM", "VMs"), short(bits) + "bit/s", short(lost) + " lost/s", "CPU " + percent(cpu), short(packets) + " packets/s", oneOrMany(len(queues), "queue", "queues"),
	} {
		if len(out) > 0 {
			text = "  " + text
		}
		if out.width()+len(text) <= width {
			out = append(out, Span{text, Plain})
		}
	}
	return out
}

// foot names the keys, as many as there is room for.
func (m *Model) foot(width int) (out Line) {
	keys := []string{"q quit", "s order", "/ filter", "p pause", "enter details", "tab queues", "r reverse"}
	switch {
	case m.typing:
		keys = []string{"enter keeps", "esc drops the filter"}
	case m.detail:
		keys = []string{"q quit", "enter back", "p pause", "up, down: another VM"}
	case m.onQueues:
		keys[4], keys[5] = keys[6], "tab VMs"
		keys = keys[:6]
	}
	for _, k := range keys {
		if out != nil {
			k = "  " + k
		}
		if out.width()+len(k) <= width {
			out = append(out, Span{k, Dim})
		}
	}
	return out
}

// leastBoth is the room in which both tables are shown at once.
const leastBoth = 8

// tables shares the room between the two tables. Where it is small, the one with the cursor has all of it.
func (m *Model) tables(width, room int) []Line {
	vms, queues := m.VMs(), m.Queues()
	if room < leastBoth {
		if m.onQueues {
			return m.queueTable(queues, width, room)
		}
		return m.vmTable(vms, width, room)
	}
	below := min(1+len(queues), max(3, room/3))
	if need := 1 + max(1, len(vms)); need < room-below { // what the VMs do not need, the queues have
		below = min(1+len(queues), room-need)
	}
	out := m.vmTable(vms, width, room-below)
	for len(out) < room-below && below > 1 {
		out = append(out, Line{})
	}
	if below > 1 {
		out = append(out, m.queueTable(queues, width, below)...)
	}
	return out
}

// window chooses the rows that are on the screen, so that the cursor is among them.
func window(n, room, cursor int) (from, to int) {
	from = max(0, min(cursor-room/2, n-room))
	return from, min(n, from+room)
}

// mark is what stands in front of a row: the cursor, and whether it is well.
func (m *Model) mark(at, queue bool, h api.HealthState) cell {
	text := " "
	if at && m.onQueues == queue {
		text = ">"
	}
	switch h {
	case api.HealthDegraded:
		return cell{text: text + "!", style: Warn}
	case api.HealthDown:
		return cell{text: text + "x", style: Bad}
	}
	return cell{text: text + " "}
}

func healthStyle(h api.HealthState) Style {
	switch h {
	case api.HealthGood:
		return Good
	case api.HealthDegraded:
		return Warn
	case api.HealthDown:
		return Bad
	}
	return Plain
}

// bad marks a figure that should be 0.
func bad(v float64) Style {
	if known(v) && v > 0 {
		return Bad
	}
	return Plain
}

// noRows says why a table is empty.
func (m *Model) noRows(what string) Line {
	if m.filter != "" {
		return Line{{"  no " + what + " matches", Plain}}
	}
	return Line{{"  no " + what, Plain}}
}
