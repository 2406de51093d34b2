package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// ErrData is returned when a stream did not arrive as it was sent.
var ErrData = errors.New("data differs")

// setting is one of the ways that are compared.
type setting struct {
	name     string
	coalesce bool
	guestGRO bool
}

var (
	settingOff = setting{"off", false, false}
	settingOn  = setting{"on", true, false}
	settingGRO = setting{"off, guest GRO", false, true}
)

// view is everything at one moment: two of them make a round.
type view struct {
	sender, control, guest *snapshot
	stats                  *api.VMStats
	busy                   time.Duration // of all processors
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
	s, err := d.client.Stats(ctx, vmName)
	if err != nil {
		return v, fmt.Errorf("demo: stats: %w", err)
	}
	if len(s.VMs) != 1 {
		return v, fmt.Errorf("demo: stats: %d VMs, want 1", len(s.VMs))
	}
	v.stats = &s.VMs[0]
	return v, nil
}

// warmUp is how long a connection runs before the measured time: its window is open by then.
const warmUp = 400 * time.Millisecond

// round measures one setting over one set of connections.
func (d *demo) round(ctx context.Context, s setting) (Mode, error) {
	if err := d.apply(ctx, s); err != nil {
		return Mode{}, err
	}
	t := transferPlan{from: d.sender, to: d.guest, address: d.guestAddress, sum: sumCRC, flows: d.flows}
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
	if _, err := d.finish(ctx, t); err != nil {
		return Mode{}, err
	}
	return difference(a, b), nil
}

// difference is what happened between two views.
func difference(a, b view) Mode {
	bytes := float64(b.guest.Received - a.guest.Received)
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
		CPU: CPU{
			Controller: perGB(b.control.CPU - a.control.CPU),
			Guest:      perGB(b.guest.CPU - a.guest.CPU),
			Total:      perGB(b.busy - a.busy),
		},
		Reasons: map[string]uint64{},
	}
	if t := b.guest.Clock - a.guest.Clock; t > 0 {
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
	addDifference(m.Reasons, a.stats.Dropped, b.stats.Dropped)
	return m
}

func addDifference(sum, a, b map[string]uint64) {
	for name, n := range b {
		if n > a[name] {
			sum[name] += n - a[name]
		}
	}
}

// transferPlan is one transfer: bytes per connection, 0 until it is finished.
type transferPlan struct {
	from, to *child
	address  string
	sum      string
	flows    int
	bytes    int64
}

func (d *demo) begin(ctx context.Context, t transferPlan) error {
	if _, err := t.to.ask(ctx, request{Op: "receive", Flows: t.flows, Sum: t.sum}); err != nil {
		return err
	}
	_, err := t.from.ask(ctx, request{
		Op: "send", Flows: t.flows, Sum: t.sum, Bytes: t.bytes, Address: t.address, Seed: d.seed,
	})
	return err
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

// machineBusy is the time all processors together have not been idle, since boot (proc(5), /proc/stat).
func machineBusy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("demo: processor time: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, errors.New("demo: processor time: /proc/stat: unknown form")
	}
	var ticks uint64
	// user, nice, system, (idle, iowait,) irq, softirq. Time stolen by a hypervisor is not ours.
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("demo: processor time: /proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / userHz), nil
}

// userHz is the unit of /proc/stat: fixed at 100 on every architecture we build for (sysconf(_SC_CLK_TCK)).
const userHz = 100

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
