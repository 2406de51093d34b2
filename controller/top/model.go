package top

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// Key is what rows are ordered by.
type Key string

const (
	ByRate     Key = "rate"
	ByName     Key = "name"
	BySegments Key = "segments"
	ByHold     Key = "hold"
	ByDrops    Key = "drops"
	ByCPU      Key = "cpu"
)

// Keys are all of them; the first is the default. A table that has no such figure is ordered by name.
var Keys = []Key{ByRate, ByName, BySegments, ByHold, ByDrops, ByCPU}

// remembered is how many figures of a row are kept for its sparkline.
const remembered = 256

// Model is what has been seen, and how it is to be shown. It is not safe for concurrent use.
type Model struct {
	last  *Look // the last that succeeded
	rows  rows
	past  map[string][]float64 // by table and name, the newest last
	gone  error                // why the last look failed, nil when it did not
	since time.Time            // when looks began to fail

	sort     Key
	reverse  bool
	filter   string
	typing   bool // the filter is being typed
	stopped  *rows
	paused   time.Time
	onQueues bool // the cursor is in the table of queues
	cursor   [2]string
	detail   bool // the VM under the cursor alone
	ascii    bool
}

// rows is one moment.
type rows struct {
	at     time.Time
	status *api.Status
	vms    []VM
	queues []Queue
}

// Options are how a model begins.
type Options struct {
	Sort   Key    // "": ByRate
	Filter string // show only the VMs and queues that have it in their name or their interface's, in whatever case
	ASCII  bool   // the terminal cannot show block characters
}

// New returns a model that has seen nothing.
func New(o Options) *Model {
	return &Model{sort: cmp.Or(o.Sort, ByRate), filter: o.Filter, ascii: o.ASCII, past: map[string][]float64{}}
}

// See takes a look that succeeded.
func (m *Model) See(l Look) {
	s := between(m.last, &l)
	r := rows{at: l.At, status: l.Status}
	before := &Look{Status: &api.Status{}, Stats: &api.Stats{}}
	if m.last != nil {
		before = m.last
	}
	r.vms, r.queues = s.vms(before, &l), s.queues(before, &l)
	past := map[string][]float64{} // of what is there: a VM that has gone is forgotten
	for i := range r.vms {
		v := &r.vms[i]
		v.History = m.remember(past, "vm "+v.Name, v.Bits)
	}
	for i := range r.queues {
		q := &r.queues[i]
		q.History = m.remember(past, "queue "+q.Name, q.CPU)
	}
	m.last, m.rows, m.past, m.gone = &l, r, past, nil
}

// Miss notes a look that failed. What was seen before stays, and is shown as old.
func (m *Model) Miss(at time.Time, err error) {
	if m.gone == nil {
		m.since = at
	}
	m.gone = err
	for name, h := range m.past { // the sparklines have a gap
		m.past[name] = pushed(h, unknown)
	}
}

// remember adds a figure to what is known of a row, and returns it.
func (m *Model) remember(past map[string][]float64, name string, v float64) []float64 {
	past[name] = pushed(m.past[name], v)
	return past[name]
}

// pushed returns a copy of a history with one more figure, and as long as it may be: rows that are shown while paused keep theirs.
func pushed(h []float64, v float64) []float64 {
	h = append(slices.Clone(h), v)
	return h[max(0, len(h)-remembered):]
}

// vms makes the rows of all VMs, those that wait too.
func (s *span) vms(was, now *Look) (out []VM) {
	before := map[string]*api.VMStats{}
	for i := range was.Stats.VMs {
		before[was.Stats.VMs[i].VM] = &was.Stats.VMs[i]
	}
	ports := map[string]*api.Port{}
	for i := range now.Status.Interfaces {
		for n := range now.Status.Interfaces[i].Ports {
			p := &now.Status.Interfaces[i].Ports[n]
			ports[p.VM] = p
		}
	}
	for i := range now.Stats.VMs {
		v := &now.Stats.VMs[i]
		row := s.vm(before[v.VM], v)
		if p := ports[v.VM]; p != nil {
			row.State, row.Health = string(p.State), p.Health
		}
		out = append(out, row)
	}
	for _, w := range now.Status.Waiting {
		row := nothingKnown(&api.VMStats{VM: w.VM, Iface: w.Iface})
		row.State, row.Health = "waits", api.Health{State: api.HealthDown, Reasons: []string{w.Cause}}
		out = append(out, row)
	}
	return out
}

