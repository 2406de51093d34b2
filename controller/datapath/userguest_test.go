package datapath

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

const allFeatures = vhost.DefaultFeatures &^ (1 << virtio.FRSCExt)

// userVM is a vhost-user VM: a port, and a front-end with a driver's side of the rings.
type userVM struct {
	tb   testing.TB
	port *vhost.Port
	*user.Frontend
	bufs map[uint64][]byte
	next uint64
}

// newUserVM connects a front-end to a port, on memory and sockets that need no privileges.
func newUserVM(tb testing.TB, features virtio.Features, ringSize, memory int, edits ...func(*vhost.Config)) *userVM {
	tb.Helper()
	dir, err := os.MkdirTemp("", "dp") // t.TempDir may be too long for a socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	started := make(chan struct{}, 16)
	v := &userVM{tb: tb, bufs: map[uint64][]byte{}}
	path := filepath.Join(dir, "s")
	cfg := vhost.Config{
		Name: "vm", Socket: path, UID: -1, GID: -1, MaxPairs: 1,
		Hooks: vhost.Hooks{Started: func(*vhost.Port) { started <- struct{}{} }},
	}
	for _, e := range edits {
		e(&cfg)
	}
	v.port, err = vhost.NewPort(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = v.port.Close() })
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	v.Frontend, err = user.OpenFrontend(ctx, user.FrontendConfig{Socket: path, Features: features, RingSize: ringSize, Memory: memory})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = v.Frontend.Close() })
	if err := v.Start(); err != nil {
		tb.Fatal(err)
	}
	select {
	case <-started:
	case <-ctx.Done():
		tb.Fatal("the port did not start")
	}
	return v
}

// post offers buffers of one size to receive into, and reports whether the device wants a kick for them.
func (v *userVM) post(count, size int) (kick bool) {
	v.tb.Helper()
	for range count {
		gpa, mem, err := v.Alloc(size, 1)
		if err != nil {
			v.tb.Fatal(err)
		}
		v.next++
		if err := v.RX(0).Driver.Add([]vring.Buffer{{Addr: gpa, Len: uint32(size), Writable: true}}, v.next); err != nil {
			v.tb.Fatal(err)
		}
		v.bufs[v.next] = mem
	}
	if kick = v.RX(0).Driver.Publish(); kick {
		v.RX(0).Kick()
	}
	return kick
}

// received takes what arrived off the ring.
func (v *userVM) received() (got []received) {
	v.tb.Helper()
	for {
		var r received
		var b []byte
		want := 1
		for i := 0; i < want; i++ {
			token, n, ok := v.RX(0).Driver.Used()
			if !ok {
				if i > 0 {
					v.tb.Fatalf("%d of %d buffers", i, want)
				}
				return got
			}
			b = append(b, v.bufs[token][:n]...)
			if i == 0 {
				if err := r.hdr.Decode(b[:virtio.HdrSize]); err != nil {
					v.tb.Fatal(err)
				}
				want = int(r.hdr.NumBuffers)
			}
		}
		r.data = b[virtio.HdrSize:]
		got = append(got, r)
	}
}

// send posts frames in the TX virtqueue.
func (v *userVM) send(frames ...[]byte) {
	v.tb.Helper()
	for _, f := range frames {
		b := append(make([]byte, virtio.HdrSize), f...)
		gpa, mem, err := v.Alloc(len(b), 1)
		if err != nil {
			v.tb.Fatal(err)
		}
		copy(mem, b)
		v.next++
		if err := v.TX(0).Driver.Add([]vring.Buffer{{Addr: gpa, Len: uint32(len(b))}}, v.next); err != nil {
			v.tb.Fatal(err)
		}
	}
	if v.TX(0).Driver.Publish() {
		v.TX(0).Kick()
	}
}

// userGuest gives a VM of the rig a real virtqueue.
func (r *rig) userGuest(index uint32, v *userVM) Guest {
	r.tb.Helper()
	r.addPort(PortConfig{Index: index, Addr: Addr{MAC: macOf(index)}})
	g := NewUserGuest(v.port.RX(0), r.nic, r.w.Wake)
	if err := r.w.startPort(index, g, []Source{v.port.TX(0)}, rules()); err != nil {
		r.tb.Fatal(err)
	}
	return g
}

func TestAVirtqueueGetsSuperframesAndTheChunksComeBackAtOnce(t *testing.T) {
	v := newUserVM(t, allFeatures, 64, 8<<20)
	r := newRig(t)
	g := r.userGuest(1, v)
	v.post(32, 2048)
	want := train(to(1, 1000), 10)
	r.inject(want...)
	r.step()
	got := v.received()
	packets(t, got, want...)
	if len(got) != 1 || got[0].hdr.NumBuffers != 5 || r.nic.with(inWorker) != 0 {
		t.Errorf("%d frames, the first in %d buffers, %d chunks out", len(got), got[0].hdr.NumBuffers, r.nic.with(inWorker))
	}
	if g.MaxFrame() == 0 || g.MaxFrame() != v.port.RX(0).MaxFrame() {
		t.Errorf("longest frame %d, the queue says %d", g.MaxFrame(), v.port.RX(0).MaxFrame())
	}
	if err := g.Check(true); err != nil {
		t.Error(err)
	}
	r.w.stopPort(1)
	if !v.port.RX(0).Begin() {
		t.Error("the queue is its port's, and does not run any more")
	} else {
		v.port.RX(0).Commit()
	}
}

