package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// fakePacket is a packet socket on a tap.
type fakePacket struct {
	room    int // frames until ErrFull; negative: no end
	bad     func(f *virtio.Frame) error
	err     error // of Send
	look    error // of Refresh
	sent    []received
	sends   []int // frames given to each Send
	looks   int
	closed  int
	badShut error
}

func (p *fakePacket) Send(frames []*virtio.Frame) (n int, err error) {
	p.sends = append(p.sends, len(frames))
	for _, f := range frames {
		switch {
		case p.err != nil:
			return n, p.err
		case p.bad != nil && p.bad(f) != nil:
			return n, p.bad(f)
		case p.room == 0:
			return n, tap.ErrFull
		}
		p.room--
		p.sent = append(p.sent, received{hdr: f.Hdr, data: bytes.Join(f.Frags, nil)})
		n++
	}
	return n, nil
}

func (p *fakePacket) Refresh() error { p.looks++; return p.look }
func (p *fakePacket) Close() error   { p.closed++; return p.badShut }

// fakeRing is the ring of a /dev/vhost-net: its kernel thread sends what was kicked when the test says so.
type fakeRing struct {
	size    int  // frames in flight
	lazy    bool // the thread does nothing by itself
	bad     func(f *virtio.Frame) error
	kickErr error
	err     error
	posted  []ringFrame // not kicked
	flying  []ringFrame // kicked, not sent
	done    []ringFrame // sent, not reaped
	sent    []received
	kicks   int
	fd      int
	armed   int
	acked   int
	unsent  int
	closed  int
}

type ringFrame struct {
	hdr   virtio.NetHdr
	frags [][]byte
	refs  []uint64
}

func (g *fakeRing) Post(f *virtio.Frame, refs []uint64) error {
	if g.bad != nil && g.bad(f) != nil {
		return g.bad(f)
	}
	if g.Pending() >= g.size {
		return tap.ErrFull
	}
	r := ringFrame{hdr: f.Hdr, frags: slices.Clone(f.Frags), refs: slices.Clone(refs)}
	if len(refs) == 0 { // outside of the UMEM: copied
		r.frags = [][]byte{bytes.Join(f.Frags, nil)}
	}
	g.posted = append(g.posted, r)
	return nil
}

func (g *fakeRing) Kick() error {
	g.kicks++
	g.flying = append(g.flying, g.posted...)
	g.posted = nil
	return g.kickErr
}

// send lets the kernel thread send up to n frames.
func (g *fakeRing) send(n int) {
	for ; n > 0 && len(g.flying) > 0; n-- {
		f := g.flying[0]
		g.flying = g.flying[1:]
		g.sent = append(g.sent, received{hdr: f.hdr, data: bytes.Join(f.frags, nil)})
		g.done = append(g.done, f)
	}
}

func (g *fakeRing) Reap(free func(uint64)) int {
	if !g.lazy {
		g.send(len(g.flying))
	}
	n := len(g.done)
	for _, f := range g.done {
		for _, r := range f.refs {
			free(r)
		}
	}
	g.done = nil
	return n
}

func (g *fakeRing) all() []ringFrame { return slices.Concat(g.posted, g.flying, g.done) }

func (g *fakeRing) Pending() int { return len(g.posted) + len(g.flying) + len(g.done) }

func (g *fakeRing) Chunks() (n int) {
	for _, f := range g.all() {
		n += len(f.refs)
	}
	return n
}

func (g *fakeRing) ArmCall() bool { g.armed++; return len(g.done) > 0 }
func (g *fakeRing) AckCall()      { g.acked++ }
func (g *fakeRing) CallFD() int   { return g.fd }
func (g *fakeRing) Err() error    { return g.err }
func (g *fakeRing) Unsent() int   { return g.unsent }

func (g *fakeRing) Close(free func(uint64)) error {
	g.closed++
	g.unsent = len(g.posted) + len(g.flying)
	for _, f := range g.all() {
		for _, r := range f.refs {
			free(r)
		}
	}
	g.posted, g.flying, g.done = nil, nil, nil
	return nil
}

