package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/demo"
)

// budget is how long a run of the quoted rows may take; when another repeat would not fit, it is left out, and a note says so.
const budget = 560 * time.Second

// bench is a run.
type bench struct {
	ctx     context.Context
	opt     options
	result  *Result
	wire    [2]string // of every stage, so that there can be one at a time; "": each makes a wire of its own
	began   time.Time
	stages  map[way]*demo.Stage
	broken  map[way]error                   // ways that this machine does not have
	samples map[string][]map[string]float64 // by row and repeat; nil: that one failed
}

func newBench(ctx context.Context, o options) (*bench, error) {
	b := &bench{ctx: ctx, opt: o, began: time.Now(), stages: map[way]*demo.Stage{}, broken: map[way]error{}, samples: map[string][]map[string]float64{}}
	var err error
	if b.wire, err = o.ends(); err != nil {
		return nil, err
	}
	b.result = &Result{Schema: schema, Form: "bench", Machine: thisMachine(), Commit: "unknown"}
	switch {
	case o.smallest:
		b.result.Form = "smallest"
	case o.all:
		b.result.Form = "bench-all"
	}
	if out, err := exec.CommandContext(ctx, "git", "-C", o.root, "rev-parse", "--short=12", "HEAD").Output(); err == nil {
		b.result.Commit = strings.TrimSpace(string(out))
		out, err := exec.CommandContext(ctx, "git", "-C", o.root, "status", "--porcelain", "--", "*.go", "*.c", "*.h", "*.o", "go.mod").Output()
		b.result.Changed = err != nil || len(out) > 0
	}
	if l := b.result.Machine.LoadBefore[0]; l > 0.5 {
		b.note("the machine was busy before: load average %.1f. Compare ratios, and look at the spread", l)
	}
	return b, ctx.Err()
}

func (b *bench) note(format string, args ...any) {
	b.result.Notes = append(b.result.Notes, fmt.Sprintf(format, args...))
	b.say(format, args...)
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: %3.0f s: "+format+"\n", append([]any{time.Since(b.began).Seconds()}, args...)...)
}

// everything measures all there is. Whatever happens, no process of it stays.
func (b *bench) everything() (err error) {
	defer func() { err = errors.Join(err, b.closeStages()) }()
	if !b.opt.some() {
		if err := b.micro(); err != nil {
			return err
		}
		if err := b.memory(); err != nil {
			return err
		}
		if err := b.profile(); err != nil {
			return err
		}
	}
	if !b.opt.smallest && b.opt.wants(idleRow) {
		if err := b.idle(); err != nil {
			return err
		}
	}
	rows := plan(b.opt)
	last := time.Duration(0)
	for i := range b.opt.repeats {
		if spent := time.Since(b.began); !b.opt.all && i > 0 && spent+last > budget {
			b.note("%d of %d repeats: another one would have taken the run beyond %v", i, b.opt.repeats, budget)
			break
		}
		start := time.Now()
		for _, p := range rows {
			if err := b.row(p, i); err != nil {
				return err
			}
		}
		last = time.Since(start)
	}
	b.conclude(rows)
	b.result.Rows = append(b.result.Rows, otherPeers()...)
	b.result.Machine.LoadAfter = load()
	b.result.Seconds = time.Since(b.began).Seconds()
	return b.ctx.Err()
}

// stage is the topology of a way, made when it is first needed. The error is a way that is not to be had here.
func (b *bench) stage(w way) (*demo.Stage, error) {
	if s := b.stages[w]; s != nil {
		return s, nil
	}
	if err := b.broken[w]; err != nil {
		return nil, err
	}
	if b.wire != [2]string{} {
		if err := b.closeStages(); err != nil {
			return nil, err
		}
	}
	o := demo.StageOptions{IPv6: w.ipv6, Round: b.opt.round, Version: "bench", BusyPoll: w.busy, Wire: b.wire}
	if w.million {
		o.Tracked = bpf.MaxFlowEntries
	}
	if w.gc {
		if err := os.Setenv(gcEnv, "1"); err != nil {
			return nil, err
		}
		defer os.Unsetenv(gcEnv)
	}
	if w.host != nil {
		o.Host = w.host
	}
	s, err := demo.OpenStage(b.ctx, o)
	if err == nil && w.million {
		if err = track(b.ctx, s); err != nil {
			_ = s.Close()
		}
	}
	if err != nil {
		b.broken[w] = err
		return nil, err
	}
	b.stages[w] = s
	if xdp, xsk := s.Modes(); b.opt.wire != "" && xdp != "" {
		b.say("%s on %s: XDP %s, AF_XDP %s", w.name, b.opt.wire, xdp, xsk)
	}
	return s, nil
}

