package datapath

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// numbered is a frame of n bytes that says which one it is, and whose every byte follows from that.
func numbered(i uint32, n int) []byte {
	b := make([]byte, n)
	for at := range b {
		b[at] = byte(i) + byte(at)
	}
	binary.BigEndian.PutUint32(b, i)
	return b
}

// A writer that never waits and a reader that is sometimes slow: each record that arrives is whole and in order, and those that do
// not are counted.
func TestAProbeLosesAndCountsAndNeverMixes(t *testing.T) {
	const frames = 200000
	pr := NewProbe(ProbeConfig{SnapLen: 700, Memory: 40000})
	var wg sync.WaitGroup
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := range uint32(frames) {
			f := numbered(i, 4+rnd.IntN(900))
			if s := pr.stage(len(f), f[:3], f[3:]); s != nil {
				pr.publish()
			} else {
				pr.lose(1)
			}
		}
		pr.ended.Store(uint32(ProbePortGone))
	})
	got, last := uint64(0), -1
	var r ProbeRecord
	for {
		end := pr.Ended()
		if !pr.Next(&r) {
			if end != ProbeRuns {
				break
			}
			continue
		}
		i := binary.BigEndian.Uint32(r.Data)
		if int(i) <= last {
			t.Fatalf("record %d behind %d", i, last)
		}
		if want := numbered(i, r.Len); !bytes.Equal(r.Data, want[:min(r.Len, 700)]) {
			t.Fatalf("record %d of %d bytes is not what was written", i, r.Len)
		}
		last = int(i)
		got++
	}
	wg.Wait()
	if got+pr.Lost() != frames || got == 0 {
		t.Errorf("%d read and %d lost of %d", got, pr.Lost(), frames)
	}
}

// A ring of which nothing is read holds what it says, and has room again for as much as is read.
func TestAProbeIsFullWhenItsRecordsOrItsMemoryAre(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  ProbeConfig
		size int
		most int
	}{
		"records": {ProbeConfig{Memory: 1 << 20}, 60, ProbeRecords},
		"memory":  {ProbeConfig{SnapLen: 1000, Memory: 10000}, 1000, 10},
		"odd":     {ProbeConfig{SnapLen: 3000, Memory: 10000}, 3000, 3},
	} {
		t.Run(name, func(t *testing.T) {
			pr := NewProbe(c.cfg)
			write := func() (n int) {
				for pr.stage(c.size, make([]byte, c.size)) != nil {
					pr.publish()
					n++
				}
				return n
			}
			if n := write(); n != c.most {
				t.Fatalf("%d records, want %d", n, c.most)
			}
			var r ProbeRecord
			pr.Next(&r)
			for range 5 { // the place where the memory begins anew comes by
				if !pr.Next(&r) { // which gives the one before back
					t.Fatal("nothing to read")
				}
				if n := write(); n > 1 || n == 0 && name != "odd" {
					t.Fatalf("%d records fit where one was read", n)
				}
			}
			for pr.Next(&r) {
			}
			if n := write(); n < c.most-1 {
				t.Errorf("%d records fit an empty ring, want %d or one less", n, c.most)
			}
		})
	}
}

// What a guest did not take after all is not told; it is put again, and told then.
func TestAProbeTellsOfAPutOnceItHasArrived(t *testing.T) {
	pr := NewProbe(ProbeConfig{Kind: ProbeGuest, SnapLen: 100, Memory: 4096})
	put := func(ids ...uint32) {
		for _, i := range ids {
			pr.stagePut(100, [][]byte{numbered(i, 100)})
		}
	}
	read := func() (ids []uint32) {
		var r ProbeRecord
		for pr.Next(&r) {
			ids = append(ids, binary.BigEndian.Uint32(r.Data))
		}
		return ids
	}
	same := func(got []uint32, want ...uint32) {
		t.Helper()
		if len(got) != len(want) || len(got) > 0 && (got[0] != want[0] || got[len(got)-1] != want[len(want)-1]) {
			t.Errorf("read %v, want %v", got, want)
		}
	}
	put(1, 2, 3)
	same(read())
	pr.settle(2)
	same(read(), 1, 2)
	put(3, 4)
	pr.settle(2)
	same(read(), 3, 4)
	put(5)
	pr.settle(0)
	same(read())
	for i := range uint32(60) { // 40 of them fit
		put(10 + i)
	}
	pr.settle(50)
	if got := read(); len(got) < 38 || uint64(len(got))+pr.Lost() != 50 {
		t.Errorf("%d read and %d lost of 50", len(got), pr.Lost())
	}
	for range 1000 { // a guest without room takes no room here
		put(90)
		pr.settle(0)
	}
	put(91)
	pr.settle(1)
	same(read(), 91)
}