func (r *rig) tapVM(index uint32, g Guest) {
	r.tb.Helper()
	r.addPort(PortConfig{Index: index, Addr: Addr{MAC: macOf(index)}})
	if err := r.w.startPort(index, g, nil, rules()); err != nil {
		r.tb.Fatal(err)
	}
}

// books without the chunks that a ring has, which the fake NIC cannot see.
func (r *rig) tapBooks() {
	r.tb.Helper()
	for _, p := range r.w.list {
		if n := p.ledger.Unexplained(); n != 0 {
			r.tb.Fatalf("port %d: %d packets unexplained", p.Index, n)
		}
	}
}

func alone(index uint32, n int) pt.TCP {
	p := to(index, n)
	p.Flags = pt.ACK | pt.PSH
	return p
}

func TestAPacketSocketGetsABurstWithOneCall(t *testing.T) {
	r := newRig(t)
	pkt := &fakePacket{room: -1}
	r.tapVM(1, NewPacketGuest(pkt, r.nic))
	want := append(train(alone(1, 300), 20), train(to(1, 1000).With(func(p *pt.TCP) { p.SrcPort = 9 }), 10)...)
	r.inject(want...)
	r.step()
	packets(t, pkt.sent, want...)
	if fmt.Sprint(pkt.sends) != "[21]" || r.nic.with(inWorker) != 0 {
		t.Errorf("sends of %v frames, %d chunks out", pkt.sends, r.nic.with(inWorker))
	}
}

// More frames than one call takes go with the next one.
func TestAPacketSocketsBatchIsBounded(t *testing.T) {
	r := newRig(t)
	pkt := &fakePacket{room: 0}
	r.tapVM(1, NewPacketGuest(pkt, r.nic))
	want := train(alone(1, 100), 2*tap.MaxBatch+5)
	for i := 0; i < len(want); i += BurstFrames {
		r.inject(want[i:min(len(want), i+BurstFrames)]...)
		r.step()
	}
	pkt.room, pkt.sends = -1, nil
	r.step()
	packets(t, pkt.sent, want...)
	if fmt.Sprint(pkt.sends) != fmt.Sprint([]int{tap.MaxBatch, tap.MaxBatch, 5}) {
		t.Errorf("sends of %v frames", pkt.sends)
	}
}

// A batch has a slot for each frame that one call takes, also when it cannot be used again at once.
func TestAPacketSocketThatIsFullIsTriedAgain(t *testing.T) {
	r := newRig(t)
	pkt := &fakePacket{room: 4}
	g := NewPacketGuest(pkt, r.nic)
	r.tapVM(1, g)
	want := train(alone(1, 100), 10)
	r.inject(want...)
	r.step()
	r.w.arm()
	if p := r.w.ports[1]; !p.hungry || p.out.n != 6 || r.w.timeout() != hungryRetry {
		t.Fatalf("%d wait, hungry %v, sleeps %v", p.out.n, p.hungry, r.w.timeout())
	}
	if fd, ready := g.Arm(true); fd != -1 || ready {
		t.Errorf("a packet socket gives no sign, and %d is polled", fd)
	}
	g.Ack()
	pkt.room = -1
	r.step()
	packets(t, pkt.sent, want...)
}

