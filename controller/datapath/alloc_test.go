package datapath

import (
	"testing"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// quietNIC receives the same frames again and again, and sends into nowhere. It allocates nothing.
type quietNIC struct {
	*umemNIC
	frames [][]byte
	wire   Wire
}

// quietWire takes all, and allocates nothing.
type quietWire struct{ n, sent int }

func (q *quietWire) Add(*virtio.Frame) bool { q.n++; return true }
func (q *quietWire) Send() (n int, err error) {
	n, q.n = q.n, 0
	q.sent += n
	return n, nil
}
func (q *quietWire) Empty() bool          { return true }
func (q *quietWire) Direct() bool         { return true }
func (q *quietWire) SetDirect(bool) error { return nil }
func (q *quietWire) SetDatagrams(bool)    {}

func (n *quietNIC) Recv(d []xsk.Desc) int {
	for i, f := range n.frames {
		buf, desc, ok := n.AllocTx()
		if !ok {
			return i
		}
		clear(n.meta(desc))
		desc.Len = uint32(copy(buf, f))
		d[i] = desc
	}
	return len(n.frames)
}

func (n *quietNIC) TxRoom() int { return len(n.free) }

func (n *quietNIC) Send(d xsk.Desc, _ int) bool {
	n.Free(d.Addr)
	return true
}

// quietGuest takes or refuses frames. It allocates nothing.
type quietGuest struct {
	nic  NIC
	err  error // of Put
	cut  bool  // superframes are too big
	puts int
	refs []uint64
	got  int
}

func (g *quietGuest) Walked() int { return 1 }
func (g *quietGuest) Begin(int) bool {
	g.puts, g.refs = 0, g.refs[:0]
	return true
}

func (g *quietGuest) Put(f *Frame) error {
	if g.cut && f.Hdr.GSOType != 0 {
		return ErrTooBig
	}
	if g.err == nil {
		g.puts++
		g.refs = append(g.refs, f.Refs...)
	}
	return g.err
}

func (g *quietGuest) Commit() (int, error) {
	for _, r := range g.refs {
		g.nic.Free(r)
	}
	g.got += g.puts
	return g.puts, nil
}

func (g *quietGuest) Reap() int            { return 0 }
func (g *quietGuest) Arm(bool) (int, bool) { return -1, false }
func (g *quietGuest) Ack()                 {}
func (g *quietGuest) MaxFrame() int        { return 0 }
func (g *quietGuest) Check(bool) error     { return nil }
func (g *quietGuest) Close() (int, error)  { return 0, nil }

// quietSource has the same frames again and again.
type quietSource struct{ frames []vhost.TxFrame }

func (s *quietSource) Poll(budget int, fn func(*vhost.TxFrame) vhost.Next, before func() int) (n, walked int, err error) {
	for i := range s.frames {
		if i == budget || fn(&s.frames[i]) == vhost.Leave {
			return i, i, nil
		}
	}
	before()
	return len(s.frames), len(s.frames), nil
}

func (s *quietSource) ArmKick() bool { return false }
func (s *quietSource) DisarmKick()   {}
func (s *quietSource) KickFD() int   { return -1 }
func (s *quietSource) AckKick()      {}

// A benchmark only reports; this fails. What allocates on this path brings the collector, and with it a pause.
func TestABurstAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	send := func(h virtio.NetHdr, p pt.TCP) vhost.TxFrame { return vhost.TxFrame{Hdr: h, Data: p.Frame()} }
	split := func(f vhost.TxFrame) []vhost.TxFrame { // most of it lies in the guest's memory
		f.Data, f.Rest = f.Data[:HeadRoom], [][]byte{f.Data[HeadRoom:9000], f.Data[9000:]}
		return []vhost.TxFrame{f}
	}
	tso := virtio.NetHdr{GSOType: virtio.GSOTCPv4, GSOSize: 1000}
	for name, set := range map[string]func(n *quietNIC, g *quietGuest, s *quietSource){
		"nothing to do":  func(*quietNIC, *quietGuest, *quietSource) {},
		"superframes":    func(n *quietNIC, _ *quietGuest, _ *quietSource) { n.frames = train(to(0, 1000), 60) },
		"lone packets":   func(n *quietNIC, _ *quietGuest, _ *quietSource) { n.frames = train(alone(0, 1000), 60) },
		"cut again":      func(n *quietNIC, g *quietGuest, _ *quietSource) { n.frames, g.cut = train(to(0, 1000), 60), true },
		"a hungry guest": func(n *quietNIC, g *quietGuest, _ *quietSource) { n.frames, g.err = train(alone(0, 1000), 60), ErrFull },
		"a bad frame": func(n *quietNIC, g *quietGuest, _ *quietSource) {
			n.frames, g.err = train(alone(0, 1000), 60), ErrRefused
		},
		"a finished guest": func(n *quietNIC, g *quietGuest, _ *quietSource) {
			n.frames, g.err = train(alone(0, 1000), 60), errFinished
		},
		"a VM that is gone": func(n *quietNIC, _ *quietGuest, _ *quietSource) { n.frames = train(alone(9, 1000), 60) },
		"to the wire": func(_ *quietNIC, _ *quietGuest, s *quietSource) {
			s.frames = []vhost.TxFrame{send(noHdr, from(1, wire, 1000)), send(tso, from(1, wire, 9000))}
		},
		"to the wire, by the kernel": func(n *quietNIC, _ *quietGuest, s *quietSource) {
			n.wire = &quietWire{}
			s.frames = []vhost.TxFrame{send(noHdr, from(1, wire, 1000)), send(tso, from(1, wire, 9000)), send(tso, from(1, wire, 60000))}
			s.frames = append(s.frames[:2], split(s.frames[2])...)
		},
		"to a VM": func(_ *quietNIC, _ *quietGuest, s *quietSource) {
			s.frames = []vhost.TxFrame{send(noHdr, from(1, macOf(0), 1000)), send(tso, from(1, macOf(0), 9000))}
		},
		"to a VM, whole": func(_ *quietNIC, _ *quietGuest, s *quietSource) {
			s.frames = split(send(tso, from(1, macOf(0), 60000)))
		},
		"to a VM, cut": func(_ *quietNIC, g *quietGuest, s *quietSource) {
			s.frames, g.cut = split(send(tso, from(1, macOf(0), 60000))), true
		},
		"to a VM without room": func(_ *quietNIC, g *quietGuest, s *quietSource) {
			s.frames, g.err = split(send(tso, from(1, macOf(0), 60000))), ErrFull
		},
		"to a group": func(_ *quietNIC, _ *quietGuest, s *quietSource) {
			s.frames = []vhost.TxFrame{send(noHdr, from(1, [6]byte{1}, 90))}
		},
		"a bad sender": func(_ *quietNIC, _ *quietGuest, s *quietSource) {
			s.frames = []vhost.TxFrame{send(noHdr, from(2, wire, 90))}
		},
	} {
		t.Run(name, func(t *testing.T) {
			nic := &quietNIC{umemNIC: newUmemNIC(t, segChunks)}
			guest, source := &quietGuest{nic: nic}, &quietSource{}
			set(nic, guest, source)
			w, err := New(Config{MTU: 1500, NIC: nic, Wire: nic.wire, WakeFD: -1, Chunks: segChunks, Log: newRig(t).w.cfg.Log, Trouble: func() {}})
			if err != nil {
				t.Fatal(err)
			}
			for i := range uint32(2) {
				if err := w.addPort(PortConfig{Index: i, Addr: Addr{MAC: macOf(i)}, NoteSenders: true}); err != nil {
					t.Fatal(err)
				}
			}
			for i, c := range []struct {
				g Guest
				s []Source
			}{{guest, nil}, {&quietGuest{nic: nic}, []Source{source}}} {
				if err := w.startPort(uint32(i), c.g, c.s, rules()); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 * outQueueLen { // every entry of the queue has been used
				w.step()
			}
			if n := testing.AllocsPerRun(200, func() { w.step() }); n != 0 {
				t.Errorf("%v allocations per burst", n)
			}
			if q, ok := nic.wire.(*quietWire); ok && q.sent == 0 {
				t.Error("no frame left by the kernel")
			}
			if name != "a finished guest" { // whose frames wait nowhere
				return
			}
			if w.table.Ledger(0).Dropped[flowtable.ReasonPortDown] == 0 {
				t.Error("no frame came")
			}
		})
	}
	t.Run("a virtqueue", func(t *testing.T) {
		r := newSegRig(t, 64, true)
		for range warmUp(64) {
			r.burst(t)
		}
		if n := testing.AllocsPerRun(200, func() { r.burst(t) }); n != 0 {
			t.Errorf("%v allocations per burst", n)
		}
	})
}

// An idle worker's sleep allocates nothing either.
func TestASleepAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	r := newRig(t)
	r.w.cfg.WakeFD = eventfd(t)
	r.nic.withFD()
	r.vm(1)
	r.start(1, rules(), &fakeSource{fd: -1, more: true})
	r.w.wait()
	if n := testing.AllocsPerRun(100, func() {
		r.w.wait()
		r.w.look()
	}); n != 0 {
		t.Errorf("%v allocations per sleep", n)
	}
}
