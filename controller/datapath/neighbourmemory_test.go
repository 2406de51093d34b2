package datapath

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// userPair are two VMs with real virtqueues, the first of which sends to the second.
func userPair(t *testing.T, edits ...func(*vhost.Config)) (r *rig, from, to *userVM) {
	t.Helper()
	r = newRig(t)
	private := func(c *vhost.Config) { c.TxHead = HeadRoom }
	edits = append(edits, private)
	from, to = newUserVM(t, allFeatures, 64, 16<<20, edits...), newUserVM(t, allFeatures, 256, 16<<20, edits...)
	r.userGuest(1, from)
	r.userGuest(2, to)
	return r, from, to
}

// From one guest's memory into another's, by real virtqueues: the frame arrives whole, in mergeable buffers, with the bytes that it had.
func TestASuperframeCrossesFromMemoryToMemory(t *testing.T) {
	r, from, to := userPair(t)
	to.post(100, 4096)
	for i, v6 := range []bool{false, true} {
		h, frame := tsoTo(v6, 60001, 1428)
		want := cutBy(t, h, frame)
		from.sendHeader(h, frame)
		r.step()
		got := to.received()
		if len(got) != 1 || got[0].hdr.NumBuffers < 15 {
			t.Fatalf("%d frames", len(got))
		}
		if err := virtio.CheckRx(&got[0].hdr, got[0].data, allFeatures&^(1<<virtio.FRSCExt)); err != nil {
			t.Errorf("%v: %+v", err, got[0].hdr)
		}
		packets(t, got, want...)
		if n := r.w.ports[1].cnt.TxWhole; n != uint64(i+1) || r.nic.with(inWorker) != 0 {
			t.Errorf("%d frames whole", n)
		}
	}
}

// A sender that takes its memory away while a frame is copied out of it, or where it is to be cut, or told of, ends itself. The receiver sees
// nothing of the frame, keeps its buffers, and is served on.
func TestASenderWhoseMemoryVanishesEndsAlone(t *testing.T) {
	for name, c := range map[string]struct {
		most   int // buffers that a superframe may take
		listen bool
		lost   byReason
	}{
		"whole":   {0, false, byReason{flowtable.ReasonPortDown: 42}},
		"too big": {4, false, byReason{flowtable.ReasonPortDown: 42}},
		"heard":   {0, true, nil}, // it is copied before it is the receiver's
	} {
		t.Run(name, func(t *testing.T) {
			r, from, to := userPair(t, func(v *vhost.Config) {
				if c.most > 0 {
					v.MaxBuffers = c.most
				}
			})
			to.post(100, 4096)
			if c.listen {
				r.probe(1, ProbeConfig{Kind: ProbeWire})
			}
			from.sendVanishing(tsoTo(false, 60000, 1448))
			r.step()
			if n := len(to.received()); n != 0 {
				t.Fatalf("%d frames arrived", n)
			}
			r.dropped(2, c.lost)
			if s := from.port.State(); s.Name == vhost.StateRunning {
				t.Error("the sender runs on")
			}
			if s := to.port.State(); s.Name != vhost.StateRunning || r.w.ports[2].err != nil {
				t.Errorf("the receiver is %s: %s, %v", s.Name, s.Reason, r.w.ports[2].err)
			}
			want := train(alone(2, 1000), 90) // the buffers are all there: 100 of them
			r.inject(want[:50]...)
			r.step()
			r.inject(want[50:]...)
			r.step()
			packets(t, to.received(), want...)
		})
	}
}

// sendVanishing posts a frame of which some pages, behind its headers, are not there.
func (v *userVM) sendVanishing(h virtio.NetHdr, frame []byte) {
	v.tb.Helper()
	const start = 1 << 20 // where the front-end has its memory, whose file begins there
	raw := make([]byte, virtio.HdrSize)
	h.Encode(raw)
	raw = append(raw, frame...)
	var list []vring.Buffer
	for i, part := range [][]byte{raw[:2000], raw[2000:]} {
		gpa, mem, err := v.Alloc(len(part), 1<<(20*i)) // the end lies apart from rings and headers
		if err != nil {
			v.tb.Fatal(err)
		}
		copy(mem, part)
		list = append(list, vring.Buffer{Addr: gpa, Len: uint32(len(part))})
	}
	v.next++
	if err := v.TX(0).Driver.Add(list, v.next); err != nil {
		v.tb.Fatal(err)
	}
	v.TX(0).Driver.Publish()
	if err := unix.Ftruncate(v.MemoryFile(), int64(list[1].Addr)-start+8192); err != nil {
		v.tb.Fatal(err)
	}
}

