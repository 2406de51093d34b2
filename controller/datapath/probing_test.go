package datapath

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// probe lets a new probe hear of a VM. The worker is the test's own.
func (r *rig) probe(index uint32, cfg ProbeConfig) *Probe {
	cfg.Memory = max(cfg.Memory, 4<<20)
	pr := NewProbe(cfg)
	r.w.listen(r.w.ports[index], pr)
	return pr
}

// records reads all that a probe has.
func records(pr *Probe) (all []ProbeRecord) {
	var r ProbeRecord
	for pr.Next(&r) {
		r.Data = slices.Clone(r.Data)
		all = append(all, r)
	}
	return all
}

// deeds are the records in short: "seal deadline 3".
func deeds(all []ProbeRecord) []string {
	var out []string
	for _, r := range all {
		s := r.Deed.String()
		if r.Deed != Held && r.Deed != Sent {
			s += " " + r.Reason.String()
		}
		if r.Packets != 1 {
			s += " " + strings.Repeat("i", r.Packets)
		}
		if r.ToWire {
			s += " out"
		}
		out = append(out, s)
	}
	return out
}

func wantDeeds(t *testing.T, pr *Probe, want ...string) []ProbeRecord {
	t.Helper()
	all := records(pr)
	if got := deeds(all); !slices.Equal(got, want) {
		t.Errorf("heard\n%q, want\n%q", got, want)
	}
	return all
}

// Each kind of probe tells of the same traffic what it is there for.
func TestProbesTellWhatHappenedAndWhy(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	fates, wires, guest := r.probe(1, ProbeConfig{}), r.probe(1, ProbeConfig{Kind: ProbeWire, SnapLen: 2000}), r.probe(1, ProbeConfig{Kind: ProbeGuest, SnapLen: MaxSnapLen})
	in := train(to(1, 1000), 4)
	in[3] = to(1, 1000).Train(4)[3].With(func(p *pt.TCP) { p.Flags = pt.ACK | pt.PSH }).Frame()
	syn := to(1, 0).With(func(p *pt.TCP) { p.SrcPort, p.Flags = 7, pt.SYN }).Frame()
	tagged := to(1, 10).With(func(p *pt.TCP) { p.Tags = []uint16{9} }).Frame()
	r.advance(time.Second)
	r.inject(append(in, syn)...)
	r.step()
	r.nic.inject(tagged, metaOf(r.w.ports[1].id, tagged)) // XDP does not, but it is said to
	r.step()

	all := wantDeeds(t, fates, "seal psh iiii", "pass syn", "pass burst_end")
	if f := all[0]; f.Len != len(in[0])+3000 || f.Segments != 4 || len(f.Data) != fateSnapLen || f.Time != int64(time.Second) {
		t.Errorf("superframe: %+v", f)
	}
	all = wantDeeds(t, wires, "hold", "hold", "hold", "seal psh", "pass syn", "hold")
	for i, want := range append(slices.Clone(in), syn, tagged) {
		if !bytes.Equal(all[i].Data, want) || all[i].Len != len(want) {
			t.Errorf("packet %d is not as it came", i)
		}
	}
	all = records(guest)
	if len(all) != len(g.got) {
		t.Fatalf("%d frames told, %d arrived", len(all), len(g.got))
	}
	for i, want := range g.got {
		if !bytes.Equal(all[i].Data, want.data) || all[i].Hdr != want.hdr || all[i].Deed != Delivered {
			t.Errorf("frame %d is not as it arrived: %+v", i, all[i].Hdr)
		}
	}
}