func TestWhatTheKernelRefusesOfABatchIsDroppedAlone(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		why  flowtable.Reason
		over bool
	}{
		"refused": {tap.ErrMTU, flowtable.ReasonBadLength, false},
		"down":    {tap.ErrDown, flowtable.ReasonPortDown, false},
		"gone":    {tap.ErrGone, flowtable.ReasonPortDown, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			pkt := &fakePacket{room: -1}
			pkt.bad = func(f *virtio.Frame) error {
				if f.Len > 400 {
					return c.err
				}
				return nil
			}
			r.tapVM(1, NewPacketGuest(pkt, r.nic))
			want := train(alone(1, 100), 6)
			want[3] = alone(1, 900).Frame()
			r.inject(want...)
			r.step()
			if c.over {
				packets(t, pkt.sent, want[:3]...)
				r.dropped(1, byReason{c.why: 3})
				if r.trouble.Load() != 1 {
					t.Error("nobody is told that the tap is gone")
				}
				return
			}
			packets(t, pkt.sent, append(slices.Clone(want[:3]), want[4:]...)...)
			r.dropped(1, byReason{c.why: 1})
			if r.trouble.Load() != 0 {
				t.Error("a frame that is refused is no trouble")
			}
		})
	}
}

func TestATapsInterfaceIsLookedAtWhenItChanged(t *testing.T) {
	pkt := &fakePacket{}
	ring := &fakeRing{}
	for name, g := range map[string]Guest{"packet": NewPacketGuest(pkt, nil), "ring": NewRingGuest(ring, pkt, newFakeNIC(t, 4))} {
		tiny := &Frame{}
		tiny.Hdr.GSOType, tiny.Hdr.GSOSize = virtio.GSOTCPv4, 7
		if err := g.Put(tiny); err != ErrTooBig { // so that it is cut: some kernels lose it (tap.TooSmall)
			t.Errorf("%s: a superframe of segments of 7 bytes: %v", name, err)
		}
		pkt.looks, pkt.look = 0, tap.ErrGone
		if err := g.Check(false); err != nil || pkt.looks != 0 {
			t.Errorf("%s: looked without being asked: %v", name, err)
		}
		if err := g.Check(true); !errors.Is(err, tap.ErrGone) {
			t.Errorf("%s: gone: %v", name, err)
		}
		pkt.look = tap.ErrDown
		if err := g.Check(true); err != nil {
			t.Errorf("%s: down, and may come up: %v", name, err)
		}
		if g.MaxFrame() != 0 {
			t.Errorf("%s: longest frame %d", name, g.MaxFrame())
		}
	}
	ring.err = tap.ErrRing
	if err := NewRingGuest(ring, pkt, newFakeNIC(t, 4)).Check(false); !errors.Is(err, tap.ErrRing) {
		t.Errorf("a broken ring: %v", err)
	}
}

func TestClosingAPacketGuestClosesItsSocket(t *testing.T) {
	pkt := &fakePacket{badShut: errFinished}
	if n, err := NewPacketGuest(pkt, nil).Close(); n != 0 || err != errFinished || pkt.closed != 1 {
		t.Errorf("%d unsent, %v, closed %d times", n, err, pkt.closed)
	}
}

func TestARingGetsABurstWithOneKickAndGivesChunksBackLater(t *testing.T) {
	r := newRig(t)
	ring, pkt := &fakeRing{size: 64, lazy: true, fd: 77}, &fakePacket{}
	g := NewRingGuest(ring, pkt, r.nic)
	r.tapVM(1, g)
	want := append(train(alone(1, 300), 10), train(to(1, 1000).With(func(p *pt.TCP) { p.SrcPort = 9 }), 10)...)
	r.inject(want...)
	r.w.step()
	r.tapBooks()
	if ring.kicks != 1 || r.w.ports[1].held != 20 || r.nic.with(inWorker) != 20 {
		t.Fatalf("%d kicks, %d chunks with the ring", ring.kicks, r.w.ports[1].held)
	}
	if fd, _ := g.Arm(false); fd != -1 || ring.armed != 0 {
		t.Error("a ring that holds little is polled")
	}
	ring.send(5)
	r.w.step()
	if n := r.w.ports[1].held; n != 15 || r.nic.with(inWorker) != 15 {
		t.Errorf("%d chunks with the ring, %d out", n, r.nic.with(inWorker))
	}
	ring.send(100)
	r.w.step()
	packets(t, ring.sent, want...)
	if r.w.ports[1].held != 0 || r.nic.with(inWorker) != 0 {
		t.Errorf("%d chunks with the ring", r.w.ports[1].held)
	}
	if fd, ready := g.Arm(true); fd != -1 || ready {
		t.Error("a ring that holds nothing is polled")
	}
}

