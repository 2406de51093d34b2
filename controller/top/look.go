package top

import (
	"math"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// Look is one look at a controller.
type Look struct {
	At     time.Time // when the answers came; the time between two is by the monotonic clock
	Status *api.Status
	Stats  *api.Stats
}

// Rate is one of a VM's reasons, and how often a second.
type Rate struct {
	Name   string
	PerSec float64
}

// VM is a row. A figure that is not known is NaN: before the second look, after a restart, of nothing.
type VM struct {
	Name, Iface string
	State       string // the port's; "waits" for a VM that is not attached
	Health      api.Health
	Bits        float64 // received, bit/s
	Out         float64 // sent, bit/s; not known of a VM on its own tap
	Packets     float64 // received a second
	Frames      float64 // put into the guest a second
	Segments    float64 // packets a TCP frame
	HoldNS      float64 // mean wait of the frames that waited for a next segment
	Drops       float64 // packets and frames a second, of both ways
	Left        []Rate  // frames by the reason that they left, the most frequent first
	Dropped     []Rate  // what Drops counts, by reason
	History     []float64
}

// Why is the most frequent reason that frames left, with its share: what keeps them from being longer.
func (v *VM) Why() (reason string, share float64) {
	if len(v.Left) == 0 {
		return "", 0
	}
	all := 0.0
	for _, r := range v.Left {
		all += r.PerSec
	}
	return v.Left[0].Name, v.Left[0].PerSec / all
}

// Queue is a row of a NIC queue and its worker.
type Queue struct {
	Name         string // eth0/1
	Worker       api.WorkerState
	Health       api.Health
	CPU          float64 // processors that the worker takes: 1 is a whole one
	Rx, Tx       float64 // frames a second
	Lost         float64 // frames a second that AF_XDP dropped, or that found no room on the way out
	Held, Chunks int     // UMEM chunks that the flow table holds, and all
	Open         int     // superframes under construction
	History      []float64
}

// HeldShare is the share of the chunks that the flow table holds.
func (q *Queue) HeldShare() float64 {
	if q.Chunks == 0 {
		return unknown
	}
	return float64(q.Held) / float64(q.Chunks)
}

// unknown is the value of what nobody can tell.
var unknown = math.NaN()

// known tells whether a figure is one.
func known(v float64) bool { return !math.IsNaN(v) }

// span is the time between two looks, and what grew in it.
type span struct{ seconds float64 }

// between returns the span of two looks, nil when there are no two of the same controller.
func between(was, now *Look) *span {
	if was == nil || was.Status.PID != now.Status.PID || !was.Status.StartedAt.Equal(now.Status.StartedAt) {
		return nil
	}
	d := now.At.Sub(was.At).Seconds()
	if d <= 0 {
		return nil
	}
	return &span{d}
}

// rate of a counter a second. One that has gone back began anew.
func (s *span) rate(was, now uint64) float64 {
	if now < was {
		return unknown
	}
	return float64(now-was) / s.seconds
}

// rates of counters by name, the largest first. One that was not there was 0.
func (s *span) rates(was, now map[string]uint64) (out []Rate) {
	grown := map[string]uint64{}
	for name, n := range now {
		if n > was[name] {
			grown[name] = n - was[name]
		}
	}
	for _, c := range api.ByCount(grown) {
		out = append(out, Rate{c.Name, float64(c.N) / s.seconds})
	}
	return out
}

// nothingKnown is a VM's row before there is a rate.
func nothingKnown(v *api.VMStats) VM {
	return VM{Name: v.VM, Iface: v.Iface, Bits: unknown, Out: unknown, Packets: unknown, Frames: unknown, Segments: unknown, HoldNS: unknown, Drops: unknown}
}

// vm makes a row of two looks at a VM.
func (s *span) vm(was, now *api.VMStats) VM {
	row := nothingKnown(now)
	if s == nil || was == nil || was.Iface != now.Iface || now.RxPackets < was.RxPackets || now.GuestFrames < was.GuestFrames {
		return row
	}
	row.Bits, row.Packets, row.Frames = 8*s.rate(was.RxBytes, now.RxBytes), s.rate(was.RxPackets, now.RxPackets), s.rate(was.GuestFrames, now.GuestFrames)
	if now.TapOutcomes == nil {
		row.Out = 8 * s.rate(was.TxBytes, now.TxBytes)
	}
	row.Segments = segments(was, now)
	if n := total(now.HoldNS) - total(was.HoldNS); n > 0 && now.HoldNSSum >= was.HoldNSSum {
		row.HoldNS = float64(now.HoldNSSum-was.HoldNSSum) / float64(n)
	}
	row.Left = s.rates(sum(was.Sealed, was.Passed), sum(now.Sealed, now.Passed))
	row.Dropped = s.rates(dropped(was), dropped(now))
	row.Drops = 0
	for _, r := range row.Dropped {
		row.Drops += r.PerSec
	}
	return row
}

// segments is how many packets the TCP frames had in between that the guest got, NaN when there were none.
func segments(was, now *api.VMStats) float64 {
	frames := float64(total(now.FrameBytes)) - float64(total(was.FrameBytes))
	merged := float64(now.MergedPackets-was.MergedPackets) - float64(now.Superframes-was.Superframes)
	if frames <= 0 || merged < 0 {
		return unknown
	}
	return (frames + merged) / frames
}

// dropped is all that a VM lost, by reason. What its tap had no room for has no name in a map of the API.
func dropped(v *api.VMStats) map[string]uint64 {
	out := sum(v.Dropped, v.TxDropped)
	if v.TapDropped > 0 {
		out["tap_dropped"] = v.TapDropped
	}
	return out
}

// sum adds counters of one name.
func sum(maps ...map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for _, m := range maps {
		for name, n := range m {
			out[name] += n
		}
	}
	return out
}

// total is how many values a histogram has.
func total(h []api.Bucket) (n uint64) {
	for _, b := range h {
		n += b.Count
	}
	return n
}

// queue makes a row of two looks at a queue. A worker that does not answer has no figures.
func (s *span) queue(name string, was, now *api.Queue) Queue {
	q := Queue{Name: name, Worker: now.Worker, Health: now.Health, CPU: unknown, Rx: unknown, Tx: unknown, Lost: unknown, Held: now.Held, Chunks: now.Chunks, Open: now.OpenSlots}
	if s == nil || was == nil || now.Worker != api.WorkerRunning || was.Worker != api.WorkerRunning || now.CPUNS < was.CPUNS {
		return q
	}
	q.CPU, q.Rx, q.Tx = s.rate(was.CPUNS, now.CPUNS)/1e9, s.rate(was.RxFrames, now.RxFrames), s.rate(was.TxFrames, now.TxFrames)
	q.Lost = s.rate(was.Lost(), now.Lost())
	return q
}
