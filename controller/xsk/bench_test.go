package xsk

import "testing"

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