// A sender that rewrites its headers and its payload all the time gets no frame to its neighbour that is not from its own address, to the
// one that was judged, and legal. What else is in there is its own affair.
func TestASenderThatRewritesItsHeadersReachesItsNeighbourAsJudged(t *testing.T) {
	if raceEnabled {
		t.Skip("allowed: a guest writes to its memory without asking; that is what this test is about")
	}
	r, from, to := userPair(t)
	h, good := tsoTo(false, 20000, 1000)
	_, bad := tsoTo(true, 20000, 9, func(p *pt.TCP) { p.SrcMAC, p.DstMAC, p.Flags = macOf(9), macOf(8), pt.SYN|pt.CWR })
	lie := make([]byte, virtio.HdrSize)
	(&virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv6, GSOSize: 7, CsumStart: 6, CsumOffset: 1}).Encode(lie)
	bad = append(lie, bad...)
	gpa, mem := from.sendHeader(h, good)
	good = bytes.Clone(mem)
	stop := make(chan struct{})
	var guest sync.WaitGroup
	guest.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				copy(mem[:200], [][]byte{good, bad}[i%2])
			}
		}
	})
	frames, whole := 0, 0
	to.post(200, 2048)
	end := time.Now().Add(20 * time.Second)
	for i := 0; whole < 200 && time.Now().Before(end); i++ {
		r.step()
		r.nic.sent()
		for _, f := range to.received() {
			frames++
			if [6]byte(f.data[6:12]) != macOf(1) || [6]byte(f.data) != macOf(2) {
				t.Fatalf("a frame from %x to %x", f.data[6:12], f.data[:6])
			}
			if err := virtio.CheckRx(&f.hdr, f.data, allFeatures&^(1<<virtio.FRSCExt)); f.hdr.GSOType != 0 && err != nil {
				t.Fatalf("%v: %+v, %x", err, f.hdr, head(f.data))
			}
			if f.hdr.GSOType != 0 {
				whole++
			}
			to.post(int(f.hdr.NumBuffers), 2048)
		}
		for {
			if _, _, ok := from.TX(0).Driver.Used(); !ok {
				break
			}
		}
		from.next++
		if from.TX(0).Driver.Add([]vring.Buffer{{Addr: gpa, Len: uint32(len(mem))}}, from.next) == nil {
			from.TX(0).Driver.Publish()
		}
	}
	close(stop)
	guest.Wait()
	if whole < 200 {
		t.Errorf("%d frames, %d of them superframes", frames, whole)
	}
}

// A sleep in a copy between two VMs' memory is nobody's debt, as nobody knows whose it was; but it is rare: for so long afterwards their
// frames are copied in two steps, and whose memory sleeps then is found out.
func TestASleepBetweenTwoMemoriesIsNeithersDebt(t *testing.T) {
	r := newRig(t)
	s, g := r.neighbours(HeadRoom, rules())
	r.w.wary = true
	r.sleeper(g, 2*time.Millisecond, true)
	h, frame := tsoTo(false, 20000, 1448)
	s.send(h, frame)
	r.step()
	p, q := r.w.ports[1], r.w.ports[2]
	if p.cnt.StalledNS != 0 || q.cnt.StalledNS != 0 || len(g.take()) != 1 {
		t.Fatalf("booked %d and %d", p.cnt.StalledNS, q.cnt.StalledNS)
	}
	for r.now.Load() < int64(30*time.Millisecond) {
		s.send(h, frame)
		r.step()
		r.advance(time.Millisecond)
	}
	if p.cnt.StalledNS != 0 || q.cnt.StalledNS < 10e6 {
		t.Errorf("then the sender is booked %d ns, the receiver %d", p.cnt.StalledNS, q.cnt.StalledNS)
	}
	g.refuse = nil
	r.advance(time.Minute)
	s.send(h, frame)
	r.step()
	if p.apart > r.w.now || len(g.take()) == 0 {
		t.Error("it never ends")
	}
}
