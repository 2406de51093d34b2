package datapath

import (
	"bytes"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// hostRig is a rig whose VM 1 sends, and gets what the host sends.
func newHostRig(tb testing.TB, c flowtable.PortConfig) (r *rig, in *fakeHost, out *fakeWire, s *fakeSource, g *fakeGuest) {
	r, wire := newWireRig(tb)
	in, out = &fakeHost{}, &fakeWire{tb: tb, room: -1, full: tap.ErrFull}
	r.w.host.Host = Host{In: in, Out: out, Stations: &Stations{}}
	r.w.host.copies = make([]byte, 0, hostCopies)
	r.w.host.Stations.SetOwn([][6]byte{macOf(9)})
	r.vm(1, hasHost)
	s = &fakeSource{fd: -1}
	g = r.start(1, c, s)
	_ = wire
	return r, in, out, s, g
}

// fromHost is a TSO frame of the host's for VM 1, as the kernel describes it.
func fromHost(payload, size int) tap.HostFrame {
	p := to(1, payload)
	p.SrcMAC, p.Partial = macOf(9), true
	h := kernelCuts(virtio.GSOTCPv4, uint16(size))
	return tap.HostFrame{Hdr: h, Data: p.Frame()}
}

func (r *rig) fromHost(in *fakeHost, frames ...tap.HostFrame) {
	r.tb.Helper()
	in.queue = append(in.queue, frames...)
	for r.w.host.ready = true; r.w.host.ready; {
		r.step()
	}
}

// A superframe of the host's reaches the VM as it is, whether its guest has room at once or later; cut where it takes none.
func TestTheHostsSuperframesArriveWhole(t *testing.T) {
	f := fromHost(9999, 1400)
	want := cutBy(t, f.Hdr, f.Data)
	for name, c := range map[string]struct {
		rules flowtable.PortConfig
		busy  bool
		whole bool
	}{
		"at once":          {rules(), false, true},
		"later":            {rules(), true, true},
		"without features": {rules(func(c *flowtable.PortConfig) { c.TSO4 = false }), false, false},
	} {
		r, in, _, _, g := newHostRig(t, c.rules)
		if c.busy {
			g.room = 0
		}
		r.fromHost(in, tap.HostFrame{Hdr: f.Hdr, Data: bytes.Clone(f.Data)})
		if c.busy {
			if len(g.take()) != 0 {
				t.Fatal("it has room")
			}
			clear(r.w.host.frames[0].Data) // the next batch is read over it
			g.room = -1
			r.advance(time.Second)
			r.w.touch(r.w.ports[1])
			r.step()
		}
		got := g.take()
		if (len(got) == 1) != c.whole {
			t.Fatalf("%s: %d frames", name, len(got))
		}
		packets(t, got, want...)
		if n := r.w.ports[1].cnt.FromHost; n != uint64(len(want)) {
			t.Errorf("%s: %d counted", name, n)
		}
	}
}

// A VM's TSO frame leaves for the host whole, behind what went before it, and what the kernel does not take stays in the virtqueue.
func TestAVMsSuperframesReachTheHostWhole(t *testing.T) {
	r, _, out, s, _ := newHostRig(t, rules())
	p := from(1, macOf(9), 20000)
	p.Partial = true
	h, frame := kernelCuts(virtio.GSOTCPv4, 1400), p.Frame()
	out.room = 1
	s.send(h, frame, frame)
	r.step()
	if len(out.got) != 1 || len(s.queue) != 1 {
		t.Fatalf("%d sent, %d wait", len(out.got), len(s.queue))
	}
	out.room = -1
	r.advance(time.Millisecond)
	r.step()
	if len(out.got) != 2 || len(out.got[1].data) != len(frame) || len(s.queue) != 0 {
		t.Fatalf("%d sent, %d wait", len(out.got), len(s.queue))
	}
	for _, w := range out.got {
		if w.hdr.GSOType != virtio.GSOTCPv4 || w.hdr.GSOSize != 1400 {
			t.Errorf("%+v", w.hdr)
		}
	}
	out.got, out.room, out.full = nil, 0, tap.ErrGone // the way is gone: nobody waits for it
	s.send(h, frame)
	r.step()
	if c := r.w.ports[1].cnt; len(s.queue) != 0 || c.TxDropped[flowtable.ReasonPortDown] != 1 {
		t.Errorf("%d wait, %v", len(s.queue), c.TxDropped)
	}
}

// A checksum that the host leaves to its device is left to a guest that takes that, and made for one that does not.
func TestTheHostsPartialChecksums(t *testing.T) {
	for _, takes := range []bool{true, false} {
		r, in, _, _, g := newHostRig(t, rules(func(c *flowtable.PortConfig) { c.GuestCsum = takes }))
		p := to(1, 300)
		p.SrcMAC, p.Partial = macOf(9), true
		f := tap.HostFrame{Hdr: virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 34, CsumOffset: 16}, Data: p.Frame()}
		full := bytes.Clone(f.Data)
		if err := checksum.Complete(full, 34, 16); err != nil {
			t.Fatal(err)
		}
		r.fromHost(in, f)
		got := g.take()
		if len(got) != 1 {
			t.Fatalf("%d frames", len(got))
		}
		if partial := got[0].hdr.Flags&virtio.HdrNeedsCsum != 0; partial {
			if !takes || checksum.Complete(got[0].data, int(got[0].hdr.CsumStart), int(got[0].hdr.CsumOffset)) != nil {
				t.Errorf("%+v", got[0].hdr)
			}
		}
		if !bytes.Equal(got[0].data, full) {
			t.Errorf("takes %t: other bytes", takes)
		}
	}
}