// end ends the stage of a way, if there is one: a next row makes a new one.
func (b *bench) end(w way) error {
	s := b.stages[w]
	if s == nil {
		return nil
	}
	delete(b.stages, w)
	return s.Close()
}

func (b *bench) closeStages() error {
	var errs []error
	for w := range b.stages {
		errs = append(errs, b.end(w))
	}
	return errors.Join(errs...)
}

// row measures one row once. A row that cannot be measured is a note; an error ends the run.
func (b *bench) row(p planned, repeat int) error {
	for len(b.samples[p.id()]) <= repeat {
		b.samples[p.id()] = append(b.samples[p.id()], nil)
	}
	s, err := b.stage(p.way)
	var v map[string]float64
	if err == nil {
		if p.ping != nil {
			v, err = requests(b.ctx, s, p)
		} else {
			v, err = b.stream(s, p)
		}
	}
	if b.ctx.Err() != nil {
		return b.ctx.Err()
	}
	if err != nil {
		if p.way == ours && b.broken[ours] != nil {
			return err // without the product there is nothing to measure
		}
		b.note("%s: %v", p.id(), err)
		_ = b.end(p.way) // whatever state it is in
		return nil
	}
	b.samples[p.id()][repeat] = v
	b.say("%s", describe(p.id(), v))
	if p.way.restless() {
		return b.end(p.way)
	}
	return nil
}

func describe(id string, v map[string]float64) string {
	if _, ok := v["p50_us"]; ok {
		return fmt.Sprintf("%s: p50 %.0f us, p99 %.0f us", id, v["p50_us"], v["p99_us"])
	}
	return fmt.Sprintf("%s: %.2f Gb/s, guest %.2f s/GB, %.1f segments a frame", id, v["gbps"], v["cpu_guest"], v["segments"])
}

// stream measures bulk data.
func (b *bench) stream(s *demo.Stage, p planned) (map[string]float64, error) {
	m, err := s.Round(p.set)
	if err != nil {
		return nil, err
	}
	b.result.Machine.Congestion = m.Congestion
	v := map[string]float64{
		"gbps": m.Gbps, "segments": m.Segments, "frame_bytes": m.MeanBytes,
		"cpu_sender": m.CPU.Sender, "cpu_kernel": m.CPU.Kernel, "cpu_guest": m.CPU.Guest,
		"cpu_all":     m.CPU.Sender + m.CPU.Kernel + m.CPU.Controller + m.CPU.Guest,
		"retransmits": float64(m.Retransmits), "retransmits_per_gb": float64(m.Retransmits) / (m.Gbps / 8 * b.opt.round.Seconds()),
	}
	switch {
	case p.way.host == nil:
		v["cpu_controller"], v["drops"] = m.CPU.Controller, float64(m.Drops)
		v["wakeups_per_s"] = float64(m.Wakeups) / b.opt.round.Seconds()
	case p.way.host.DPDK:
		v["cpu_controller"] = m.CPU.Controller
	case p.set.Transmit:
		delete(v, "segments") // nobody counts them there
		delete(v, "frame_bytes")
	}
	return v, nil
}

// requests measures the time of requests that follow one another.
func requests(ctx context.Context, s *demo.Stage, p planned) (_ map[string]float64, err error) {
	if err := s.Apply(p.set); err != nil {
		return nil, err
	}
	if p.ping.streams > 0 {
		stop, err := s.Stream(demo.Setting{Flows: p.ping.streams})
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	var address string
	if err := s.Guest("echo", s.GuestIP(), &address); err != nil {
		return nil, err
	}
	var r pings
	span := pingTime
	if p.way != ours {
		span = besideTime
	}
	undisturbed := during(ctx, s, p.ping.beside)
	err = s.Sender("ping", pingRequest{Address: address, Time: span}, &r)
	if err = errors.Join(err, undisturbed()); err != nil {
		return nil, err
	}
	return map[string]float64{"p50_us": r.P50 / 1e3, "p99_us": r.P99 / 1e3, "p999_us": r.P999 / 1e3, "requests": float64(r.N)}, nil
}

// otherPeers are rows of programs that are not ours and not the kernel's, which say why they have no figures.
func otherPeers() []Row {
	return []Row{{ID: "peer/qemu-af-xdp", What: "QEMU's -netdev af-xdp", Note: "not measured: it needs a guest with a kernel of its own under a QEMU with libxdp, which this program cannot drive"}}
}
