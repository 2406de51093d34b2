package bpf

import (
	"testing"

	netnstest "github.com/rscctl/rscctl/test/netns"
)

// BenchmarkFrame is what XDP costs for one frame, as the kernel measures it: parse, look-ups, count, metadata, redirect.
func BenchmarkFrame(b *testing.B) {
	netnstest.Need(b, netnstest.BPF, netnstest.AFXDP)
	for _, c := range []struct {
		name  string
		flags uint32
	}{{"steered", FlagSteer}, {"passed", 0}} {
		b.Run(c.name, func(b *testing.B) {
			p := loadForTest(b)
			socketFor(b, p)
			p.mustSetPort(b, 0, PortValue{Port: 3, Flags: c.flags})
			frame := ip4(6, 0x4000, nil, tcp(8, 0x18, 1400))
			var ns int64
			for b.Loop() {
				_, took, err := p.prog.Benchmark(frame, 256, nil)
				if err != nil {
					b.Fatal(err)
				}
				ns += took.Nanoseconds()
			}
			b.ReportMetric(float64(ns)/float64(b.N), "ns/frame")
		})
	}
}