func TestAVirtqueueWithoutBuffersIsWaitedForByItsKick(t *testing.T) {
	v := newUserVM(t, allFeatures, 64, 8<<20)
	r := newRig(t)
	g := r.userGuest(1, v)
	if fd, ready := g.Arm(false); fd != -1 || ready {
		t.Errorf("nothing waits, and %d is polled", fd)
	}
	p := to(1, 500)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, 8)
	v.post(3, 2048)
	r.inject(want...)
	r.step()
	if !r.w.ports[1].hungry || r.w.ports[1].out.n != 5 {
		t.Fatalf("%d frames wait, hungry %v", r.w.ports[1].out.n, r.w.ports[1].hungry)
	}
	if fd, _ := g.Arm(true); fd != v.port.RX(0).KickFD() || fd < 0 {
		t.Errorf("polled is %d", fd)
	}
	if !v.post(20, 2048) {
		t.Error("the guest was not asked for a kick")
	}
	g.Ack() // takes the kick, and does not wait for another
	g.Ack()
	r.step()
	packets(t, v.received(), want...)
	r.dropped(1, nil)
}

// A superframe of a guest without mergeable buffers arrives packet by packet, and the table learns to make none.
func TestAVirtqueueOfSmallBuffersGetsThePackets(t *testing.T) {
	v := newUserVM(t, allFeatures&^(1<<virtio.FMrgRxbuf), 64, 8<<20)
	r := newRig(t)
	r.userGuest(1, v)
	v.post(16, 1600)
	want := train(to(1, 1000), 5)
	r.inject(want...)
	r.step()
	got := v.received()
	packets(t, got, want...)
	if len(got) != 5 || r.w.ports[1].cnt.Recut != 1 {
		t.Errorf("%d frames, %d cut again", len(got), r.w.ports[1].cnt.Recut)
	}
	r.passed(1, byReason{flowtable.ReasonMaxBytes: 5})
	more := train(to(1, 1000), 5)
	r.inject(more...)
	r.step()
	packets(t, v.received(), more...)
	if n := r.w.ports[1].cnt.Recut; n != 1 {
		t.Errorf("%d superframes cut again: the table did not learn", n)
	}
}

// Rules that promise more than the guest negotiated cost no packet.
func TestAVirtqueueWithoutOffloadsGetsThePacketsWithoutAClaim(t *testing.T) {
	for name, c := range map[string]struct {
		features virtio.Features
		why      flowtable.Reason
	}{
		"no TSO":  {allFeatures &^ (1<<virtio.FGuestTSO4 | 1<<virtio.FGuestECN), flowtable.ReasonNotNegotiated},
		"no csum": {allFeatures &^ (1<<virtio.FGuestCsum | 1<<virtio.FGuestTSO4 | 1<<virtio.FGuestTSO6 | 1<<virtio.FGuestECN | 1<<virtio.FGuestUSO4 | 1<<virtio.FGuestUSO6), flowtable.ReasonNotNegotiated},
	} {
		t.Run(name, func(t *testing.T) {
			v := newUserVM(t, c.features, 64, 8<<20)
			r := newRig(t)
			r.userGuest(1, v)
			v.post(16, 2048)
			p := to(1, 700)
			p.SrcPort = 99
			p.Flags = pt.ACK | pt.PSH
			want := append(train(to(1, 1000), 4), p.Frame())
			r.inject(want...)
			r.step()
			packets(t, v.received(), want...)
			r.passed(1, byReason{c.why: 4, flowtable.ReasonPSH: 1})
		})
	}
}

func TestABadFrameIsRefusedByTheVirtqueueAlone(t *testing.T) {
	v := newUserVM(t, allFeatures, 64, 8<<20)
	g := NewUserGuest(v.port.RX(0), newFakeNIC(t, 8), func() {})
	v.post(8, 2048)
	if !g.Begin(0) {
		t.Fatal("the queue does not run")
	}
	long := bytes.Repeat([]byte{1}, 66000)
	for _, c := range []struct {
		f    virtio.Frame
		want error
	}{
		{virtio.Frame{Frags: [][]byte{long}, Len: 66000}, ErrRefused},
		{virtio.Frame{Frags: [][]byte{long[:100]}, Len: 99}, ErrRefused},
		{virtio.Frame{Frags: [][]byte{long[:100]}, Len: 100, Hdr: virtio.NetHdr{GSOType: virtio.GSOUDP, GSOSize: 10}}, ErrNoOffer},
		{virtio.Frame{Frags: [][]byte{long[:100]}, Len: 100}, nil},
	} {
		if err := g.Put(&Frame{Frame: c.f}); err != c.want {
			t.Errorf("a frame that says %d: %v", c.f.Len, err)
		}
	}
	if n, err := g.Commit(); n != 1 || err != nil {
		t.Errorf("%d delivered, %v", n, err)
	}
	if got := v.received(); len(got) != 1 {
		t.Errorf("%d frames", len(got))
	}
}

