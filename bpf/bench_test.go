package bpf

import (
	"slices"
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
)

// framesOfABench are run at a time: the kernel waits for a while in front of each time, and what it has to fetch then is not to be seen.
const framesOfABench = 20000

// BenchmarkFrame is what XDP costs for one frame, as the kernel measures it: parse, look-ups, count, metadata, redirect.
func BenchmarkFrame(b *testing.B) {
	netnstest.Need(b, netnstest.BPF, netnstest.AFXDP)
	segment, datagram := ip4(6, 0x4000, nil, tcp(8, 0x18, 1400)), ip4(17, 0x4000, nil, make([]byte, 1400))
	foreign, multicast := slices.Clone(segment), slices.Clone(segment)
	foreign[5]++
	multicast[0] |= 1
	for _, c := range []struct {
		name  string
		flags uint32
		room  int
		frame []byte
	}{
		{"steered", FlagSteer, 0, segment}, {"steered with shares", FlagSteer, 2048, segment}, {"failing open", FlagSteer | FlagTCPOnly | FlagFailOpen, 2048, segment},
		{"passed", 0, 0, segment}, {"steered IPv6", FlagSteer, 2048, ip6(6, tcp(8, 0x18, 1400))}, {"steered UDP", FlagSteer, 2048, datagram}, {"passed UDP", 0, 0, datagram},
		{"for nobody", 0, 0, foreign}, {"multicast", 0, 0, multicast},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := loadForTest(b)
			socketFor(b, p)
			p.mustSetPort(b, 0, PortValue{Port: 3, Flags: c.flags})
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
				_, took, err := p.prog.Benchmark(c.frame, framesOfABench, nil)
				if err != nil {
					b.Fatal(err)
				}
				ns += took.Nanoseconds()
			}
			b.ReportMetric(float64(ns)/float64(b.N), "ns/frame")
		})
	}
}
