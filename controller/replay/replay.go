package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
)

const (
	// DefaultHold is fixed, so that what is said of a capture does not change with what adaptive holds learn.
	DefaultHold = 50 * time.Microsecond
	// MaxHold is the longest hold accepted.
	MaxHold = time.Hour

	// MaxHeld packets are in open slots at most.
	MaxHeld      = 32768
	maxHeldBytes = 256 << 20

	ctxEvery = 1024 // packets between two looks at the context
)

// ErrOutput means that a frame could not be written.
var ErrOutput = errors.New("output")

// Options say how a capture is replayed.
type Options struct {
	Profile  flowtable.Profile
	Hold     time.Duration // 0: packets with equal timestamps form a burst
	Adaptive bool          // Hold is the longest that a hold may become
	Features Features
	VLAN     uint16 // the port is an access port of this VLAN: it gets the frames with that tag, without it. 0: all frames, as they are
}

// engine is one replay. It is the flow table's Output.
type engine struct {
	table *flowtable.Table
	pool  pool
	sinks []Sink
	burst bool // what is not held leaves when the clock moves
	vlan  uint16

	now     int64 // the capture's clock, ns
	started bool
	count   uint64 // packets read
	foreign uint64 // of these: of another VLAN than the port's
	packet  flowtable.Packet
	frame   Frame // reused
	sum     Summary
	err     error // the first one of a sink
}

// Run replays a capture into sinks. The summary is complete also when an error is returned: frames before the damage have
// been delivered, and Summary.Error says what happened.
func Run(ctx context.Context, in io.Reader, opt Options, sinks ...Sink) (*Summary, error) {
	e := &engine{sinks: sinks, burst: opt.Hold == 0 || opt.Adaptive, vlan: opt.VLAN, sum: newSummary()}
	err := e.run(ctx, in, opt)
	if err != nil {
		text := err.Error()
		e.sum.Error = &text
	}
	return &e.sum, err
}

func (e *engine) run(ctx context.Context, in io.Reader, opt Options) error {
	if opt.Hold < 0 || opt.Hold > MaxHold {
		return fmt.Errorf("hold %v: not between 0 and %v", opt.Hold, MaxHold)
	}
	src, err := newCapture(in)
	if err != nil {
		return interrupted(ctx, err)
	}
	cfg := flowtable.Config{MaxHeld: MaxHeld, Ports: 1}
	if opt.Adaptive {
		cfg.Seed = 1 // what is known of a flow may give way to another's: always in the same way
	}
	e.table, err = flowtable.New(cfg, e)
	if err != nil {
		return err
	}
	pc := flowtable.DefaultPortConfig()
	pc.Profile, pc.Hold, pc.Adaptive = opt.Profile, opt.Hold, opt.Adaptive
	f := opt.Features
	pc.GuestCsum, pc.TSO4, pc.TSO6, pc.ECN, pc.RSCExt = f.Csum, f.TSO4, f.TSO6, f.ECN, f.RSC
	if err := e.table.SetPort(0, pc, 0); err != nil {
		return err
	}
	err = e.packets(ctx, src)
	if e.err == nil {
		e.finish()
	}
	e.sum.count(e.count, e.table.Ledger(0))
	e.sum.drop(flowtable.ReasonVLANForeign, e.foreign)
	if e.err != nil {
		return fmt.Errorf("%w: %w", ErrOutput, e.err)
	}
	return err
}

// packets feeds the table until the capture ends, well or not.
func (e *engine) packets(ctx context.Context, src capture) error {
	for {
		if e.count%ctxEvery == 0 && ctx.Err() != nil {
			return fmt.Errorf("packet %d: %w", e.count, context.Cause(ctx))
		}
		rec, err := src.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("packet %d: %w", e.count, interrupted(ctx, err))
		}
		e.tick(rec)
		e.add(rec)
		if e.err != nil {
			return nil
		}
	}
}

// interrupted is the cause of ctx's end if there is one: a capture whose reading was interrupted is not damaged.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// tick moves the clock to a packet's time and lets everything happen that is due before it.
func (e *engine) tick(rec record) {
	if !e.started {
		e.started = true
		if rec.timed {
			e.now = rec.ts
		}
		return
	}
	if !rec.timed || rec.ts <= e.now {
		return
	}
	if e.burst {
		e.table.EndBurst(e.now)
	}
	for {
		deadline, ok := e.table.NextDeadline()
		if !ok || deadline > rec.ts {
			break
		}
		e.now = max(e.now, deadline)
		e.table.Expire(e.now)
	}
	e.now = rec.ts
}

func (e *engine) add(rec record) {
	p := &e.packet
	*p = flowtable.Packet{}
	packet.ParseHead(rec.data, rec.orig, &p.Info)
	if rec.orig > len(rec.data) {
		// What is missing cannot be verified, so it passes whatever its headers say; but where they are all there it must not overtake
		// its flow, so it keeps its key.
		p.Info.Verdict = packet.Truncated
	}
	if e.vlan != 0 {
		if p.Info.TCI&0xfff != e.vlan {
			e.foreign++
			e.count++
			return
		}
		tagged := len(rec.data)
		rec.data = packet.StripTag(rec.data, &p.Info)
		rec.orig -= tagged - len(rec.data)
	}
	p.Ref = e.pool.put(rec.data, e.count, rec.orig)
	p.Data = e.pool.slots[p.Ref].buf
	e.count++
	e.table.Add(p, e.now)
	if e.pool.bytes > maxHeldBytes {
		e.table.Close(flowtable.ReasonPressure, e.now)
	}
}

// finish delivers what is held at the end of the capture.
func (e *engine) finish() {
	if e.burst {
		e.table.EndBurst(e.now)
	}
	e.table.Close(flowtable.ReasonStop, e.now)
}

// Deliver implements flowtable.Output.
func (e *engine) Deliver(sf *flowtable.Superframe) {
	f := &e.frame
	f.TS, f.Len, f.Orig = e.now, sf.Len, sf.Len
	f.Segments, f.DupAcks = sf.Segments, sf.DupAcks
	f.GSOType, f.GSOSize, f.Flags = sf.GSOType, sf.GSOSize, sf.Flags
	f.Reason = sf.Reason.String()
	f.Frags = sf.Frags
	f.Packets = f.Packets[:0]
	for _, ref := range sf.Refs {
		f.Packets = append(f.Packets, e.pool.slots[ref].index)
	}
	if len(sf.Refs) == 1 {
		f.Orig = max(f.Orig, e.pool.slots[sf.Refs[0]].orig)
	}
	for _, s := range e.sinks {
		if e.err != nil {
			break
		}
		e.err = s.Frame(f)
	}
	e.table.Ledger(sf.Port).Deliver(&sf.Entry)
	for _, ref := range sf.Refs {
		e.pool.release(ref)
	}
}