// The ring may hold so many chunks, and says when they come back.
func TestARingHoldsNoMoreChunksThanItMay(t *testing.T) {
	r := newRig(t) // of 2048 chunks 8 of 128 are set aside for it, and half of 256 is lent
	ring := &fakeRing{size: 64, lazy: true, fd: 77}
	g := NewRingGuest(ring, &fakePacket{}, r.nic)
	r.tapVM(1, g)
	var want [][]byte
	for i := range 4 {
		next := train(to(1, 1000).With(func(p *pt.TCP) { p.SrcPort = 9 + uint16(i) }), 40)
		r.inject(next...)
		r.w.step()
		want = append(want, next...)
	}
	if p := r.w.ports[1]; p.held != 120 || p.out.n != 1 || !p.hungry {
		t.Fatalf("%d chunks with the ring, %d frames wait", p.held, p.out.n)
	}
	if fd, ready := g.Arm(true); fd != 77 || ready {
		t.Errorf("polled is %d", fd)
	}
	g.Ack()
	ring.send(1)
	if _, ready := g.Arm(true); !ready || ring.acked != 1 {
		t.Error("a frame is done, and the worker may sleep")
	}
	r.w.step()
	ring.send(9)
	r.w.step()
	packets(t, ring.sent, want...)
	if fd, _ := g.Arm(false); fd != -1 {
		t.Error("an empty ring is polled")
	}
	// Half of what it may hold is enough to ask for a sign.
	r.inject(want[:40]...)
	r.w.step()
	r.inject(want[40:80]...)
	r.w.step()
	if fd, _ := g.Arm(false); fd != 77 {
		t.Error("a ring that holds half of what it may is not polled")
	}
	r.w.stopPort(1)
}

// A ring that may hold little, because others have the chunks, copies: single frames, and superframes packet by packet. Nothing waits
// for chunks that may never come back.
func TestARingWithLittleRoomCopies(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = 256 }) // 1 of 16, and half of 32
	ring := &fakeRing{size: 64, lazy: true, fd: 77}
	r.tapVM(1, NewRingGuest(ring, &fakePacket{}, r.nic))
	super := func(port uint16, n int) [][]byte {
		return train(to(1, 1000).With(func(p *pt.TCP) { p.SrcPort = port }), n)
	}
	var want [][]byte
	send := func(held int, frames ...[]byte) {
		t.Helper()
		want = append(want, frames...)
		r.inject(frames...)
		r.w.step()
		r.tapBooks()
		if p := r.w.ports[1]; p.held != held || p.out.n != 0 {
			t.Errorf("%d chunks with the ring, want %d; %d frames wait", p.held, held, p.out.n)
		}
	}
	send(0, super(1, 18)...)             // more than it may ever hold
	send(16, super(2, 16)...)            // fits
	send(16, super(3, 6)...)             // does not
	send(17, alone(1, 300).Frame())      // fits
	send(17, train(alone(1, 700), 3)...) // do not
	send(17, pt.UDP{DstMAC: macOf(1), Len: 1472}.Frame())
	ring.send(100)
	r.w.step()
	packets(t, ring.sent, want...)
	r.dropped(1, nil)
}

func TestAFrameThatTheRingRefusesIsDroppedAlone(t *testing.T) {
	r := newRig(t)
	ring := &fakeRing{size: 64}
	ring.bad = func(f *virtio.Frame) error {
		if f.Len > 900 {
			return tap.ErrMTU
		}
		return nil
	}
	r.tapVM(1, NewRingGuest(ring, &fakePacket{}, r.nic))
	want := train(alone(1, 100), 5)
	want[2] = alone(1, 900).Frame()
	r.inject(want...)
	r.step()
	r.dropped(1, byReason{flowtable.ReasonBadLength: 1})
	packets(t, ring.sent, want[0], want[1], want[3], want[4])
}