// Datagrams that the host leaves to its device to cut reach the VM as those that they stand for.
func TestTheHostsUDPTrainsAreCut(t *testing.T) {
	r, in, _, _, g := newHostRig(t, rules())
	src, dst := macOf(9), macOf(1)
	payload := bytes.Repeat([]byte{7}, 2500)
	train := ether(dst, 0x0800, packet4("10.0.0.9", "10.0.0.1", 17, 0, append(udp(5000, 6000)[:8], payload...)))
	copy(train[6:], src[:])
	train[38], train[39] = byte((8+len(payload))>>8), byte(8+len(payload))
	r.fromHost(in, tap.HostFrame{Data: train, Hdr: virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOUDPL4, GSOSize: 1000, HdrLen: 42, CsumStart: 34, CsumOffset: 6}})
	total := 0
	for _, got := range g.take() {
		if got.hdr.GSOType == virtio.GSONone && len(got.data) > 1042 {
			t.Errorf("a frame of %d bytes", len(got.data))
		}
		total += bytes.Count(got.data, []byte{7, 7, 7, 7, 7})
	}
	if total < 2500/5-10 {
		t.Errorf("%d of the payload arrived", total*5)
	}
	if n := r.w.ports[1].cnt.FromHost; n != 3 {
		t.Errorf("%d packets, want 3; dropped %v", n, r.ledger(1).Dropped)
	}
}

// A VM's train of datagrams leaves for the host as one, and on a kernel that refuses that as the datagrams.
func TestAVMsUDPTrainsReachTheHost(t *testing.T) {
	for _, refuses := range []bool{false, true} {
		r, _, out, s, _ := newHostRig(t, rules())
		mine, own := macOf(1), macOf(9)
		train := ether(own, 0x0800, packet4("10.0.0.1", "10.0.0.9", 17, 0, append(udp(5000, 6000)[:8], bytes.Repeat([]byte{7}, 2500)...)))
		copy(train[6:], mine[:])
		train[38], train[39] = byte(2508>>8), byte(2508&0xff)
		if refuses {
			out.room, out.full = 0, tap.ErrKernelRefused
		}
		s.send(virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOUDPL4, GSOSize: 1000, HdrLen: 42, CsumStart: 34, CsumOffset: 6}, train)
		r.step()
		out.room = -1
		r.advance(time.Millisecond)
		r.step()
		want := 1
		if refuses {
			want = 3
		}
		if len(out.got) != want || len(s.queue) != 0 || len(r.nic.sent()) != 0 {
			t.Fatalf("refuses %t: %d frames, %d wait", refuses, len(out.got), len(s.queue))
		}
		if c := r.w.ports[1].cnt; c.ToHost != 3 || c.TxWire != 3 || c.TxFrames != 1 {
			t.Errorf("refuses %t: %+v", refuses, c)
		}
	}
}

func TestTheHostsWayAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	l := newLAN(t, 64)
	l.nic.lazy = true
	in, out := l.host()
	l.w.host.Out = &silentWire{fakeWire: out}
	g := l.vm(hasHost)
	frame, group := lanFrame(g.mac, lanHost, privateType), lanFrame(everybody, lanHost, privateType)
	frames := []tap.HostFrame{{Data: frame}, {Data: group}, {Data: frame}}
	receive := func() {
		in.queue, l.w.host.ready = frames, true
		l.w.receiveHost()
	}
	for range outQueueLen { // each place of the queue is used again
		receive()
	}
	if n := testing.AllocsPerRun(200, receive); n != 0 {
		t.Errorf("from the host: %v allocations", n)
	}
	var f vhost.TxFrame
	e := l.w.egress[0]
	for name, data := range map[string][]byte{"to the host": lanFrame(lanHost, g.mac, privateType), "to all": lanFrame(everybody, g.mac, privateType)} {
		if n := testing.AllocsPerRun(200, func() {
			f = vhost.TxFrame{Data: data}
			l.w.emit(e, &f)
			l.w.beforeUsed()
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// silentWire takes all and keeps nothing.
type silentWire struct {
	*fakeWire
	n int
}

func (s *silentWire) Add(*virtio.Frame) bool { s.n++; return true }

func (s *silentWire) Send() (n int, err error) {
	n, s.n = s.n, 0
	return n, nil
}

// What the kernel says of a frame may be wrong, and so may the frame: nobody else loses by it.
func FuzzHostFrames(f *testing.F) {
	good := fromHost(5000, 1400)
	f.Add(good.Data, good.Hdr.Flags, good.Hdr.GSOType, good.Hdr.GSOSize, good.Hdr.CsumStart, good.Hdr.CsumOffset, uint16(0), false)
	small := to(1, 100)
	f.Add(small.Frame(), uint8(1), uint8(0), uint16(0), uint16(65535), uint16(65535), uint16(7), true)
	f.Add([]byte{255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 9, 8, 0, 0x45}, uint8(1), uint8(5), uint16(1), uint16(14), uint16(0), uint16(0), false)
	f.Fuzz(func(t *testing.T, data []byte, flags, kind uint8, size, start, offset, tci uint16, tagged bool) {
		if len(data) > 65549 {
			return
		}
		r, in, out, _, g := newHostRig(t, rules())
		r.fromHost(in, tap.HostFrame{
			Data: bytes.Clone(data), TCI: tci, Tagged: tagged,
			Hdr: virtio.NetHdr{Flags: flags, GSOType: kind, GSOSize: size, CsumStart: start, CsumOffset: offset, HdrLen: offset},
		})
		for _, got := range g.take() {
			if got.hdr.NumBuffers = 1; virtio.CheckRx(&got.hdr, got.data, allFeatures&^(1<<virtio.FRSCExt)) != nil {
				t.Errorf("%+v", got.hdr)
			}
		}
		if len(out.got)+len(r.nic.sent()) != 0 {
			t.Error("what the host sent goes on to somebody else")
		}
		whole := fromHost(3000, 1400)
		r.fromHost(in, whole)
		if len(g.take()) != 1 {
			t.Error("the next one is lost")
		}
	})
}
