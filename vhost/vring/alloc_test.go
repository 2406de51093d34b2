package vring_test

import (
	"testing"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

// loop is a driver and a device in one goroutine that move a burst of chains back and forth.
type loop struct {
	drv   *vring.Driver
	dev   vring.Device
	bufs  []vring.Buffer
	c     vring.Chain
	used  [1]vring.Used
	burst int
}

// push completes the chain in hand.
func (l *loop) push(written uint32) {
	l.used[0] = vring.Used{Head: l.c.Head, Written: written}
	l.dev.Push(l.used[:])
}

func newLoop(tb testing.TB, f virtio.Features, pieces, burst int) *loop {
	g := vringtest.New(vringtest.Options{Num: 256, Features: f, Indirect: 32})
	drv, err := g.Driver()
	if err != nil {
		tb.Fatal(err)
	}
	dev, err := g.Device()
	if err != nil {
		tb.Fatal(err)
	}
	l := &loop{drv: drv, dev: dev, burst: burst}
	for range pieces {
		l.bufs = append(l.bufs, vring.Buffer{Addr: g.Alloc(1536), Len: 1536, Writable: true})
	}
	return l
}

func (l *loop) turn(tb testing.TB) {
	for i := range l.burst {
		if err := l.drv.Add(l.bufs, uint64(i)); err != nil {
			tb.Fatal(err)
		}
	}
	l.drv.Publish()
	m := l.dev.Mark()
	if ok, _ := l.dev.Next(&l.c); !ok {
		tb.Fatal("no chain")
	}
	l.dev.Rewind(m)
	for {
		ok, err := l.dev.Next(&l.c)
		if err != nil {
			tb.Fatal(err)
		}
		if !ok {
			break
		}
		l.push(100)
	}
	l.dev.Publish()
	l.dev.EnableNotify()
	l.dev.DisableNotify()
	for {
		if _, _, ok := l.drv.Used(); !ok {
			break
		}
	}
	l.drv.EnableCalls()
	l.drv.DisableCalls()
}

// A benchmark would only report an allocation; this fails.
func TestNoAllocationOnTheDataPath(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, f := range []virtio.Features{0, virtio.Mask(virtio.FIndirectDesc, virtio.FEventIdx), virtio.Mask(virtio.FIndirectDesc, virtio.FLogAll)} {
		for _, pieces := range []int{1, 19} {
			l := newLoop(t, f, pieces, 8)
			if n := testing.AllocsPerRun(100, func() { l.turn(t) }); n != 0 {
				t.Errorf("%v, %d buffers a chain: %v allocations", f.Names(), pieces, n)
			}
		}
	}
}

// A hostile chain must not make us allocate either, or a guest could feed our garbage collector.
func TestNoAllocationForHostileChains(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	g := vringtest.New(vringtest.Options{Num: 2048})
	for i := range 2048 {
		g.Set(i, vringtest.Desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: uint16(i+1) & 2047})
	}
	g.SetAvail(0, 1)
	var c vring.Chain
	var devices []vring.Device // an error stays
	for range 1 + 10 {
		d, _ := g.Device()
		devices = append(devices, d)
	}
	n := testing.AllocsPerRun(10, func() {
		d := devices[0]
		devices = devices[1:]
		if _, err := d.Next(&c); err != vring.ErrTooManySegments {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// ns/chain of the device side alone: Next, Push and its share of Publish, for chains of one 1536-byte receive buffer.
func BenchmarkDeviceNextPushPublish(b *testing.B) {
	for _, bm := range []struct {
		name   string
		f      virtio.Features
		pieces int
	}{
		{"direct/pieces=1", virtio.Mask(virtio.FEventIdx), 1},
		{"direct/pieces=4", virtio.Mask(virtio.FEventIdx), 4},
		{"indirect/pieces=19", virtio.Mask(virtio.FEventIdx, virtio.FIndirectDesc), 19},
	} {
		b.Run(bm.name, func(b *testing.B) {
			const burst = 32
			l := newLoop(b, bm.f, bm.pieces, burst)
			for i := range burst {
				if err := l.drv.Add(l.bufs, uint64(i)); err != nil {
					b.Fatal(err)
				}
			}
			l.drv.Publish()
			first := l.dev.Mark()
			b.ReportAllocs()
			for i := 0; i < b.N; i += burst {
				for range burst {
					if ok, err := l.dev.Next(&l.c); !ok {
						b.Fatal(err)
					}
					l.push(1536)
				}
				l.dev.Publish()
				l.dev.Rewind(first) // the same chains again; the driver is not looking
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64((b.N+burst-1)/burst*burst), "ns/chain")
		})
	}
}

func BenchmarkDriverAndDevice(b *testing.B) {
	l := newLoop(b, virtio.Mask(virtio.FEventIdx), 1, 32)
	for i := 0; i < b.N; i += 32 {
		l.turn(b)
	}
}
