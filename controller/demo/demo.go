package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// ChildVerb is the hidden verb of the binary that runs one of the demo's processes: os.Executable() ChildVerb ROLE.
const ChildVerb = "demo-child"

// Options are what the command line asks for.
type Options struct {
	JSON    bool      // print one JSON object instead of the table
	IPv6    bool      // run over IPv6 instead of IPv4
	Stdout  io.Writer // the result
	Stderr  io.Writer // progress lines, one a step; nil: none
	Version string    // handed to the controller

	// Round is the measured time of one transfer, 0 for the default of one and a half seconds. Tests shorten it.
	Round time.Duration
	// Rounds is how often every mode is measured, 0 for the default of three.
	Rounds int
	// Executable is the binary started for the three processes, "" for os.Executable().
	Executable string
}

// Defaults of Options.
const (
	defaultRound  = 1500 * time.Millisecond
	defaultRounds = 3
)

// ErrInterrupted is returned when a signal, or the end of the caller's context, ended the demo.
var ErrInterrupted = errors.New("demo: interrupted")

// Run runs the demo and prints its result. When it fails it cleans up, prints {"schema","error"} if JSON was asked for,
// and returns the error (one line; the caller prints it to stderr and exits 1). It ends early when ctx ends, and on
// SIGINT and SIGTERM. It needs root.
func Run(ctx context.Context, o Options) error {
	if o.Round == 0 {
		o.Round = defaultRound
	}
	if o.Rounds == 0 {
		o.Rounds = defaultRounds
	}
	if o.Stderr == nil {
		o.Stderr = io.Discard
	}
	outer := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(outer))
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	go func() {
		select {
		case <-signals:
			cancel(ErrInterrupted)
		case <-outer.Done():
			cancel(ErrInterrupted)
		case <-ctx.Done():
		}
	}()

	r, err := run(ctx, cancel, o)
	if err != nil {
		if o.JSON {
			return errors.Join(err, writeFailure(o.Stdout, err))
		}
		return err
	}
	if o.JSON {
		return json.NewEncoder(o.Stdout).Encode(r)
	}
	return r.text(o.Stdout)
}

// run is Run without the printing. fail ends ctx, for what happens beside the main line: a process that dies.
func run(ctx context.Context, fail context.CancelCauseFunc, o Options) (_ *Result, err error) {
	if err := preflight(); err != nil {
		return nil, err
	}
	d := &demo{opt: o, fail: fail, seed: rand.Uint64()}
	defer func() {
		if err != nil {
			err = d.cause(ctx, err)
		}
		if left := d.close(); left != nil && err != nil {
			err = fmt.Errorf("%w; %w", err, left)
		} else if left != nil {
			err = left
		}
	}()
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	r := &Result{Schema: api.Schema, Kernel: kernelRelease()}
	if r.XDPMode, r.XSKMode, err = d.waitForPort(ctx); err != nil {
		return nil, err
	}
	if err := d.verify(ctx); err != nil {
		return nil, err
	}
	r.DataMatch = true // every transfer is compared, here and in the rounds; one that differs is an error
	if err := d.measure(ctx, r); err != nil {
		return nil, err
	}
	return r, d.detach(ctx)
}

// measure takes the rounds, the settings in turn, so that a machine that changes its speed does so for all of them.
func (d *demo) measure(ctx context.Context, r *Result) error {
	settings := []Setting{settingOff, settingOn}
	if err := d.tryQuota(ctx); err == nil {
		settings = append(settings, settingQuotaOff, settingQuotaOn)
	} else if ctx.Err() != nil {
		return err
	} else {
		d.say("no rounds with a guest that is short of processor time: %v", err)
		r.NoQuota = err.Error()
	}
	settings = append(settings, settingGRO, settingOnGRO)
	rounds := map[Setting][]Mode{}
	for i := range d.opt.Rounds {
		for _, s := range settings {
			m, err := d.round(ctx, s)
			if err != nil {
				return err
			}
			d.say("round %d of %d, %s: %.2f Gb/s, mean frame %.0f bytes", i+1, d.opt.Rounds, s.Name, m.Gbps, m.MeanBytes)
			rounds[s] = append(rounds[s], m)
		}
	}
	r.Off, r.On = median(rounds[settingOff]), median(rounds[settingOn])
	r.Congestion = r.On.Congestion
	r.OffGuestGRO, r.OnGuestGRO = median(rounds[settingGRO]), median(rounds[settingOnGRO])
	if r.NoQuota == "" {
		r.Quota = &Quota{Processors: guestQuota, Off: median(rounds[settingQuotaOff]), On: median(rounds[settingQuotaOn])}
		r.Quota.Speedup = ratio(r.Quota.On.Gbps, r.Quota.Off.Gbps)
	}
	r.Speedup = ratio(r.On.Gbps, r.Off.Gbps)
	r.GuestCPU = ratio(r.Off.CPU.Guest, r.On.CPU.Guest)
	r.GuestCPUGuestGRO = ratio(r.OffGuestGRO.CPU.Guest, r.OnGuestGRO.CPU.Guest)
	return nil
}

// tryQuota finds out whether the guest can be held to a quota on this machine. It stays as it was.
func (d *demo) tryQuota(ctx context.Context) error {
	if err := d.hold(ctx, guestQuota); err != nil {
		return err
	}
	return d.hold(ctx, 0)
}

// verifyBytes is the length of a verification transfer.
const verifyBytes = 16 << 20

// verify sends a stream in both directions with coalescing off and on and compares SHA-256.
func (d *demo) verify(ctx context.Context) error {
	for _, s := range []Setting{settingOff, settingOn} {
		if err := d.apply(ctx, s); err != nil {
			return err
		}
		for _, t := range []transferPlan{
			{from: d.sender, to: d.guest, address: d.guestAddress, sum: sumSHA, flows: 1, bytes: verifyBytes},
			{from: d.guest, to: d.sender, address: d.senderAddress, sum: sumSHA, flows: 1, bytes: verifyBytes},
		} {
			if err := d.begin(ctx, t); err != nil {
				return err
			}
			if _, err := d.finish(ctx, t); err != nil {
				return err
			}
			d.say("coalescing %s: %d MB from %s to %s, SHA-256 equal", s.Name, verifyBytes>>20, t.from.role, t.to.role)
		}
	}
	return nil
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.opt.Stderr, "demo: "+format+"\n", args...)
}
