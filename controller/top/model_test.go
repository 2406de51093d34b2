package top

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// seen is a model that has had two looks, a tenth of a second short of two seconds apart, with what happened in between.
func seen(w *world, between func()) *Model {
	m := New(Options{})
	m.See(w.look())
	w.at = w.at.Add(1900 * time.Millisecond)
	between()
	m.See(w.look())
	return m
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-6*max(1, math.Abs(b)) }

// A row has what grew between two looks, a second; what did not happen has no mean.
func TestARowHasRatesOfWhatGrew(t *testing.T) {
	w := newWorld("web", "idle")
	w.bulk(0, 1000) // before the first look: it counts for nothing
	m := seen(w, func() {
		w.bulk(0, 190)
		v := &w.stats.VMs[0]
		v.Passed["syn"], v.RxPackets, v.FrameBytes[1].Count, v.GuestFrames = 380, v.RxPackets+380, 380, v.GuestFrames+380
		v.Dropped["guest_no_buffers"], v.TxDropped["source_mac"], v.TapDropped, v.TxBytes = 19, 38, 57, 1900
		w.worked("eth0/0", 950*time.Millisecond, 3800, 19)
	})
	rows := m.VMs()
	web, idle := rows[0], rows[1]
	if web.Name != "web" || !near(web.Bits, 8*100*45*1514) || !near(web.Packets, 4500+200) || !near(web.Frames, 100+200) || !near(web.Out, 8000) || !near(web.HoldNS, 20000) {
		t.Errorf("%+v", web)
	}
	if want := float64(190*45+380) / (190 + 380); !near(web.Segments, want) {
		t.Errorf("%f segments a frame, want %f", web.Segments, want)
	}
	if reason, share := web.Why(); reason != "syn" || !near(share, 380.0/570) {
		t.Errorf("%s %f of %v", reason, share, web.Left)
	}
	if !near(web.Drops, 60) || len(web.Dropped) != 3 || web.Dropped[0] != (Rate{"tap_dropped", 30}) {
		t.Errorf("%f lost: %v", web.Drops, web.Dropped)
	}
	if idle.Bits != 0 || idle.Drops != 0 || known(idle.Segments) || known(idle.HoldNS) || len(idle.Left) != 0 {
		t.Errorf("%+v", idle)
	}
	q := m.Queues()[0]
	if q.Name != "eth0/0" || !near(q.CPU, 0.5) || !near(q.Rx, 2000) || !near(q.Lost, 10) {
		t.Errorf("%+v", q)
	}
}

// What cannot be compared has no rate, and never a negative one: the first look, a VM that was attached anew, a controller that was
// started anew, a clock that stands.
func TestWhatCannotBeComparedIsNotKnown(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"VM anew":              func(w *world) { w.stats.VMs[0].RxPackets = 3 },
		"on another interface": func(w *world) { w.bulk(0, 5); w.stats.VMs[0].Iface = "eth1" },
		"controller anew":      func(w *world) { w.bulk(0, 5); w.status.PID++ },
		"the same process id":  func(w *world) { w.bulk(0, 5); w.status.StartedAt = w.status.StartedAt.Add(time.Minute) },
		"the clock stands":     func(w *world) { w.bulk(0, 5); w.at = start },
		"the clock goes back":  func(w *world) { w.bulk(0, 5); w.at = start.Add(-time.Hour) },
	} {
		w := newWorld("web")
		w.bulk(0, 1000)
		m := seen(w, func() { change(w) })
		v := m.VMs()[0]
		if known(v.Bits) || known(v.Packets) || known(v.Frames) || known(v.Segments) || known(v.Drops) || known(v.HoldNS) || len(v.Left) != 0 {
			t.Errorf("%s: %+v", name, v)
		}
		w.at = w.at.Add(time.Second)
		w.bulk(0, 10)
		m.See(w.look())
		if v = m.VMs()[0]; !known(v.Bits) || v.Bits <= 0 || len(v.History) != 3 {
			t.Errorf("%s: a look later %+v", name, v)
		}
	}
	w := newWorld("web")
	w.stats.VMs[0].TxBytes = 1000
	m := seen(w, func() { w.bulk(0, 5); w.stats.VMs[0].TxBytes = 10 })
	if v := m.VMs()[0]; known(v.Out) || !known(v.Bits) {
		t.Errorf("one counter went back: %+v", v)
	}
	w = newWorld("web")
	m = New(Options{})
	m.See(w.look())
	if v := m.VMs()[0]; known(v.Bits) || known(m.Queues()[0].CPU) {
		t.Errorf("after one look: %+v", v)
	}
}

