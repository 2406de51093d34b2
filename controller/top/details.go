package top

import (
	"fmt"
	"slices"
	"strings"
)

// underCursor is the VM that the cursor is on, nil when no VM is shown.
func (m *Model) underCursor() *VM {
	vms := m.VMs()
	if len(vms) == 0 {
		return nil
	}
	return &vms[max(0, slices.IndexFunc(vms, func(v VM) bool { return v.Name == m.cursor[0] }))]
}

// details says all that is known of a VM.
func (m *Model) details(v *VM, width, room int) (out []Line) {
	say := func(style Style, text string) {
		for _, l := range Fold(text, "", width) {
			out = append(out, Line{{l, style}})
		}
	}
	say(Head, fmt.Sprintf("%s on %s, %s", v.Name, v.Iface, v.State))
	for _, r := range v.Health.Reasons {
		say(healthStyle(v.Health.State), r)
	}
	say(Plain, fmt.Sprintf("received %sbit/s, %s packets/s; sent %sbit/s", short(v.Bits), short(v.Packets), short(v.Out)))
	say(Plain, fmt.Sprintf("to the guest %s frames/s of %s packets each; those that waited, waited %s", short(v.Frames), short(v.Segments), hold(v.HoldNS)))
	cells := min(width, remembered)
	spark := m.spark(v.History, 0)
	out = append(out, Line{{spark.fill(cells), Plain}})
	out = append(out, m.reasons("FRAMES LEFT BECAUSE OF", v.Left, Plain, width)...)
	out = append(out, m.reasons("LOST BECAUSE OF", v.Dropped, Bad, width)...)
	if len(out) > room {
		out = append(out[:room-1], Line{{fmt.Sprintf("%d more lines: a higher window shows them", len(out)-room+1), Dim}})
	}
	return out
}

// reasons is a table of rates.
func (m *Model) reasons(title string, rates []Rate, style Style, width int) []Line {
	if len(rates) == 0 {
		return nil
	}
	all := 0.0
	for _, r := range rates {
		all += r.PerSec
	}
	columns := []column{
		{title: title, min: 9, most: 24, rank: 0}, {title: "/S", min: 5, right: true, rank: 0}, {title: "SHARE", min: 5, right: true, rank: 1}, {title: "", min: 10, most: 40, rank: 2},
	}
	var rows [][]cell
	for _, r := range rates {
		share := r.PerSec / all
		bar := cell{style: style, fill: func(cells int) string { return strings.Repeat("#", int(share*float64(cells)+0.5)) }}
		rows = append(rows, []cell{{text: r.Name}, {text: short(r.PerSec), style: style}, {text: percent(share)}, bar})
	}
	return draw(columns, rows, width)
}