func TestAFlowIsReadAndChosen(t *testing.T) {
	addr := netip.MustParseAddr
	v4 := to(1, 100).With(func(p *pt.TCP) { p.SrcPort, p.DstPort = 4321, 443 })
	src4, ok := FlowOf(v4.Frame(), len(v4.Frame()))
	if !ok || src4.Src.Port() != 4321 || src4.Dst.Port() != 443 || !src4.Src.Addr().Is4() {
		t.Fatalf("flow %v, %v", src4, ok)
	}
	v6 := v4.With(func(p *pt.TCP) { p.V6 = true }).Frame()
	tagged := v4.With(func(p *pt.TCP) { p.Tags = []uint16{5} }).Frame()
	udp := pt.UDP{Len: 20}.Frame()
	for name, c := range map[string]struct {
		m     FlowMatch
		frame []byte
		want  bool
	}{
		"all":                   {FlowMatch{}, []byte("no frame at all"), true},
		"a port":                {FlowMatch{A: Endpoint{Port: 443}}, v4.Frame(), true},
		"its other end":         {FlowMatch{A: Endpoint{Port: 4321}}, v4.Frame(), true},
		"no such port":          {FlowMatch{A: Endpoint{Port: 80}}, v4.Frame(), false},
		"both ends, turned":     {FlowMatch{Endpoint{src4.Dst.Addr(), 443}, Endpoint{src4.Src.Addr(), 4321}}, v4.Frame(), true},
		"both ends, one wrong":  {FlowMatch{Endpoint{src4.Dst.Addr(), 443}, Endpoint{src4.Dst.Addr(), 0}}, v4.Frame(), false},
		"an address":            {FlowMatch{A: Endpoint{Addr: src4.Src.Addr()}}, tagged, true},
		"of the other family":   {FlowMatch{A: Endpoint{Addr: src4.Src.Addr()}}, v6, false},
		"a port, IPv6":          {FlowMatch{A: Endpoint{Port: 443}}, v6, true},
		"no IP":                 {FlowMatch{A: Endpoint{Port: 443}}, append(make([]byte, 12), 8, 6, 0, 1), false},
		"a port of UDP":         {FlowMatch{A: Endpoint{Port: binary.BigEndian.Uint16(udp[36:])}}, udp, true},
		"cut short":             {FlowMatch{A: Endpoint{Port: 443}}, v4.Frame()[:30], false},
		"an address, cut short": {FlowMatch{A: Endpoint{Addr: src4.Src.Addr()}}, v4.Frame()[:35], true},
		"nothing of it":         {FlowMatch{A: Endpoint{Addr: addr("::1")}}, nil, false},
	} {
		if got := c.m.hears([][]byte{c.frame}, 1500); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzFlowOf(f *testing.F) {
	f.Add(to(1, 10).Frame(), 1500)
	f.Add(to(1, 10).With(func(p *pt.TCP) { p.V6 = true }).Frame()[:60], 40)
	f.Fuzz(func(t *testing.T, head []byte, size int) {
		if flow, ok := FlowOf(head, size); ok && !flow.Src.Addr().IsValid() {
			t.Errorf("flow %v of %x", flow, head)
		}
	})
}