func (s *span) queues(was, now *Look) (out []Queue) {
	for _, name := range slices.Sorted(maps.Keys(now.Stats.Queues)) {
		q := now.Stats.Queues[name]
		var before *api.Queue
		if b, ok := was.Stats.Queues[name]; ok {
			before = &b
		}
		out = append(out, s.queue(name, before, &q))
	}
	return out
}

// shown is the moment on the screen.
func (m *Model) shown() *rows {
	if m.stopped != nil {
		return m.stopped
	}
	return &m.rows
}

// Pause stops the screen, or lets it go on. What comes meanwhile is seen and remembered.
func (m *Model) Pause(at time.Time) {
	if m.stopped != nil {
		m.stopped = nil
		return
	}
	was := m.rows
	m.stopped, m.paused = &was, at
}

// Sort orders by a key, the largest first; names the smallest first. The same key again turns the order round.
func (m *Model) Sort(k Key) {
	m.reverse = m.sort == k && !m.reverse
	m.sort = k
}

// VMs are the rows to be shown, in order.
func (m *Model) VMs() []VM {
	out := slices.DeleteFunc(slices.Clone(m.shown().vms), func(v VM) bool { return !m.wanted(v.Name, v.Iface) })
	figure := map[Key]func(v *VM) float64{
		ByRate: func(v *VM) float64 { return v.Bits }, BySegments: func(v *VM) float64 { return v.Segments },
		ByHold: func(v *VM) float64 { return v.HoldNS }, ByDrops: func(v *VM) float64 { return v.Drops },
	}[m.sort]
	order(out, figure, func(v *VM) string { return v.Name }, m.reverse)
	return out
}

// Queues are the rows to be shown, in order: those that the filter names, and those of the shown VMs' interfaces.
func (m *Model) Queues() []Queue {
	of := map[string]bool{}
	for _, v := range m.VMs() {
		of[v.Iface] = true
	}
	out := slices.DeleteFunc(slices.Clone(m.shown().queues), func(q Queue) bool {
		iface, _, _ := strings.Cut(q.Name, "/")
		return !m.wanted(q.Name, "") && !of[iface]
	})
	figure := map[Key]func(q *Queue) float64{
		ByRate: func(q *Queue) float64 { return q.Rx }, ByDrops: func(q *Queue) float64 { return q.Lost }, ByCPU: func(q *Queue) float64 { return q.CPU },
	}[m.sort]
	order(out, figure, func(q *Queue) string { return q.Name }, m.reverse)
	return out
}

// wanted tells whether the filter lets a row through.
func (m *Model) wanted(name, iface string) bool {
	f := strings.ToLower(m.filter)
	return f == "" || strings.Contains(strings.ToLower(name), f) || strings.Contains(strings.ToLower(iface), f)
}

// order sorts rows by a figure, the largest first, and those of equal or no figure by name. What is not known comes last, either way.
func order[T any](rows []T, figure func(*T) float64, name func(*T) string, reverse bool) {
	slices.SortFunc(rows, func(a, b T) int {
		c := 0
		if figure != nil {
			x, y := figure(&a), figure(&b)
			if known(x) != known(y) {
				return map[bool]int{true: -1, false: 1}[known(x)]
			}
			c = cmp.Compare(round(y), round(x))
		} else {
			c = natural(name(&a), name(&b))
		}
		if reverse {
			c = -c
		}
		return cmp.Or(c, natural(name(&a), name(&b)))
	})
}

// round keeps three digits, which are what is shown: rows that look the same do not change places.
func round(v float64) float64 {
	if v == 0 || !known(v) {
		return 0
	}
	p := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*p) / p
}

// natural orders names with their numbers as numbers: eth0/2 before eth0/10.
func natural(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x == 0 || y == 0 {
			if a[0] != b[0] {
				return cmp.Compare(a[0], b[0])
			}
			a, b = a[1:], b[1:]
			continue
		}
		m, n := strings.TrimLeft(a[:x], "0"), strings.TrimLeft(b[:y], "0")
		if c := cmp.Or(cmp.Compare(len(m), len(n)), strings.Compare(m, n), cmp.Compare(x, y)); c != 0 {
			return c
		}
		a, b = a[x:], b[y:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits is how many digits a text begins with.
func digits(s string) int { return len(s) - len(strings.TrimLeft(s, "0123456789")) }