// A worker that does not answer has no figures, whatever the zeros that stand in for its counters.
func TestAStuckWorkerHasNoFigures(t *testing.T) {
	w := newWorld("web")
	w.worked("eth0/0", time.Second, 100, 0)
	m := seen(w, func() { w.stats.Queues["eth0/0"] = api.Queue{Worker: api.WorkerStuck} })
	m.Sort(ByName)
	if q := m.Queues()[0]; known(q.CPU) || known(q.Rx) || known(q.Lost) || q.Worker != api.WorkerStuck {
		t.Errorf("%+v", q)
	}
	w.at = w.at.Add(time.Second)
	w.stats.Queues["eth0/0"] = api.Queue{Worker: api.WorkerRunning, CPUNS: 5e9, RxFrames: 500}
	m.See(w.look())
	if q := m.Queues()[0]; known(q.CPU) || known(q.Rx) {
		t.Errorf("all that it has ever done is no rate: %+v", q)
	}
}

func names(m *Model) (out []string) {
	for _, v := range m.VMs() {
		out = append(out, v.Name)
	}
	return out
}

func TestRowsAreOrderedByAKeyAndThenByName(t *testing.T) {
	w := newWorld("vm10", "vm9", "big", "lossy", "none")
	m := seen(w, func() {
		w.bulk(2, 100)
		w.bulk(3, 10)
		w.stats.VMs[3].Dropped["port_down"] = 5
		w.stats.VMs[4].Iface = "eth1" // not known
	})
	for _, c := range []struct {
		key  Key
		want string
	}{
		{ByRate, "vm9 vm10 lossy big none"}, {ByRate, "big lossy vm9 vm10 none"}, {ByName, "big lossy none vm9 vm10"}, {ByName, "vm10 vm9 none lossy big"},
		{ByDrops, "lossy big vm9 vm10 none"}, {BySegments, "big lossy none vm9 vm10"}, {ByHold, "big lossy none vm9 vm10"}, {ByCPU, "big lossy none vm9 vm10"},
	} {
		if m.Sort(c.key); strings.Join(names(m), " ") != c.want {
			t.Errorf("by %s: %v, want %s", m.order(), names(m), c.want)
		}
	}
}

// A filter shows the VMs and queues of which it is a part, and the queues of the VMs it shows.
func TestAFilterShowsWhatItNames(t *testing.T) {
	w := newWorld("web1", "web2", "db")
	w.stats.VMs[2].Iface = "ens7"
	w.stats.Queues["ens7/0"] = api.Queue{}
	m := seen(w, func() {})
	for filter, want := range map[string]string{
		"": "db web1 web2 | ens7/0 eth0/0 eth0/1", "WEB": "web1 web2 | eth0/0 eth0/1", "2": "web2 | eth0/0 eth0/1", "ens": "db | ens7/0", "eth0/1": " | eth0/1", "nobody": " | ",
	} {
		m.filter = filter
		var queues []string
		for _, q := range m.Queues() {
			queues = append(queues, q.Name)
		}
		slices.Sort(queues)
		n := names(m)
		slices.Sort(n)
		if got := strings.Join(n, " ") + " | " + strings.Join(queues, " "); got != want {
			t.Errorf("%q: %s, want %s", filter, got, want)
		}
	}
}

// While paused the screen stands, and what comes meanwhile is in the sparkline afterwards.
func TestAPausedScreenStands(t *testing.T) {
	w := newWorld("web")
	m := seen(w, func() { w.bulk(0, 100) })
	m.Key("p", "p", w.at)
	was := text(m.Screen(100, 20, w.at))
	for range 3 {
		w.at = w.at.Add(time.Second)
		w.bulk(0, 777)
		m.See(w.look())
	}
	if got := text(m.Screen(100, 20, w.at.Add(-3*time.Second))); got != was {
		t.Errorf("it moved:\n%s\n%s", was, got)
	}
	if !strings.Contains(was, "PAUSED") {
		t.Errorf("nothing says so:\n%s", was)
	}
	m.Key("p", "p", w.at)
	if v := m.VMs()[0]; !near(v.Bits, 777*45*1514*8) || len(v.History) != 5 {
		t.Errorf("%+v", v)
	}
}