// What is given up is told with its reason and its flow, wherever that is.
func TestProbesTellOfEveryLoss(t *testing.T) {
	r := newRig(t)
	g, _ := r.sender(1)
	fates, guest := r.probe(1, ProbeConfig{}), r.probe(1, ProbeConfig{Kind: ProbeGuest})
	g.linkDown = true
	r.inject(train(to(1, 1000), 3)...)
	r.step()
	g.linkDown = false
	g.longest, g.room = 1500, 2 // cut again, and two pieces of three arrive
	r.inject(train(to(1, 1000), 3)...)
	r.step()
	r.w.stopPort(1)
	r.inject(to(1, 50).Frame())
	r.step()
	wantDeeds(t, fates, "seal burst_end iii", "drop port_down iii", "seal burst_end iii", "drop port_down", "drop port_down")
	wantDeeds(t, guest, "deliver max_bytes", "deliver max_bytes")

	s := &fakeSource{fd: -1}
	r.start(1, rules(), s)
	spoofed := from(2, wire, 100).Frame()
	s.send(noHdr, spoofed, from(1, wire, 100).Frame(), from(1, macOf(1), 60).Frame())
	wires := r.probe(1, ProbeConfig{Kind: ProbeWire})
	r.step()
	all := wantDeeds(t, fates, "drop source_mac out", "drop hairpin out")
	if !bytes.Equal(all[0].Data, spoofed[:len(all[0].Data)]) || all[0].Len != len(spoofed) {
		t.Errorf("refused: %+v", all[0])
	}
	wantDeeds(t, wires, "drop source_mac out", "send out", "drop hairpin out")
}

// A probe tells of what a VM sent as it is on the wire, tag and all, and to a neighbour as that gets it.
func TestAProbeTellsWhatTheVMSent(t *testing.T) {
	r := newRig(t)
	inVLAN := func(c *PortConfig) { c.Addr.VLAN = 7 }
	_, s := r.sender(1, inVLAN)
	g := r.vm(2, inVLAN)
	sent, came := r.probe(1, ProbeConfig{Kind: ProbeWire, SnapLen: 2000}), r.probe(2, ProbeConfig{Kind: ProbeWire, SnapLen: 2000})
	tso := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: 500, CsumStart: 34, CsumOffset: 16}
	s.send(tso, from(1, wire, 1000).Frame())
	s.send(noHdr, from(1, macOf(2), 300).Frame())
	r.step()
	r.step() // in which the neighbour gets it
	all := wantDeeds(t, sent, "send out", "send out", "send out")
	for i, f := range r.nic.sent() {
		if !bytes.Equal(f, all[i].Data) {
			t.Errorf("packet %d is not as it left", i)
		}
	}
	in := records(came)
	if len(in) != 1 || !bytes.Equal(in[0].Data, all[2].Data) || len(g.got) != 1 || !bytes.Equal(g.got[0].data, in[0].Data) {
		t.Errorf("the neighbour: %q", deeds(in))
	}
}

// A probe of one flow hears of no other, and its ring is not filled by others.
func TestAProbeOfAFlowHearsOfNoOther(t *testing.T) {
	r := newRig(t)
	r.vm(1)
	mine := to(1, 1000).With(func(p *pt.TCP) { p.SrcPort = 77 })
	var probes []*Probe
	for _, k := range []ProbeKind{ProbeFates, ProbeWire, ProbeGuest} {
		probes = append(probes, r.probe(1, ProbeConfig{Kind: k, Flow: FlowMatch{A: Endpoint{Port: 77}}}))
	}
	r.inject(append(train(to(1, 1000), 5), train(mine, 3)...)...)
	r.step()
	wantDeeds(t, probes[0], "seal burst_end iii")
	wantDeeds(t, probes[1], "hold", "hold", "hold")
	wantDeeds(t, probes[2], "deliver burst_end iii")
}

// tally is what probes told of a VM.
type tally struct {
	frames, bytes, came, sent, left, sealed uint64
	dropped                                 [flowtable.NumReasons]uint64
}

