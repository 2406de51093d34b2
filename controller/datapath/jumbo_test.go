package datapath

import (
	"bytes"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// jumboPayload is that of a segment of 9,000 bytes with timestamps.
const jumboPayload = 9000 - 20 - 32

var jumboTSO = virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: jumboPayload}

// mustBeFree looks that no buffer is out.
func (l *fakeLarge) mustBeFree() {
	l.tb.Helper()
	if n := l.out(); n != 0 {
		l.tb.Errorf("%d buffers are out", n)
	}
}

// Jumbo segments become superframes of up to 65,535 bytes that can be cut into them again bit for bit; segments in chunks, and a tag, go with them.
func TestJumboSegmentsMergeAndAreReversible(t *testing.T) {
	for name, tags := range map[string][]uint16{"untagged": nil, "of a VLAN": {5}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			l := r.jumbo(16)
			g := r.vm(1, func(c *PortConfig) {
				if tags != nil {
					c.Addr.VLAN = 5
				}
			})
			want := train(to(1, jumboPayload), 9)
			last := to(1, jumboPayload).Train(10)[9]
			last.Len = 100
			want = append(want, last.Frame())
			for i := range want {
				f := want[i]
				if tags != nil {
					tagged := to(1, jumboPayload).Train(10)[i]
					tagged.Tags = tags
					tagged.Len = len(f) - (len(want[0]) - jumboPayload)
					f = tagged.Frame()
				}
				if len(f) <= l.ChunkRoom() {
					r.inject(f)
				} else {
					l.receive(r.nic, f, nil)
				}
			}
			r.step()
			r.step()
			packets(t, g.got, want...)
			if len(g.got) != 2 || len(g.got[0].data) != len(want[0])+6*jumboPayload {
				t.Errorf("%d frames, the first of %d bytes: want seven segments and the rest", len(g.got), len(g.got[0].data))
			}
			l.mustBeFree()
		})
	}
}

// A frame that is not as long as XDP has described it lacks a piece, or has one of another: it reaches nobody, and is counted.
func TestAFrameThatLacksAPieceReachesNobody(t *testing.T) {
	r := newRig(t)
	l := r.jumbo(8)
	g := r.vm(1)
	f := to(1, jumboPayload).Frame()
	m := metaOf(r.w.ports[1].id, f)
	l.receive(r.nic, f[:len(f)-3840], m)
	l.receive(r.nic, append(f[:len(f):len(f)], f[:100]...), m)
	l.receive(r.nic, f, m)
	r.step()
	packets(t, g.got, f)
	if s := r.w.snapshot(); s.Counters.Broken != 2 || s.Counters.WithMeta != 1 {
		t.Errorf("counters %+v", s.Counters)
	}
	l.mustBeFree()
}

// A port of an MTU of 1500 on an uplink of 9000 gets what 1500 lets it have: a longer frame is refused and counted, whoever it is from, and so is what
// it sends beyond.
func TestAPortOfASmallerMTUIsKeptToIt(t *testing.T) {
	small := func(c *PortConfig) { c.MTU = 1500 }
	longest := func(p pt.TCP) []byte { p.Len = 1448; return p.Frame() }
	tooLong := func(p pt.TCP) []byte { p.Len = 1449; return p.Frame() }
	t.Run("from the wire", func(t *testing.T) {
		r := newRig(t)
		l := r.jumbo(8)
		g, other := r.vm(1, small), r.vm(2)
		r.inject(longest(to(1, 1)), tooLong(to(1, 1)), tooLong(to(2, 1)))
		l.receive(r.nic, to(1, jumboPayload).Frame(), nil)
		r.step()
		packets(t, g.got, longest(to(1, 1)))
		packets(t, other.got, tooLong(to(2, 1)))
		r.dropped(1, byReason{flowtable.ReasonBadLength: 2})
		l.mustBeFree()
	})
	t.Run("with the tag of its VLAN", func(t *testing.T) {
		r := newRig(t)
		r.jumbo(8)
		g := r.vm(1, small, func(c *PortConfig) { c.Addr.VLAN = 5 })
		tagged := to(1, 1448)
		tagged.Tags = []uint16{5}
		r.inject(tagged.Frame(), tooLong(tagged))
		r.step()
		packets(t, g.got, longest(to(1, 1)))
		r.dropped(1, byReason{flowtable.ReasonBadLength: 1})
	})
	t.Run("from a VM beside it", func(t *testing.T) {
		r := newRig(t)
		l := r.jumbo(16)
		g := r.vm(1, small)
		_, s := r.sender(2)
		s.send(noHdr, longest(from(2, macOf(1), 1)), tooLong(from(2, macOf(1), 1)))
		s.send(jumboTSO, from(2, macOf(1), 2*jumboPayload).Frame())
		r.step()
		r.step()
		packets(t, g.got, longest(from(2, macOf(1), 1)))
		r.dropped(1, byReason{flowtable.ReasonBadLength: 3})
		l.mustBeFree()
	})
	t.Run("what it sends", func(t *testing.T) {
		for name, wired := range map[string]bool{"by AF_XDP": false, "by the kernel": true} {
			t.Run(name, func(t *testing.T) {
				r := newRig(t)
				l := r.jumbo(8)
				_, s := r.sender(1, small)
				if wired {
					r.w.cfg.Wire = &quietWire{}
				}
				s.send(noHdr, longest(from(1, wire, 1)), tooLong(from(1, wire, 1)), from(1, wire, jumboPayload).Frame())
				s.send(jumboTSO, from(1, wire, 2*jumboPayload).Frame())
				for range 3 {
					r.step()
				}
				r.txDropped(1, byReason{flowtable.ReasonBadLength: 3})
				l.mustBeFree()
			})
		}
	})
}