// A front-end that breaks the rules of its ring is finished, and no other.
func TestABrokenVirtqueueIsTrouble(t *testing.T) {
	v, other := newUserVM(t, allFeatures, 64, 8<<20), newUserVM(t, allFeatures, 64, 8<<20)
	r := newRig(t)
	r.userGuest(1, v)
	r.userGuest(2, other)
	other.post(8, 2048)
	gpa, _, err := v.Alloc(2048, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.RX(0).Driver.Add([]vring.Buffer{{Addr: gpa, Len: 2048}}, 1); err != nil { // readable: not for a device to write
		t.Fatal(err)
	}
	v.RX(0).Driver.Publish()
	want := to(2, 100).Frame()
	r.inject(to(1, 100).Frame(), want)
	r.step()
	if r.trouble.Load() != 1 || r.w.ports[1].err == nil {
		t.Errorf("trouble %d times, %v", r.trouble.Load(), r.w.ports[1].err)
	}
	r.dropped(1, byReason{flowtable.ReasonPortDown: 1})
	packets(t, other.received(), want)
}

// vanishing is a guest whose memory is cut short between Put and Commit.
type vanishing struct {
	Guest
	v *userVM
}

func (g *vanishing) Commit() (int, error) {
	if err := unix.Ftruncate(g.v.MemoryFile(), 0); err != nil {
		g.v.tb.Error(err)
	}
	return g.Guest.Commit()
}

// Frames of a burst that cannot be published have not arrived: they are dropped, not delivered, and each chunk goes back once.
func TestABurstThatAVirtqueueCannotPublishIsDropped(t *testing.T) {
	v, other := newUserVM(t, allFeatures, 64, 8<<20), newUserVM(t, allFeatures, 64, 8<<20)
	r := newRig(t)
	g := r.userGuest(1, v)
	r.userGuest(2, other)
	r.w.ports[1].guest = &vanishing{g, v}
	v.post(16, 2048)
	other.post(16, 2048)
	p := to(1, 500)
	p.Flags = pt.ACK | pt.PSH
	lost, want := train(p, 3), to(2, 100).Frame()
	r.inject(lost...)
	r.inject(want)
	r.step()
	if r.trouble.Load() != 1 || r.w.ports[1].err == nil {
		t.Errorf("trouble %d times, %v", r.trouble.Load(), r.w.ports[1].err)
	}
	if l := r.ledger(1); l.Frames != 0 || l.FrameBytes != 0 {
		t.Errorf("%d frames are booked as delivered", l.Frames)
	}
	r.dropped(1, byReason{flowtable.ReasonPortDown: 3})
	if n := r.nic.with(inWorker); n != 0 {
		t.Errorf("%d chunks are lost", n)
	}
	packets(t, other.received(), want)
}

// A guest that goes away stops its queue; what comes then is counted.
func TestAVirtqueueThatStopsIsAPortThatIsDown(t *testing.T) {
	v := newUserVM(t, allFeatures, 64, 8<<20)
	r := newRig(t)
	r.userGuest(1, v)
	v.post(8, 2048)
	if err := v.Frontend.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the queue's end", func() bool {
		if !v.port.RX(0).Begin() {
			return true
		}
		v.port.RX(0).Commit()
		return false
	})
	r.inject(to(1, 100).Frame())
	r.step()
	r.dropped(1, byReason{flowtable.ReasonPortDown: 1})
}

func TestAVMsFramesLeaveByItsVirtqueue(t *testing.T) {
	v := newUserVM(t, allFeatures, 64, 8<<20)
	r := newRig(t)
	r.userGuest(1, v)
	want := train(from(1, wire, 700), 5)
	v.send(want...)
	r.step()
	r.onWire(want...)
}

// A guest without enough buffers is looked at, not walked, until its available index has moved; and then once.
func TestNoDescriptorIsWalkedAgainWithoutNews(t *testing.T) {
	r := newRig(t)
	v := newUserVM(t, allFeatures, 64, 1<<20)
	r.userGuest(1, v)
	v.post(6, 64)
	first := alone(1, 500).Frame() // 9 buffers with headers
	r.inject(first)
	r.step()
	p := r.w.ports[1]
	walked := func() int { return walkTurn - p.credit.walk }
	if !p.hungry || walked() != 6 {
		t.Fatalf("hungry %v, %d descriptors walked", p.hungry, walked())
	}
	for range 20 {
		r.inject(alone(1, 500).Frame())
		if r.step(); walked() != 0 {
			t.Fatalf("%d descriptors walked without news", walked())
		}
	}
	v.post(1, 64)
	if r.step(); walked() != 7 {
		t.Errorf("%d descriptors walked for a new buffer", walked())
	}
	if r.step(); walked() != 0 {
		t.Errorf("%d descriptors walked without news", walked())
	}
	v.post(20, 64)
	r.step()
	if got := v.received(); len(got) < 1 || !bytes.Equal(got[0].data, first) {
		t.Errorf("%d frames", len(got))
	}
}