// A ring that is full or breaks keeps what it took.
func TestABrokenRingIsTroubleAndItsFramesAreCounted(t *testing.T) {
	r := newRig(t)
	ring, pkt := &fakeRing{size: 3, lazy: true}, &fakePacket{}
	r.tapVM(1, NewRingGuest(ring, pkt, r.nic))
	r.inject(train(alone(1, 100), 5)...)
	r.w.step()
	if p := r.w.ports[1]; !p.hungry || p.out.n != 2 {
		t.Fatalf("%d frames wait", p.out.n)
	}
	ring.send(1)
	ring.kickErr = tap.ErrRing
	r.w.step()
	r.tapBooks()
	if p := r.w.ports[1]; !errors.Is(p.err, tap.ErrRing) || r.trouble.Load() != 1 {
		t.Errorf("%v, trouble %d times", p.err, r.trouble.Load())
	}
	r.dropped(1, byReason{flowtable.ReasonPortDown: 1})
	ring.err = tap.ErrRing // nobody will send what it has
	r.w.stopPort(1)
	if n := r.w.ports[1].cnt.Unsent; n != 3 || r.nic.with(inWorker) != 0 || ring.closed != 1 || pkt.closed != 1 {
		t.Errorf("%d frames unsent, %d chunks out", n, r.nic.with(inWorker))
	}
}

// A ring that stops is given a little time to send what it has.
func TestARingIsEmptiedBeforeItCloses(t *testing.T) {
	r := newRig(t)
	ring, pkt := &fakeRing{size: 64, lazy: true}, &fakePacket{}
	r.tapVM(1, NewRingGuest(ring, pkt, r.nic))
	want := train(alone(1, 100), 5)
	r.inject(want...)
	r.w.step()
	ring.lazy = false // the thread gets its turn
	r.w.stopPort(1)
	packets(t, ring.sent, want...)
	if n := r.w.ports[1].cnt.Unsent; n != 0 || r.nic.with(inWorker) != 0 {
		t.Errorf("%d frames unsent, %d chunks out", n, r.nic.with(inWorker))
	}
	// And no more than a little.
	ring2 := &fakeRing{size: 64, lazy: true}
	r.tapVM(2, NewRingGuest(ring2, pkt, r.nic))
	r.inject(train(alone(2, 100), 5)...)
	r.w.step()
	start := time.Now()
	r.w.stopPort(2)
	if n := r.w.ports[2].cnt.Unsent; n != 5 || r.nic.with(inWorker) != 0 || time.Since(start) < emptyWithin {
		t.Errorf("%d frames unsent, %d chunks out, after %v", n, r.nic.with(inWorker), time.Since(start))
	}
}

// A jumbo frame is copied into a ring with little room as well as a short one: a ring that may hold no chunk loses nothing.
func TestAnyFrameInOnePieceIsCopiedIntoARingThatMayHoldNone(t *testing.T) {
	r := newRig(t)
	for _, n := range []int{60, 1514, xsk.MaxMTU(xsk.LargeChunk, 1) + 14, xsk.LargeChunk, 9014, xsk.FrameMTU(xsk.MostFrame) + 14} {
		ring := &fakeRing{size: 8, lazy: true, fd: -1}
		g := NewRingGuest(ring, &fakePacket{room: -1}, r.nic)
		want := bytes.Repeat([]byte{7}, n)
		f := &Frame{Frame: virtio.Frame{Frags: [][]byte{want[:10], want[10:]}, Len: n}, Refs: []uint64{0}}
		g.Begin(0)
		if err := g.Put(f); err != nil {
			t.Errorf("%d bytes: %v", n, err)
			continue
		}
		if got := ring.posted[0]; len(got.refs) != 0 || !bytes.Equal(got.frags[0], want) {
			t.Errorf("%d bytes: %d chunks held, %d bytes copied", n, len(got.refs), len(got.frags[0]))
		}
	}
}