// A jumbo TSO frame to a VM beside that is cut is cut in buffers, and merged again. Without a free buffer it stays in its virtqueue, and is not lost.
func TestJumboFramesToAVMBeside(t *testing.T) {
	r := newRig(t)
	r.w.cutAll = true
	l := r.jumbo(4)
	g := r.vm(1)
	_, s := r.sender(2)
	var hold []uint64
	for range 2 {
		_, d, _ := l.AllocLarge()
		hold = append(hold, d.Addr)
	}
	want := train(from(2, macOf(1), jumboPayload), 3)
	s.send(jumboTSO, from(2, macOf(1), 3*jumboPayload).Frame())
	s.send(noHdr, want[0])
	for range 3 {
		r.w.step()
	}
	if len(s.queue) != 2 || !r.w.txShort || r.w.txNeed != 0 {
		t.Fatalf("%d frames wait; short %t, need %d", len(s.queue), r.w.txShort, r.w.txNeed)
	}
	for _, ref := range hold {
		r.nic.Free(ref)
	}
	for range 4 {
		r.step()
	}
	packets(t, g.got, append(want, want[0])...)
	if len(g.got) == 4 {
		t.Error("nothing was merged")
	}
	r.txDropped(2, nil)
	l.mustBeFree()
}

// A jumbo TSO frame for a VM beside its sender is handed over whole like any other: lent, and by way of chunks where somebody listens.
func TestAJumboTSOFrameForAVMBesideIsHandedOverWhole(t *testing.T) {
	for _, staged := range []bool{false, true} {
		r := newRig(t)
		l := r.jumbo(4)
		g := r.vm(1)
		_, s := r.sender(2)
		if staged {
			r.w.ports[1].apart = r.w.clock() + 1e12
		}
		s.send(jumboTSO, from(2, macOf(1), 7*jumboPayload).Frame())
		r.step()
		if packets(t, g.got, train(from(2, macOf(1), jumboPayload), 7)...); len(g.got) != 1 || r.w.ports[2].cnt.TxWhole != 1 {
			t.Errorf("staged %t: %d frames, %d whole", staged, len(g.got), r.w.ports[2].cnt.TxWhole)
		}
		r.txDropped(2, nil)
		l.mustBeFree()
	}
}

// What no chunk holds leaves whole: unicast by the kernel, and a group frame by AF_XDP in several pieces, each of which counts as sent only when it
// is completed.
func TestJumboFramesLeaveWhole(t *testing.T) {
	r := newRig(t)
	l := r.jumbo(4)
	other := r.vm(2)
	_, s := r.sender(1)
	w := &quietWire{}
	r.w.cfg.Wire = w
	s.send(noHdr, from(1, wire, jumboPayload).Frame(), from(1, wire, 100).Frame())
	r.step()
	if w.sent != 2 || len(r.nic.sent()) != 0 { // the small one goes with it
		t.Errorf("%d frames by the kernel", w.sent)
	}
	group := pt.UDP{SrcMAC: macOf(1), DstMAC: [6]byte{1, 0, 0x5e, 1, 2, 3}, Len: 8000}.Frame()
	r.nic.busy = true
	s.send(noHdr, group)
	r.step()
	if r.nic.TxPending() != 5 || r.w.sent != 5 {
		t.Errorf("%d entries pending, %d counted", r.nic.TxPending(), r.w.sent)
	}
	r.nic.busy = false
	r.step()
	r.onWire(group)
	if len(other.got) != 1 || !bytes.Equal(other.got[0].data, group) {
		t.Errorf("the VM beside got %d frames", len(other.got))
	}
	r.txDropped(1, nil)
	l.mustBeFree()
}

// By a bond a frame that no chunk holds leaves whole, too, and its buffer comes back once it is the kernel's.
func TestJumboFramesLeaveABondWhole(t *testing.T) {
	r, out := newRig(t), &fakeSender{room: 1, mtu: 9014}
	l := r.jumbo(2)
	r.w.nic = NewSocketNIC(r.nic, out)
	_, s := r.sender(1)
	group := pt.UDP{SrcMAC: macOf(1), DstMAC: [6]byte{1, 0, 0x5e, 1, 2, 3}, Len: 8000}.Frame()
	s.send(noHdr, group, group)
	r.w.step()
	if len(out.got) != 1 || !bytes.Equal(out.got[0], group) || l.out() != 1 || r.w.nic.TxPending() != 1 {
		t.Fatalf("%d frames left, %d buffers out, %d pending", len(out.got), l.out(), r.w.nic.TxPending())
	}
	out.room = 1
	r.w.step()
	if len(out.got) != 2 || r.w.sent != 2 {
		t.Errorf("%d frames left, %d counted", len(out.got), r.w.sent)
	}
	l.mustBeFree()
}
