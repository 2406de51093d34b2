package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// ErrData is returned when a stream did not arrive as it was sent.
var ErrData = errors.New("data differs")

// Setting is one of the ways that are compared.
type Setting struct {
	Name        string
	Coalesce    bool
	GuestGRO    bool    // the guest's own stack merges, too
	Quota       float64 // processors that the guest may use, 0: what it can get
	Flows       int     // connections at once, 0: one
	Gbps        float64 // that all connections together send at most; 0: as TCP makes of it
	Transmit    bool    // the guest sends
	MaxSegments int     // of a superframe, 0: as many as fit
}

// pace is how many bytes a second each connection sends at most; 0: no bound.
func (s Setting) pace() int { return int(s.Gbps * 1e9 / 8 / float64(s.flows())) }

// flows is the number of connections.
func (s Setting) flows() int { return max(1, s.Flows) }

var (
	settingOff   = Setting{Name: "off"}
	settingOn    = Setting{Name: "on", Coalesce: true}
	settingGRO   = Setting{Name: "off, guest GRO", GuestGRO: true}
	settingOnGRO = Setting{Name: "on, guest GRO", Coalesce: true, GuestGRO: true}

	settingQuotaOff = Setting{Name: "off, quota", Quota: guestQuota}
	settingQuotaOn  = Setting{Name: "on, quota", Coalesce: true, Quota: guestQuota}
)

// guestQuota is what the guest gets of a processor in the rounds where it, and not the sender, is to be what is too slow.
const guestQuota = 0.3

// view is everything at one moment: two of them make a round.
type view struct {
	sender, control, guest *snapshot
	stats                  *api.VMStats
	lost                   uint64        // frames, in front of the worker
	busy                   time.Duration // of all processors
	kernel                 threads
}

// look takes a view. The guest's counters come first and with their own clock: they are what the rate is made of.
func (d *demo) look(ctx context.Context) (v view, err error) {
	for _, x := range []struct {
		c  *child
		to **snapshot
	}{{d.guest, &v.guest}, {d.control, &v.control}, {d.sender, &v.sender}} {
		r, err := x.c.ask(ctx, request{Op: "snapshot"})
		if err != nil {
			return v, err
		}
		if *x.to = r.Snap; r.Snap == nil {
			return v, fmt.Errorf("demo: %s: snapshot: empty", x.c.role)
		}
	}
	if v.busy, err = machineBusy(); err != nil {
		return v, err
	}
	if v.kernel, err = kernelThreads(); err != nil {
		return v, err
	}
	if d.client == nil { // another way than the controller's
		v.stats = &api.VMStats{}
		return v, nil
	}
	s, err := d.client.Stats(ctx, vmName)
	if err != nil {
		return v, fmt.Errorf("demo: stats: %w", err)
	}
	if len(s.VMs) != 1 {
		return v, fmt.Errorf("demo: stats: %d VMs, want 1", len(s.VMs))
	}
	v.stats = &s.VMs[0]
	for _, q := range s.Queues {
		v.lost += q.Lost()
	}
	v.lost += s.Outcomes["drop_hang"]
	return v, nil
}

// warmUp is how long a connection runs before the measured time: its window is open by then.
const warmUp = 400 * time.Millisecond

// round measures one setting over one set of connections.
func (d *demo) round(ctx context.Context, s Setting) (Mode, error) {
	if err := d.apply(ctx, s); err != nil {
		return Mode{}, err
	}
	t := transferPlan{from: d.sender, to: d.guest, address: d.guestAddress, sum: sumCRC, flows: s.flows(), pace: s.pace()}
	if s.Transmit {
		t.from, t.to, t.address = d.guest, d.sender, d.senderAddress
	}
	if err := d.begin(ctx, t); err != nil {
		return Mode{}, err
	}
	if err := pause(ctx, warmUp); err != nil {
		return Mode{}, err
	}
	a, err := d.look(ctx)
	if err != nil {
		return Mode{}, err
	}
	if err := pause(ctx, d.opt.Round); err != nil {
		return Mode{}, err
	}
	b, err := d.look(ctx)
	if err != nil {
		return Mode{}, err
	}
	if err := d.end(ctx, t); err != nil {
		return Mode{}, err
	}
	return difference(a, b, s.Transmit), nil
}