// When the controller is away the rows stay, it is said since when and why, and the sparkline has a gap; then all goes on.
func TestAControllerThatGoesAwayAndComesBack(t *testing.T) {
	w := newWorld("web")
	m := seen(w, func() { w.bulk(0, 100) })
	for range 2 {
		w.at = w.at.Add(time.Second)
		m.Miss(w.at, errors.New("nobody listens"))
	}
	s := text(m.Screen(100, 20, w.at.Add(4*time.Second)))
	for _, want := range []string{"NO CONTROLLER 5s", "nobody listens", "web"} {
		if !strings.Contains(s, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	w.status.PID, w.at = 4712, w.at.Add(time.Second)
	w.stats.VMs[0] = newWorld("web").stats.VMs[0]
	m.See(w.look())
	w.at = w.at.Add(time.Second)
	w.bulk(0, 50)
	m.See(w.look())
	if s = text(m.Screen(100, 20, w.at)); strings.Contains(s, "NO CONTROLLER") {
		t.Errorf("it is back:\n%s", s)
	}
	if h := m.VMs()[0].History; len(h) != 6 || known(h[0]) || !known(h[1]) || known(h[2]) || known(h[3]) || known(h[4]) || !near(h[5], 50*45*1514*8) {
		t.Errorf("%v", h)
	}
}

// The cursor stays on its VM when the order changes, and is among the rows that a small screen shows.
func TestTheCursorStaysOnItsVM(t *testing.T) {
	var vms []string
	for i := range 200 {
		vms = append(vms, "vm"+string(rune('a'+i%26))+strings.Repeat("x", i/26))
	}
	w := newWorld(vms...)
	m := seen(w, func() {})
	m.Key("end", "", w.at)
	on := m.underCursor().Name
	if want := names(m)[199]; on != want {
		t.Errorf("at the end: %s, want %s", on, want)
	}
	m.Key("r", "r", w.at)
	m.Key("s", "s", w.at)
	if m.underCursor().Name != on {
		t.Errorf("the cursor is on %s", m.underCursor().Name)
	}
	for range 3 {
		m.Key("up", "", w.at)
		if s := text(m.Screen(60, 8, w.at)); !strings.Contains(s, ">  "+m.underCursor().Name) {
			t.Errorf("the cursor is not in\n%s", s)
		}
	}
	m.Key("home", "", w.at)
	m.Key("up", "", w.at)
	if got, want := m.underCursor().Name, names(m)[0]; got != want {
		t.Errorf("at the top: %s, want %s", got, want)
	}
	m.Key("tab", "", w.at)
	m.Key("down", "", w.at)
	if s := text(m.Screen(60, 24, w.at)); !strings.Contains(s, ">  eth0/1") {
		t.Errorf("tab: the cursor is not in the queues:\n%s", s)
	}
}

// A filter is in force while it is typed; letters are then no commands.
func TestAFilterIsTyped(t *testing.T) {
	w := newWorld("web", "quick", "db")
	m := seen(w, func() {})
	for _, k := range []string{"/", "q", "u", "x", "backspace"} {
		if m.Key(k, k, w.at) {
			t.Fatalf("%s ends it", k)
		}
	}
	if got := names(m); !slices.Equal(got, []string{"quick"}) || !strings.Contains(text(m.Screen(80, 24, w.at)), "filter: qu_") {
		t.Errorf("%v\n%s", got, text(m.Screen(80, 24, w.at)))
	}
	m.Key("enter", "", w.at)
	if s := text(m.Screen(80, 24, w.at)); !strings.Contains(s, "|filter: qu|") {
		t.Errorf("kept:\n%s", s)
	}
	if m.Key("esc", "", w.at); len(names(m)) != 3 {
		t.Errorf("dropped: %v", names(m))
	}
	if !m.Key("q", "q", w.at) || !m.Key("ctrl+c", "", w.at) {
		t.Error("q and ctrl+c do not end it")
	}
}

func TestFiguresFitTheirCells(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.04: "0", 0.5: "0.5", 1: "1", 44.94: "44.9", 99.96: "100", 999.4: "999", 999.6: "1.00k", 9996: "10.0k", 123456: "123k", 1.5e9: "1.50G", 2e18: "lots", math.NaN(): "-",
	} {
		if got := short(v); got != want {
			t.Errorf("%f: %q, want %q", v, got, want)
		}
	}
	for v := 1e-3; v < 1e19; v *= 1.07 {
		if s := short(v); len(s) > 5 {
			t.Errorf("%f: %q", v, s)
		}
		if s := hold(v); len(s) > 6 && v < 1e12 {
			t.Errorf("%f ns: %q", v, s)
		}
	}
	for ns, want := range map[float64]string{850: "850ns", 41234: "41.2us", 1.05e6: "1.1ms", 3e9: "3s", math.NaN(): "-"} {
		if got := hold(ns); got != want {
			t.Errorf("%f ns: %q, want %q", ns, got, want)
		}
	}
}

func TestASparklineShowsTheNewestLast(t *testing.T) {
	for _, c := range []struct {
		h     []float64
		cells int
		top   float64
		want  string
	}{
		{nil, 3, 0, "   "}, {[]float64{0, 0}, 3, 0, " ▁▁"}, {[]float64{1, 2, 4, 8}, 4, 0, "▂▃▅█"}, {[]float64{9, 1, 8}, 2, 0, "▂█"}, {[]float64{0.5}, 1, 1, "▅"}, {[]float64{math.NaN(), 1}, 2, 0, " █"},
	} {
		if got := sparkline(c.h, c.cells, c.top, false); got != c.want {
			t.Errorf("%v: %q, want %q", c.h, got, c.want)
		}
	}
	if got := sparkline([]float64{0, 4, 8}, 3, 0, true); got != "_+@" {
		t.Errorf("%q", got)
	}
}
