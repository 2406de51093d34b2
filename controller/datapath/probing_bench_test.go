package datapath

import (
	"fmt"
	"testing"
)

// BenchmarkSegmentToGuestProbed is BenchmarkSegmentToGuest with 64 flows while somebody listens: to each kind, read between the bursts, and
// not read at all, so that the ring is full. Each burst is followed by one of a worker that nobody listens to, so "ratio" is what
// listening costs.
func BenchmarkSegmentToGuestProbed(b *testing.B) {
	for kind, name := range []string{ProbeFates: "fates", ProbeWire: "wire", ProbeGuest: "guest"} {
		for _, read := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s,read=%t", name, read), func(b *testing.B) {
				r, plain := newSegRig(b, 64, true), newSegRig(b, 64, true)
				cfg := ProbeConfig{Kind: ProbeKind(kind), Memory: 4 << 20}
				if cfg.Kind != ProbeFates {
					cfg.SnapLen = MaxSnapLen
				}
				pr := NewProbe(cfg)
				r.w.ports[0].probes = []*Probe{pr}
				var rec ProbeRecord
				burst := func(m *meter) {
					m.add(r.burst(b))
					for read && pr.Next(&rec) {
					}
				}
				var listened, alone meter
				for range warmUp(64) {
					burst(&listened)
					plain.burst(b)
				}
				listened = meter{}
				for left := b.N; left > 0; left -= BurstFrames {
					burst(&listened)
					alone.add(plain.burst(b))
				}
				if read && pr.Lost() > 0 {
					b.Fatalf("%d lost", pr.Lost())
				}
				b.ReportMetric(listened.perSegment(), "ns/seg")
				b.ReportMetric(listened.perSegment()/alone.perSegment(), "ratio")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
