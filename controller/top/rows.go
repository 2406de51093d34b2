package top

import (
	"fmt"
	"slices"

	"github.com/rscctl/rscctl/controller/api"
)

var vmColumns = []column{
	{title: "", min: 2, rank: 0},
	{title: "VM", min: 6, most: 24, rank: 0},
	{title: "IFACE", min: 5, most: 15, rank: 9},
	{title: "STATE", min: 7, most: 9, rank: 8},
	{title: "BIT/S", min: 5, right: true, rank: 0},
	{title: "OUT", min: 5, right: true, rank: 7},
	{title: "PKT/S", min: 5, right: true, rank: 5},
	{title: "FRM/S", min: 5, right: true, rank: 6},
	{title: "SEG", min: 4, right: true, rank: 0},
	{title: "HOLD", min: 6, right: true, rank: 2},
	{title: "DROP/S", min: 6, right: true, rank: 1},
	{title: "WHY", min: 19, most: 60, rank: 3},
	{title: "HISTORY", min: 8, most: remembered, rank: 4},
}

var queueColumns = []column{
	{title: "", min: 2, rank: 0},
	{title: "QUEUE", min: 6, most: 24, rank: 0},
	{title: "WORKER", min: 7, rank: 6},
	{title: "CPU", min: 4, right: true, rank: 0},
	{title: "RX/S", min: 5, right: true, rank: 0},
	{title: "LOST/S", min: 6, right: true, rank: 1},
	{title: "TX/S", min: 5, right: true, rank: 3},
	{title: "HELD", min: 4, right: true, rank: 4},
	{title: "OPEN", min: 4, right: true, rank: 5},
	{title: "HISTORY", min: 8, most: remembered, rank: 2},
}

// vmTable has the VMs around the cursor, under a head.
func (m *Model) vmTable(vms []VM, width, room int) []Line {
	if len(vms) == 0 {
		return []Line{m.noRows("VM")}
	}
	at := max(0, slices.IndexFunc(vms, func(v VM) bool { return v.Name == m.cursor[0] }))
	return around(at, len(vms), vmColumns, width, room, func(i int) []cell {
		v := &vms[i]
		return []cell{
			m.mark(i == at, false, v.Health.State), m.figure(v.Name, Plain), m.figure(v.Iface, Plain), m.figure(v.State, Plain), m.figure(short(v.Bits), Plain),
			m.figure(short(v.Out), Plain), m.figure(short(v.Packets), Plain), m.figure(short(v.Frames), Plain), m.figure(short(v.Segments), Plain), m.figure(hold(v.HoldNS), Plain),
			m.figure(short(v.Drops), bad(v.Drops)), m.figure(whyText(v), Plain), m.spark(v.History, 0),
		}
	})
}

// queueTable has the queues around the cursor, under a head.
func (m *Model) queueTable(queues []Queue, width, room int) []Line {
	if len(queues) == 0 {
		return []Line{m.noRows("queue")}
	}
	at := max(0, slices.IndexFunc(queues, func(q Queue) bool { return q.Name == m.cursor[1] }))
	return around(at, len(queues), queueColumns, width, room, func(i int) []cell {
		q := &queues[i]
		return []cell{
			m.mark(i == at, true, q.Health.State), m.figure(q.Name, Plain), m.figure(string(q.Worker), workerStyle(q.Worker)), m.figure(percent(q.CPU), busy(q.CPU)), m.figure(short(q.Rx), Plain),
			m.figure(short(q.Lost), bad(q.Lost)), m.figure(short(q.Tx), Plain), m.figure(percent(q.HeldShare()), Plain), m.figure(short(float64(q.Open)), Plain), m.spark(q.History, 1),
		}
	})
}

// around draws those of n rows around the one with the cursor that there is room for. The title of their names says which, when
// not all are there.
func around(at, n int, columns []column, width, room int, row func(i int) []cell) []Line {
	from, to := window(n, room-1, at)
	columns = slices.Clone(columns)
	if name := &columns[1]; to-from < n {
		name.title = fmt.Sprintf("%s %d-%d/%d", name.title, from+1, to, n)
		name.min = max(name.min, min(len(name.title), width-leastBeside))
	}
	var rows [][]cell
	for i := from; i < to; i++ {
		rows = append(rows, row(i))
	}
	return draw(columns, rows, width)
}

// leastBeside is what the columns beside the names need on the narrowest screen.
const leastBeside = 14

// whyText is a VM's first trouble, or else the reason that most of its frames left for.
func whyText(v *VM) string {
	if len(v.Health.Reasons) > 0 {
		return v.Health.Reasons[0]
	}
	reason, share := v.Why()
	if reason == "" {
		return "-"
	}
	return percent(share) + " " + reason
}

// figure is a cell of the last look.
func (m *Model) figure(text string, style Style) cell {
	if m.gone != nil {
		style = Dim
	}
	return cell{text: text, style: style}
}

// spark is a cell with a history's sparkline.
func (m *Model) spark(h []float64, top float64) cell {
	c := m.figure("", Plain)
	c.fill = func(cells int) string { return sparkline(h, cells, top, m.ascii) }
	return c
}

func workerStyle(w api.WorkerState) Style {
	if w == api.WorkerRunning {
		return Plain
	}
	return Bad
}

// fullCPU is the share of a processor from which on a worker has next to none left.
const fullCPU = 0.9

func busy(cpu float64) Style {
	if known(cpu) && cpu >= fullCPU {
		return Warn
	}
	return Plain
}
