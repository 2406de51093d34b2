package bpf

import (
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
)

// BenchmarkFrame is what XDP costs for one frame, as the kernel measures it: parse, look-ups, count, metadata, redirect.
func BenchmarkFrame(b *testing.B) {
	netnstest.Need(b, netnstest.BPF, netnstest.AFXDP)
	for _, c := range []struct {
		name  string
		flags uint32
		room  int
	}{{"steered", FlagSteer, 0}, {"steered with shares", FlagSteer, 2048}, {"failing open", FlagSteer | FlagTCPOnly | FlagFailOpen, 2048}, {"passed", 0, 0}} {
		b.Run(c.name, func(b *testing.B) {
			p := loadForTest(b)
			socketFor(b, p)
			p.mustSetPort(b, 0, PortValue{Port: 3, Flags: c.flags})
			frame := ip4(6, 0x4000, nil, tcp(8, 0x18, 1400))
			var shares *Shares
			if c.room > 0 {
				var err error
				if shares, err = p.Shares(0, c.room, c.room); err != nil {
					b.Fatal(err)
				}
				defer shares.Close()
			}
			var ns int64
			for b.Loop() {
				if shares != nil { // the worker keeps up
					shares.Took(3, uint16(shares.queue.VMs[3].Admitted)-1, uint16(shares.queue.Admitted)-1)
					shares.Publish()
				}
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
