package flowtable_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// TestKernelSegmentsSuperframes is the other direction: superframes sent through a device without TSO come out of the
// kernel's segmentation as the packets that went into the table.
func TestKernelSegmentsSuperframes(t *testing.T) {
	k := openKernelTap(t)
	noDF := func(in func(pt.TCP) []any) func(pt.TCP) []any {
		return func(b pt.TCP) []any { b.NoDF = true; return in(b) }
	}
	tagged := func(tci uint16, in func(pt.TCP) []any) func(pt.TCP) []any {
		return func(b pt.TCP) []any { b.Tags = []uint16{tci}; return in(b) }
	}
	long := append([]byte{253, 40}, make([]byte, 38)...)
	for _, c := range []struct {
		name string
		in   func(b pt.TCP) []any
	}{
		{"train", steady},
		{"timestamps", always(func(p *pt.TCP) { p.Opts = pt.Timestamps(1, 2) })},
		{"short last", lens(1448, 1448, 1448, 7)},
		{"odd sizes", lens(101, 101, 101, 99)},
		{"PSH", func(b pt.TCP) []any { t := b.Train(4); t[3].Flags = pt.ACK | pt.PSH; return packets(t...) }},
		{"FIN", func(b pt.TCP) []any { t := b.Train(4); t[3].Flags = pt.ACK | pt.FIN | pt.PSH; return packets(t...) }},
		{"ECE and ECT", always(func(p *pt.TCP) { p.Flags, p.TOS = pt.ACK|pt.ECE, 2 })},
		{"ID and sequence wrap", func(b pt.TCP) []any { b.ID, b.Seq = 0xfffe, 0xffffff00; return steady(b) }},
		{"without DF", noDF(steady)},
		{"40 bytes of options", always(func(p *pt.TCP) { p.Opts = long })},
		{"urgent pointer, reserved bit", always(func(p *pt.TCP) { p.Urgent, p.Flags = 7, pt.ACK|pt.Reserved })},
		{"flow label, DSCP, hop limit", always(func(p *pt.TCP) { p.FlowLabel, p.TOS, p.TTL = 0xabcde, 0xb8, 9 })},
		{"1 byte each", lens(1, 1, 1, 1)},
		{"1 byte last", lens(1448, 1448, 1)},
		{"jumbo", lens(8948, 8948, 8948, 5)},
		{"fixed ID", always(func(p *pt.TCP) { p.ID = 9 })},
		{"tagged", tagged(0x6005, steady)},
		{"tagged, VLAN 0", tagged(0x2000, lens(1448, 1448, 99))},
		{"tagged, 64 KiB", tagged(7, func(b pt.TCP) []any {
			var n []int
			for range 45 {
				n = append(n, 1448)
			}
			return lens(n...)(b)
		})},
		{"64 KiB", func(b pt.TCP) []any {
			var n []int
			for range 45 {
				n = append(n, 1448)
			}
			return lens(n...)(b)
		}},
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s ipv6=%v", c.name, v6), func(t *testing.T) {
				k := &kernelTap{t: t, tap: k.tap, sock: k.sock, buf: k.buf}
				cfg := negotiated(flowtable.GRO)
				cfg.Hold = time.Second
				r := newRunner(t, flowtable.Config{}, cfg)
				r.do(c.in(pt.TCP{V6: v6, Seq: 100, Ack: 100, ID: 7, Len: 100}))
				r.close()
				if len(r.out) != 1 || r.out[0].GSOType == 0 {
					t.Fatalf("not one superframe: %s", r.result())
				}
				k.send(&r.out[0])
				got := k.read(k.tap, len(r.in))
				for i := range got {
					f := got[i][vnetLen:]
					if r.out[0].FixedID { // no vnet header can say that; for datagrams with DF it does not matter (RFC 6864)
						setID(t, f, r.in[i].frame)
					}
					if !bytes.Equal(f, r.in[i].frame) {
						t.Errorf("packet %d: the kernel wrote\n%x\nit was\n%x", i, f[:min(len(f), 100)], r.in[i].frame[:min(len(f), 100)])
					}
				}
			})
		}
	}
}

// setID gives an IPv4 packet the ID of another.
func setID(t *testing.T, f, like []byte) {
	t.Helper()
	p, err := pt.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	q, err := pt.Read(like)
	if err != nil {
		t.Fatal(err)
	}
	p.ID = q.ID
	copy(f, p.Frame())
}
