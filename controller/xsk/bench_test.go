package xsk

import (
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkRings is one burst of 64 frames through fill and RX ring and back to the pool, both sides of the rings on one core.
func BenchmarkRings(b *testing.B) {
	const burst = 64
	s, k := fakeSocket(4096, 2048, 1024, 1024)
	var d [burst]Desc
	var addrs [burst]uint64
	b.ReportAllocs()
	for b.Loop() {
		s.Refill()
		n := consume(&k.fill, addrs[:])
		for _, a := range addrs[:n] {
			k.rx.put(Desc{Addr: a + Headroom, Len: 1514})
		}
		k.rx.publish()
		for _, d := range d[:s.Recv(d[:])] {
			s.Free(d.Addr)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/burst, "ns/seg")
}

// BenchmarkJumboRings is one burst of 64 frames of 9,014 bytes: three chunks of each become one frame in a buffer, and go back to the pool.
func BenchmarkJumboRings(b *testing.B) {
	const burst, pieces, last = 64, 3, 9014 - 2*(LargeChunk-Headroom)
	m := heap(4096, LargeChunk, 2048)
	m.frame = FrameFor(9000)
	m.umem = make([]byte, 4096*LargeChunk+1024*m.frame)
	s := m.socket(2048, 1024)
	k := m.kernel(s)
	var d [burst]Desc
	var addrs [burst * pieces]uint64
	b.ReportAllocs()
	b.SetBytes(burst * 9014)
	for b.Loop() {
		s.Refill()
		n := consume(&k.fill, addrs[:])
		for i, a := range addrs[:n] {
			e := &k.rx.entries[k.rx.cachedP&k.rx.mask]
			if i%pieces == pieces-1 {
				*e = ringDesc{a + Headroom, last, 0}
			} else {
				*e = ringDesc{a + Headroom, LargeChunk - Headroom, unix.XDP_PKT_CONTD}
			}
			k.rx.cachedP++
		}
		k.rx.publish()
		got := 0
		for got < n/pieces {
			m := s.Recv(d[:])
			got += m
			for _, d := range d[:m] {
				s.Free(d.Addr)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/burst, "ns/frame")
}