// Under random traffic, with guests of every mood, VMs that come and go, and a NIC that fails, the probes tell of as many frames as
// the accounts have, fate by fate.
func TestProbesAgreeWithTheAccounts(t *testing.T) {
	type heard struct {
		p      *port
		probes [3]*Probe
		ledger flowtable.Ledger
		cnt    PortCounters
		got    tally
	}
	compared := uint64(0)
	for seed := range uint64(10) {
		w := newWorld(t, seed)
		heardOf := map[*port]*heard{}
		read := func() {
			for _, h := range heardOf {
				for k, pr := range h.probes {
					if pr.Lost() > 0 {
						t.Fatal("a ring is too small for the test")
					}
					for _, r := range records(pr) {
						switch {
						case k == int(ProbeGuest):
							h.got.frames++
							h.got.bytes += uint64(r.Len)
						case k == int(ProbeFates) && r.Deed == Dropped:
							h.got.dropped[r.Reason] += uint64(r.Packets)
						case k == int(ProbeFates):
							h.got.left++
							if r.Deed == Sealed {
								h.got.sealed++
							}
						case r.Deed == Sent:
							h.got.sent += uint64(r.Packets)
						case !r.ToWire:
							h.got.came += uint64(r.Packets)
						}
					}
				}
			}
		}
		for range 60 {
			for _, p := range w.w.list {
				// What was merged before somebody listened may prove damaged behind what is told.
				if heardOf[p] == nil && p.ledger.Held+p.ledger.Queued == 0 {
					h := &heard{p: p, ledger: *p.ledger, cnt: p.cnt}
					for k := range h.probes {
						h.probes[k] = w.probe(p.Index, ProbeConfig{Kind: ProbeKind(k)})
					}
					heardOf[p] = h
				}
			}
			if err := w.burst(); err != nil {
				t.Fatal(err)
			}
			read()
			for p, h := range heardOf {
				if w.w.ports[p.Index] != p { // it has gone
					if h.probes[0].Ended() != ProbePortGone {
						t.Fatal("nobody told the probe that its VM is gone")
					}
					delete(heardOf, p)
					continue
				}
				l, was := p.ledger, &h.ledger
				want := tally{
					frames: l.Frames - was.Frames, bytes: l.FrameBytes - was.FrameBytes, came: l.In + l.Refused - was.In - was.Refused,
					sent: p.cnt.TxWire - h.cnt.TxWire, sealed: l.Decided.Superframes - was.Decided.Superframes,
				}
				for i := range want.dropped {
					want.left += l.Decided.Frames[i] - was.Decided.Frames[i]
					want.dropped[i] = l.Dropped[i] - was.Dropped[i] + p.cnt.TxDropped[i] - h.cnt.TxDropped[i]
				}
				for i := range p.out.n { // pieces that arrived are booked with the last one
					if f := p.out.at(i); f.done > 0 {
						want.frames += uint64(f.done)
						want.bytes += uint64(f.done*int(f.Hdr.HdrLen) + min(f.done*int(f.Hdr.GSOSize), f.Len-int(f.Hdr.HdrLen)))
					}
				}
				if h.got != want {
					t.Fatalf("seed %d, VM %d: told\n%+v, booked\n%+v", seed, p.Index, h.got, want)
				}
				compared += want.frames
			}
		}
	}
	if compared < 10000 {
		t.Errorf("only %d frames", compared)
	}
}

// With every kind of probe on every VM, whether its ring has room or is full for good, a burst allocates nothing.
func TestABurstWithProbesAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for name, read := range map[string]bool{"read": true, "full": false} {
		t.Run(name, func(t *testing.T) {
			nic := &quietNIC{umemNIC: newUmemNIC(t, segChunks), frames: append(train(to(0, 1000), 30), train(alone(0, 1000), 30)...)}
			source := &quietSource{frames: []vhost.TxFrame{
				{Data: from(1, macOf(0), 1000).Frame()}, {Data: from(2, wire, 90).Frame()},
				{Hdr: virtio.NetHdr{GSOType: virtio.GSOTCPv4, GSOSize: 1000}, Data: from(1, wire, 9000).Frame()},
			}}
			w, err := New(Config{MTU: 1500, NIC: nic, WakeFD: -1, Chunks: segChunks, Log: newRig(t).w.cfg.Log, Trouble: func() {}})
			if err != nil {
				t.Fatal(err)
			}
			var probes []*Probe
			for i, s := range [][]Source{nil, {source}} {
				if err := w.addPort(PortConfig{Index: uint32(i), Addr: Addr{MAC: macOf(uint32(i))}}); err != nil {
					t.Fatal(err)
				}
				if err := w.startPort(uint32(i), &quietGuest{nic: nic, cut: i == 0 && read}, s, rules()); err != nil {
					t.Fatal(err)
				}
				for _, k := range []ProbeKind{ProbeFates, ProbeWire, ProbeGuest} {
					for _, m := range []FlowMatch{{}, {A: Endpoint{Port: 1000}}} {
						pr := NewProbe(ProbeConfig{Kind: k, SnapLen: 2048, Memory: 1 << 20, Flow: m})
						probes = append(probes, pr)
						w.ports[i].probes = append(w.ports[i].probes, pr)
					}
				}
			}
			var r ProbeRecord
			got := 0
			step := func() {
				w.step()
				for _, pr := range probes {
					for read && pr.Next(&r) {
						got++
					}
				}
			}
			for range 2 * outQueueLen {
				step()
			}
			if n := testing.AllocsPerRun(200, step); n != 0 {
				t.Errorf("%v allocations per burst", n)
			}
			if read != (got > 0) || read == (probes[0].Lost() > 0) {
				t.Errorf("%d records read, %d lost", got, probes[0].Lost())
			}
		})
	}
}

