package flowtable_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

const (
	benchPayload = 1448
	benchTrain   = 16 // segments of a flow until PSH
	benchBurst   = 64
	benchChunk   = 2048

	// A burst of some microseconds that took this long was interrupted: it says something of the machine's other work only.
	benchInterrupted = 100 * time.Microsecond
)

// BenchmarkCoalesce is verify, match and seal of interleaved trains: one segment of each flow in turn, 1,448 bytes of payload
// with timestamps, PSH on every sixteenth. The packets of a burst are written to their chunks just before the clock runs, as
// the kernel does, so headers and payload are about as warm as they come from AF_XDP.
func BenchmarkCoalesce(b *testing.B) { benchmarkCoalesce(b, false) }

// BenchmarkCoalesceNoVerify is the same without checksums: the table's own work.
func BenchmarkCoalesceNoVerify(b *testing.B) { benchmarkCoalesce(b, true) }

func benchmarkCoalesce(b *testing.B, noVerify bool) {
	for _, flows := range []int{1, 16, 64, 256, 1024, 4096} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) { newBenchRig(b, flows, noVerify).run(b) })
	}
}

// benchRig is a table with the memory around it: chunks used last in, first out, as a UMEM is.
type benchRig struct {
	table *flowtable.Table
	free  []uint64
	mem   []byte
	chunk int

	template []byte
	info     packet.Info
	noVerify bool

	flows, flow, step int
	burst             [benchBurst]flowtable.Packet
	segments, frames  int
}

func newBenchRig(b *testing.B, flows int, noVerify bool) *benchRig {
	b.Helper()
	r := &benchRig{flows: flows, noVerify: noVerify, chunk: benchChunk}
	chunks := flows*benchTrain + 2*benchBurst
	if noVerify {
		// Payload is not read, so chunks may overlap: the machine need not have the memory for payload nobody looks at.
		r.chunk = 256
	}
	r.mem = make([]byte, chunks*r.chunk+benchChunk)
	for i := chunks - 1; i >= 0; i-- {
		r.free = append(r.free, uint64(i*r.chunk))
	}
	var err error
	r.table, err = flowtable.New(flowtable.Config{MaxHeld: chunks, Ports: 1, NoVerify: noVerify}, r)
	if err != nil {
		b.Fatal(err)
	}
	c := flowtable.DefaultPortConfig()
	c.GuestCsum, c.TSO4, c.Hold = true, true, time.Hour
	if err := r.table.SetPort(0, c, 0); err != nil {
		b.Fatal(err)
	}
	r.template = pt.TCP{Seq: 0, Len: benchPayload, Opts: pt.Timestamps(7, 8)}.Frame()
	packet.Parse(r.template, &r.info)
	return r
}

// Deliver gives the chunks back at once, as if the guest had taken the frame.
func (r *benchRig) Deliver(sf *flowtable.Superframe) {
	r.table.Ledger(sf.Port).Deliver(&sf.Entry)
	r.frames++
	r.segments += len(sf.Refs)
	r.free = append(r.free, sf.Refs...)
}

// fill writes the next n packets, one of each flow in turn.
func (r *benchRig) fill(n int) {
	hdr := len(r.template) - benchPayload
	for i := range n {
		p := &r.burst[i]
		p.Ref = r.free[len(r.free)-1]
		r.free = r.free[:len(r.free)-1]
		p.Data = r.mem[p.Ref : p.Ref+uint64(len(r.template)) : p.Ref+uint64(len(r.template))]
		copy(p.Data, r.template[:hdr])
		if !r.noVerify {
			copy(p.Data[hdr:], r.template[hdr:])
		}
		p.Info = r.info
		step := r.step
		// Each change is made good in the checksums, so that the template's stay right.
		set16 := func(at, check int, v uint16) {
			from := binary.BigEndian.Uint16(p.Data[at:])
			binary.BigEndian.PutUint16(p.Data[at:], v)
			sum := uint32(^binary.BigEndian.Uint16(p.Data[check:])) + uint32(^from) + uint32(v)
			sum = sum>>16 + sum&0xffff
			binary.BigEndian.PutUint16(p.Data[check:], ^uint16(sum>>16+sum))
		}
		seq := uint32(step) * benchPayload
		set16(18, 24, uint16(step))
		set16(34, 50, uint16(1024+r.flow))
		set16(38, 50, uint16(seq>>16))
		set16(40, 50, uint16(seq))
		if step%benchTrain == benchTrain-1 {
			set16(46, 50, binary.BigEndian.Uint16(p.Data[46:])|pt.PSH)
			p.Info.TCPFlags |= pt.PSH
		}
		if r.flow++; r.flow == r.flows {
			r.flow = 0
			r.step++
		}
	}
}

func (r *benchRig) run(b *testing.B) {
	for range max(1, r.flows*benchTrain/benchBurst) { // one round of every train, so that memory is in place
		r.once(benchBurst)
	}
	r.segments, r.frames = 0, 0
	var spent time.Duration
	counted := 0
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; left -= benchBurst {
		n := min(left, benchBurst)
		if d := r.once(n); d < benchInterrupted {
			spent += d
			counted += n
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(spent.Nanoseconds())/float64(max(counted, 1)), "ns/seg")
	if r.frames > 0 {
		b.ReportMetric(float64(r.segments)/float64(r.frames), "seg/frame")
	}
}

func (r *benchRig) once(n int) time.Duration {
	r.fill(n)
	start := time.Now()
	for i := range n {
		r.table.Add(&r.burst[i], 1)
	}
	r.table.EndBurst(1)
	return time.Since(start)
}
