package datapath

import "testing"

// BenchmarkTwoWorkers is a segment's way (see BenchmarkSegmentToGuest, 64 flows) through two workers at once, each with a NIC queue, a guest and
// a core of its own: "ns/seg" is the mean of the two, "alone-ns/seg" that of one while the other rests, and "workers" how many of those that
// rest the two are worth. 2 is nothing in common, neither a lock nor a cache line; below it is what cores and memory share.
func BenchmarkTwoWorkers(b *testing.B) {
	other := otherCore(b)
	rigs := [2]*segRig{newSegRig(b, 64, true), newSegRig(b, 64, true)}
	on := [2]func(func()){func(run func()) { run() }, other}
	run := func(r *segRig, m *meter) func() {
		return func() {
			for left := b.N; left > 0; left -= BurstFrames {
				m.add(r.burst(b))
			}
		}
	}
	var alone, both [2]meter
	for i, r := range rigs {
		on[i](func() {
			for range warmUp(64) {
				r.burst(b)
			}
		})
	}
	b.ResetTimer()
	for i, r := range rigs {
		on[i](run(r, &alone[i]))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		on[1](run(rigs[1], &both[1]))
	}()
	on[0](run(rigs[0], &both[0]))
	<-done
	b.StopTimer()
	workers := 0.0
	for i := range rigs {
		workers += alone[i].perSegment() / both[i].perSegment()
	}
	b.ReportMetric((both[0].perSegment()+both[1].perSegment())/2, "ns/seg")
	b.ReportMetric((alone[0].perSegment()+alone[1].perSegment())/2, "alone-ns/seg")
	b.ReportMetric(workers, "workers")
	b.ReportMetric(0, "ns/op")
}
