package vhost_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// rxLoad is a guest that posts the same buffers again and again.
type rxLoad struct {
	ring *user.Ring
	bufs []vring.Buffer
	mem  [][]byte
}

func newRxLoad(t testing.TB, g *guest, size int) *rxLoad {
	l := &rxLoad{ring: g.RX(0)}
	n := l.ring.Layout().Num
	for range n {
		gpa, mem, err := g.Alloc(size, 64)
		if err != nil {
			t.Fatal(err)
		}
		l.bufs = append(l.bufs, vring.Buffer{Addr: gpa, Len: uint32(size), Writable: true})
		l.mem = append(l.mem, mem)
	}
	for i := range n {
		if err := l.ring.Driver.Add(l.bufs[i:i+1], uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	l.ring.Driver.Publish()
	l.ring.Driver.DisableCalls()
	return l
}

// repost gives back every used buffer.
func (l *rxLoad) repost(t testing.TB) {
	for {
		i, _, ok := l.ring.Driver.Used()
		if !ok {
			break
		}
		if err := l.ring.Driver.Add(l.bufs[i:i+1], i); err != nil {
			t.Fatal(err)
		}
	}
	l.ring.Driver.Publish()
}

// superframe is headers and the given number of 1448-byte segments, in pieces as they come from the wire.
func superframe(segs int) *virtio.Frame {
	f := &virtio.Frame{Len: 66 + 1448*segs}
	b := makeFrame(f.Len, 1)
	f.Frags = append(f.Frags, b[:66+1448:66+1448])
	f.Frags = append(f.Frags, cut(b[66+1448:], 1448)...)
	if segs == 1 {
		f.Frags = f.Frags[:1]
		return f
	}
	f.Hdr = virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, HdrLen: 66, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}
	return f
}

// BenchmarkDeliver measures frames into mergeable buffers, 1,024 of them in turn, 1.5 or 4 MiB together: of one segment and of 45, whose bytes are in the first
// cache. "copy-ns/seg" is a plain copy of the same bytes into buffers in the same order, and "ratio" the one over the other; the guest's own work is not in
// either. The copies come first, all of them: in turn with the product each would find the guest's memory in the cache, where the other has just put it.
func BenchmarkDeliver(b *testing.B) {
	for _, size := range []int{1536, 4096} {
		for _, segs := range []int{1, 45} {
			b.Run(fmt.Sprintf("buf=%d,segs=%d", size, segs), func(b *testing.B) {
				p, socket, _ := newPort(b, nil)
				g := newGuest(b, socket, func(c *user.FrontendConfig) { c.RingSize = 1024 }).start()
				load := newRxLoad(b, g, size)
				f, q := superframe(segs), p.RX(0)
				chains := (12 + f.Len + size - 1) / size
				burst := max(4, 64/segs)
				interrupted := time.Duration(burst*segs) * time.Microsecond // a burst that took so long says something of the machine's other work
				warm := 2 * 1024 / (chains * burst)
				var deliver, floor time.Duration
				var deliveries, copies int
				at := 0
				for i := -warm; i < b.N; i++ {
					start := time.Now()
					for range burst {
						at = copyInto(load.mem, at, f.Frags)
					}
					if d := time.Since(start); i >= 0 && d < interrupted {
						floor += d
						copies++
					}
				}
				b.ReportAllocs()
				for i := -warm; i < b.N; i++ {
					if i == 0 {
						b.ResetTimer()
					}
					start := time.Now()
					if !q.Begin() {
						b.Fatal("not running")
					}
					for range burst {
						if err := q.Put(f); err != nil {
							b.Fatal(err)
						}
					}
					q.Commit()
					if d := time.Since(start); i >= 0 && d < interrupted {
						deliver += d
						deliveries++
					}
					load.repost(b)
				}
				perSeg := func(d time.Duration, bursts int) float64 {
					return float64(d.Nanoseconds()) / float64(max(1, bursts)*burst*segs)
				}
				b.ReportMetric(perSeg(deliver, deliveries), "ns/seg")
				b.ReportMetric(perSeg(floor, copies), "copy-ns/seg")
				b.ReportMetric(perSeg(deliver, deliveries)/perSeg(floor, copies), "ratio")
				b.ReportMetric(0, "ns/op") // an op is a burst: says nothing
			})
		}
	}
}

// copyInto copies a frame into buffers from the one at on, and returns the next one.
func copyInto(bufs [][]byte, at int, frags [][]byte) (next int) {
	dst := bufs[at%len(bufs)]
	for _, src := range frags {
		for len(src) > 0 {
			if len(dst) == 0 {
				at++
				dst = bufs[at%len(bufs)]
			}
			n := copy(dst, src)
			src, dst = src[n:], dst[n:]
		}
	}
	return at + 1
}

// BenchmarkPoll measures the other direction: one frame a chain, copied out.
func BenchmarkPoll(b *testing.B) {
	for _, size := range []int{60, 1514, 65226} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			p, socket, _ := newPort(b, nil)
			g := newGuest(b, socket, nil).start()
			r := g.TX(0)
			bufs := make([]vring.Buffer, 64)
			for i := range bufs {
				gpa, _, err := g.Alloc(12+size, 64)
				if err != nil {
					b.Fatal(err)
				}
				bufs[i] = vring.Buffer{Addr: gpa, Len: uint32(12 + size)}
			}
			fn := func(*vhost.TxFrame) vhost.Next { return vhost.TakeOn }
			var spent time.Duration
			frames := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range bufs {
					if err := r.Driver.Add(bufs[i:i+1], 0); err != nil {
						b.Fatal(err)
					}
				}
				r.Driver.Publish()
				start := time.Now()
				for n := 0; n < 64; {
					k, _, err := p.TX(0).Poll(64, fn, nil)
					if k == 0 || err != nil {
						b.Fatal(k, err)
					}
					n += k
				}
				spent += time.Since(start)
				frames += 64
				for {
					if _, _, ok := r.Driver.Used(); !ok {
						break
					}
				}
			}
			b.ReportMetric(float64(spent.Nanoseconds())/float64(frames), "ns/frame")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func TestTheDataPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, f := range []virtio.Features{all, without(all, virtio.FEventIdx)} {
		p, socket, _ := newPort(t, nil)
		g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features, c.RingSize, c.Indirect = f, 256, 4 }).start()
		load := newRxLoad(t, g, 4096)
		sf := superframe(45)
		txGPA, _, err := g.Alloc(4096, 64)
		if err != nil {
			t.Fatal(err)
		}
		tx := []vring.Buffer{{Addr: txGPA, Len: 12}, {Addr: txGPA + 12, Len: 1514}}
		fn := func(*vhost.TxFrame) vhost.Next { return vhost.TakeOn }
		load.ring.Driver.EnableCalls()
		n := testing.AllocsPerRun(200, func() {
			q := p.RX(0)
			if !q.Begin() {
				t.Fatal("not running")
			}
			for range 20 { // more than fits
				_ = q.Put(sf)
			}
			arm(q)
			q.Commit()
			q.AckKick()
			load.repost(t)
			load.ring.Driver.EnableCalls()
			for range 8 {
				if err := g.TX(0).Driver.Add(tx, 0); err != nil {
					t.Fatal(err)
				}
			}
			g.TX(0).Driver.Publish()
			p.TX(0).DisarmKick()
			if n, _, err := p.TX(0).Poll(64, fn, nil); n != 8 || err != nil {
				t.Fatal(n, err)
			}
			p.TX(0).ArmKick()
			p.TX(0).AckKick()
			for {
				if _, _, ok := g.TX(0).Driver.Used(); !ok {
					break
				}
			}
		})
		if n != 0 {
			t.Errorf("%v allocations", n)
		}
		if c := p.Counters(); c.RxNoBuffers == 0 || c.Calls == 0 || c.RxFrames == 0 {
			t.Errorf("nothing happened: %+v", c)
		}
	}
}
