package datapath

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// A checksum that the sender left to its device is left to the neighbour's driver, where that takes it and the frame says what it has to. For
// all others it is completed; what is merged is as ever.
func TestAPartialChecksumStaysPartialForANeighbour(t *testing.T) {
	fine := func(*flowtable.PortConfig) {}
	udp := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 34, CsumOffset: 6}
	tcp := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 34, CsumOffset: 16}
	tcp6 := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 54, CsumOffset: 16}
	ack := from(1, macOf(2), 0)
	ack.Partial = true
	push := ack.With(func(p *pt.TCP) { p.Len, p.Flags = 700, pt.ACK|pt.PSH })
	runt := ack.With(func(p *pt.TCP) { p.Opts = nil })
	datagram := pt.UDP{SrcMAC: macOf(1), DstMAC: macOf(2), Len: 900, Partial: true}
	wrong := push.Frame()
	wrong[50]++                                                                // not the pseudo header's sum any more
	lies := push.With(func(p *pt.TCP) { p.Trailer = make([]byte, 9) }).Frame() // the sum goes by the frame's length, IP's is less
	binary.BigEndian.PutUint16(lies[50:], checksum.Sum(nil, checksum.Pseudo4(lies[26:30], lies[30:34], protoTCP, uint32(len(lies)-34))))
	for name, c := range map[string]struct {
		rules func(*flowtable.PortConfig)
		h     virtio.NetHdr
		frame []byte
		left  bool
	}{
		"an acknowledgement":    {fine, tcp, ack.Frame(), true},
		"a request":             {fine, tcp, push.Frame(), true},
		"a request in IPv6":     {fine, tcp6, push.With(func(p *pt.TCP) { p.V6 = true }).Frame(), true},
		"a datagram":            {fine, udp, datagram.Frame(), true},
		"coalescing is off":     {func(c *flowtable.PortConfig) { c.Coalesce = false }, tcp, push.Frame(), true},
		"no GUEST_CSUM":         {func(c *flowtable.PortConfig) { c.GuestCsum = false }, tcp, push.Frame(), false},
		"a runt":                {fine, tcp, runt.Frame(), false},
		"a sum of something":    {fine, tcp, wrong, false},
		"a place of its own":    {fine, virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 34, CsumOffset: 18}, push.Frame(), false},
		"bytes behind":          {fine, tcp, push.With(func(p *pt.TCP) { p.Trailer = make([]byte, 9) }).Frame(), false},
		"a length that lies":    {fine, tcp, lies, false},
		"data for a superframe": {fine, tcp, push.With(func(p *pt.TCP) { p.Flags = pt.ACK }).Frame(), false},
	} {
		r := newRig(t)
		s, g := r.neighbours(0, rules(func(p *flowtable.PortConfig) { p.Hold = time.Millisecond }, c.rules))
		s.send(c.h, c.frame)
		r.step()
		r.advance(2 * time.Millisecond)
		r.step()
		got := g.take()
		if len(got) != 1 {
			t.Fatalf("%s: %d frames", name, len(got))
		}
		want := bytes.Clone(c.frame)
		h := got[0].hdr
		if h.NumBuffers = 1; h.Flags&virtio.HdrNeedsCsum != 0 != c.left {
			t.Errorf("%s: %+v", name, h)
		}
		if err := virtio.CheckRx(&h, got[0].data, allFeatures); err != nil {
			t.Errorf("%s: %v: %+v", name, err, h)
		}
		if !c.left {
			if err := checksum.Complete(want, int(c.h.CsumStart), int(c.h.CsumOffset)); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got[0].data[:len(want)], want) {
			t.Errorf("%s: other bytes", name)
		}
		r.inject(to(2, 0).Frame()) // nothing is left in a packet of the wire
		r.step()
		if got := g.take(); len(got) != 1 || got[0].hdr.Flags&virtio.HdrNeedsCsum != 0 {
			t.Errorf("%s: then the wire's: %+v", name, got)
		}
	}
}

// Who listens sees the sum that the packet would have on a wire, and a guest that takes no partial one any more gets it too.
func TestAPartialChecksumIsCompletedWhereSomebodyLooks(t *testing.T) {
	p := from(1, macOf(2), 700)
	p.Flags, p.Partial = pt.ACK|pt.PSH, true
	h := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 34, CsumOffset: 16}
	want := p.With(func(p *pt.TCP) { p.Partial = false }).Frame()
	for name, set := range map[string]func(r *rig, g *fakeGuest){
		"the receiver is heard": func(r *rig, _ *fakeGuest) { r.probe(2, ProbeConfig{Kind: ProbeGuest}) },
		"the sender is heard":   func(r *rig, _ *fakeGuest) { r.probe(1, ProbeConfig{Kind: ProbeWire}) },
		"other features": func(_ *rig, g *fakeGuest) {
			g.noOffer = func(h *virtio.NetHdr) bool { return h.Flags != 0 }
		},
	} {
		r := newRig(t)
		s, g := r.neighbours(0, rules())
		set(r, g)
		s.send(h, p.Frame())
		r.step()
		got := g.take()
		if len(got) != 1 || !bytes.Equal(got[0].data, want) || got[0].hdr.Flags&virtio.HdrNeedsCsum != 0 || got[0].hdr.CsumStart != 0 {
			t.Errorf("%s: %d frames, %+v", name, len(got), got)
		}
	}
}

// What a neighbour sends may be merged with what came by the wire, and that may prove damaged. Then each of the packets arrives alone, with a
// sum of its own.
func TestAPacketOfANeighbourThatIsMendedHasItsSum(t *testing.T) {
	r := newRig(t)
	_, s := r.sender(1)
	r.vm(2)
	g := r.newGuest()
	if err := r.w.startPort(2, summingGuest{g}, nil, rules(func(c *flowtable.PortConfig) { c.Hold = time.Millisecond })); err != nil {
		t.Fatal(err)
	}
	want := train(from(1, macOf(2), 1000), 2)
	want[0][500]++
	r.inject(want[0])
	r.step()
	next := from(1, macOf(2), 1000).Train(2)[1]
	next.Partial = true
	s.send(virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 34, CsumOffset: 16}, next.Frame())
	r.step()
	r.advance(2 * time.Millisecond)
	r.step()
	got := g.take()
	packets(t, got, want...)
	if got[0].hdr.Flags != 0 || got[1].hdr.Flags != virtio.HdrDataValid || r.ledger(2).Passed[flowtable.ReasonBadTCPChecksum] != 1 {
		t.Errorf("%+v, %+v, %+v", got[0].hdr, got[1].hdr, *r.ledger(2))
	}
}