// Probes come and go while a worker runs and another goroutine reads; when the last has gone, the worker has none. A VM's or the
// worker's end ends them.
func TestProbesComeAndGoWhileAWorkerRuns(t *testing.T) {
	r := running(t)
	r.add(1)
	r.add(2)
	if err := r.w.AddProbe(9, NewProbe(ProbeConfig{})); !errors.Is(err, ErrNoPort) {
		t.Errorf("a probe of nobody: %v", err)
	}
	for range 20 {
		var probes []*Probe
		for _, k := range []ProbeKind{ProbeFates, ProbeWire, ProbeGuest} {
			pr := NewProbe(ProbeConfig{Kind: k})
			if err := r.w.AddProbe(1, pr); err != nil {
				t.Fatal(err)
			}
			probes = append(probes, pr)
		}
		before := time.Now()
		for !r.nic.inject(to(1, 500).Frame(), nil) {
		}
		for _, pr := range probes {
			var rec ProbeRecord
			waitFor(t, "a record", func() bool { return pr.Next(&rec) })
			if at := time.Unix(0, rec.Time); at.Before(before.Add(-time.Minute)) || at.After(time.Now().Add(time.Minute)) {
				t.Errorf("a record of %v", at)
			}
			if err := r.w.RemoveProbe(1, pr); err != nil {
				t.Fatal(err)
			}
		}
		r.on(func() {
			if r.w.ports[1].probes != nil {
				t.Error("a probe stayed")
			}
		})
	}
	gone, last := NewProbe(ProbeConfig{}), NewProbe(ProbeConfig{})
	for index, pr := range map[uint32]*Probe{1: gone, 2: last} {
		if err := r.w.AddProbe(index, pr); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.w.Remove(1); err != nil || gone.Ended() != ProbePortGone || last.Ended() != ProbeRuns {
		t.Errorf("removed: %v, ended %v and %v", err, gone.Ended(), last.Ended())
	}
	if err := r.w.RemoveProbe(1, gone); err != nil {
		t.Errorf("a probe that has ended: %v", err)
	}
	r.stop()
	if last.Ended() != ProbeWorkerGone {
		t.Errorf("a worker's end: %v", last.Ended())
	}
	if err := r.w.AddProbe(2, NewProbe(ProbeConfig{})); !errors.Is(err, ErrStopped) {
		t.Errorf("a worker that has stopped: %v", err)
	}
}

// A worker that panics tells its probes as well.
func TestAWorkersFaultEndsItsProbes(t *testing.T) {
	r := running(t)
	r.add(1)
	pr := NewProbe(ProbeConfig{})
	if err := r.w.AddProbe(1, pr); err != nil {
		t.Fatal(err)
	}
	r.nic.set(func(n *fakeNIC) { n.boom = "boom" })
	r.w.Wake()
	waitFor(t, "the end", func() bool { return pr.Ended() == ProbeWorkerGone })
}