// difference is what happened between two views, to data for the guest or from it.
func difference(a, b view, transmit bool) Mode {
	reader := func(v view) *snapshot { return v.guest }
	if transmit {
		reader = func(v view) *snapshot { return v.sender }
	}
	bytes := float64(reader(b).Received - reader(a).Received)
	gb := bytes / 1e9
	perGB := func(d time.Duration) float64 {
		if gb == 0 {
			return 0
		}
		return d.Seconds() / gb
	}
	m := Mode{
		WireFrames:   b.stats.RxPackets - a.stats.RxPackets,
		GuestFrames:  b.guest.NIC.RxPackets - a.guest.NIC.RxPackets,
		StackPackets: b.guest.Packets - a.guest.Packets,
		Retransmits:  b.sender.Retrans - a.sender.Retrans,
		Congestion:   b.sender.Congestion,
		CPU: CPU{
			Controller: perGB(b.control.CPU - a.control.CPU),
			Guest:      perGB(b.guest.CPU - a.guest.CPU),
			Total:      perGB(b.busy - a.busy),
			Sender:     perGB(b.sender.CPU - a.sender.CPU),
			Kernel:     perGB(b.kernel.since(a.kernel)),
		},
		Wakeups: b.control.Sleeps - a.control.Sleeps,
		Drops:   b.lost - a.lost,
		Reasons: map[string]uint64{},
	}
	if t := reader(b).Clock - reader(a).Clock; t > 0 {
		m.Gbps = bytes * 8 / float64(t.Nanoseconds())
	}
	if m.GuestFrames > 0 {
		m.MeanBytes = float64(b.guest.NIC.RxBytes-a.guest.NIC.RxBytes) / float64(m.GuestFrames)
	}
	if n := b.guest.Guest.DataFrames - a.guest.Guest.DataFrames; n > 0 {
		m.Segments = float64(b.guest.Guest.Segments-a.guest.Guest.Segments) / float64(n)
	}
	addDifference(m.Reasons, a.stats.Sealed, b.stats.Sealed)
	addDifference(m.Reasons, a.stats.Passed, b.stats.Passed)
	m.Drops += addDifference(m.Reasons, a.stats.Dropped, b.stats.Dropped)
	if transmit {
		m.sent(a, b)
	}
	return m
}

// sent makes the frames those of the other direction.
func (m *Mode) sent(a, b view) {
	frames, wire := b.stats.TxFrames-a.stats.TxFrames, b.stats.TxWireFrames-a.stats.TxWireFrames
	m.WireFrames, m.GuestFrames, m.MeanBytes, m.Segments = wire, frames, 0, 0
	m.Retransmits, m.Congestion = b.guest.Retrans-a.guest.Retrans, b.guest.Congestion
	m.Reasons = map[string]uint64{}
	m.Drops = b.lost - a.lost + addDifference(m.Reasons, a.stats.TxDropped, b.stats.TxDropped)
	if frames > 0 {
		m.MeanBytes = float64(b.stats.TxBytes-a.stats.TxBytes) / float64(frames)
		m.Segments = float64(wire) / float64(frames)
	}
}

// addDifference adds to sum what b has more than a, and returns all of it together.
func addDifference(sum, a, b map[string]uint64) (all uint64) {
	for name, n := range b {
		if n > a[name] {
			sum[name] += n - a[name]
			all += n - a[name]
		}
	}
	return all
}

// transferPlan is one transfer: bytes per connection, 0 until it is finished.
type transferPlan struct {
	from, to *child
	address  string
	sum      string
	flows    int
	pace     int // bytes a second of each connection, 0: no bound
	bytes    int64
}

func (d *demo) begin(ctx context.Context, t transferPlan) error {
	if _, err := t.to.ask(ctx, request{Op: "receive", Flows: t.flows, Sum: t.sum}); err != nil {
		return err
	}
	_, err := t.from.ask(ctx, request{
		Op: "send", Flows: t.flows, Pace: t.pace, Sum: t.sum, Bytes: t.bytes, Address: t.address, Seed: d.seed,
	})
	return err
}

// comparedFlows is how many connections may be for a round to end with a comparison of their data. Of many some have lost the end of what they
// sent, and wait for half a minute until it is sent again.
const comparedFlows = 8

// end ends a round's transfer, which has no length.
func (d *demo) end(ctx context.Context, t transferPlan) error {
	if t.flows <= comparedFlows {
		_, err := d.finish(ctx, t)
		return err
	}
	for _, c := range []*child{t.from, t.to} {
		if _, err := c.ask(ctx, request{Op: "abandon"}); err != nil {
			return err
		}
	}
	return nil
}

// finish ends a transfer and compares what was written with what was read, connection by connection. With a length, it
// waits for all of it.
func (d *demo) finish(ctx context.Context, t transferPlan) (int64, error) {
	op := "finish"
	if t.bytes > 0 {
		op = "complete"
	}
	sent, err := t.from.ask(ctx, request{Op: op})
	if err != nil {
		return 0, err
	}
	got, err := t.to.ask(ctx, request{Op: "received"})
	if err != nil {
		return 0, err
	}
	if !slices.Equal(sent.Streams, got.Streams) || len(sent.Streams) != t.flows {
		return 0, fmt.Errorf("demo: %s to %s: %w: sent %+v, received %+v", t.from.role, t.to.role, ErrData, sent.Streams, got.Streams)
	}
	var total int64
	for _, s := range got.Streams {
		total += s.Bytes
	}
	return total, nil
}

// pause sleeps unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
