package flowtable_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// segments cuts a frame into packets.
func segments(t *testing.T, frags [][]byte, g flowtable.GSO) [][]byte {
	t.Helper()
	var s flowtable.Segmenter
	if err := s.Init(frags, g); err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	dst := make([]byte, 1<<17)
	for {
		n, ok, err := s.Next(dst)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return all
		}
		all = append(all, append([]byte(nil), dst[:n]...))
	}
}

// The packets a guest's superframe stands for: CWR on the first, FIN and PSH on the last, IDs and sequence numbers count.
func TestSegmenterWritesWhatTheWireCarries(t *testing.T) {
	type expect = func(p *pt.TCP, i, n int)
	for _, c := range []struct {
		name   string
		frame  pt.TCP
		gso    flowtable.GSO
		expect expect
	}{
		{"plain", pt.TCP{}, flowtable.GSO{}, func(*pt.TCP, int, int) {}},
		{"timestamps", pt.TCP{Opts: pt.Timestamps(1, 2)}, flowtable.GSO{}, func(*pt.TCP, int, int) {}},
		{"40 bytes of options", pt.TCP{Opts: make([]byte, 40)}, flowtable.GSO{}, func(*pt.TCP, int, int) {}},
		{"tag", pt.TCP{Tags: []uint16{0x2005}}, flowtable.GSO{}, func(*pt.TCP, int, int) {}},
		{"PSH and FIN on the last", pt.TCP{Flags: pt.ACK | pt.PSH | pt.FIN}, flowtable.GSO{}, func(p *pt.TCP, i, n int) {
			if p.Flags = pt.ACK; i == n-1 {
				p.Flags |= pt.PSH | pt.FIN
			}
		}},
		{"CWR on the first, ECE and NS on all", pt.TCP{Flags: pt.ACK | pt.CWR | pt.ECE | pt.NS}, flowtable.GSO{Type: ecnBit}, func(p *pt.TCP, i, n int) {
			if p.Flags = pt.ACK | pt.ECE | pt.NS; i == 0 {
				p.Flags |= pt.CWR
			}
		}},
		{"everything at once", pt.TCP{Flags: pt.ACK | pt.CWR | pt.FIN | pt.PSH}, flowtable.GSO{Type: ecnBit}, func(p *pt.TCP, i, n int) {
			p.Flags = pt.ACK
			if i == 0 {
				p.Flags |= pt.CWR
			}
			if i == n-1 {
				p.Flags |= pt.FIN | pt.PSH
			}
		}},
		{"ID and sequence wrap", pt.TCP{ID: 0xffff, Seq: 0xffffff00}, flowtable.GSO{}, func(*pt.TCP, int, int) {}},
		{"fixed ID", pt.TCP{ID: 0xffff}, flowtable.GSO{FixedID: true}, func(p *pt.TCP, i, n int) { p.ID = 0xffff }},
		{"all other fields stay", pt.TCP{TOS: 0xff, TTL: 3, Urgent: 7, Win: 5, Ack: 9, NoDF: true, FlowLabel: 0xabcde}, flowtable.GSO{}, func(*pt.TCP, int, int) {}},
		{"IP length 0", pt.TCP{ZeroIPLength: true}, flowtable.GSO{}, func(p *pt.TCP, i, n int) { p.ZeroIPLength = false }},
	} {
		for _, v6 := range []bool{false, true} {
			for _, size := range []int{1, 99, 100, 536, 1000, 1001, 65000} {
				const length = 1000
				f := c.frame
				f.V6, f.Len, f.Partial = v6, length, true
				g := c.gso
				g.Size = uint16(size)
				if g.Type |= tcpv4; v6 {
					g.Type += tcpv6 - tcpv4
				}
				frame := f.Frame()
				got := segments(t, [][]byte{frame}, g)
				n := (length + size - 1) / size
				if len(got) != n {
					t.Fatalf("%s: %d packets of %d", c.name, len(got), n)
				}
				for i := range got {
					want := f
					want.Partial = false
					want.Seq, want.ID = f.Seq+uint32(i*size), f.ID+uint16(i)
					want.Len = min(size, length-i*size)
					c.expect(&want, i, n)
					if w := want.Frame(); !bytes.Equal(got[i], w) {
						t.Fatalf("%s, IPv6 %v, packet %d of %d:\n got %x\nwant %x", c.name, v6, i, n, got[i], w)
					}
				}
			}
		}
	}
}

// Headers and payload may be cut into fragments anywhere.
func TestSegmenterTakesAnyFragments(t *testing.T) {
	f := pt.TCP{V6: true, Tags: []uint16{5}, Opts: pt.Timestamps(1, 2), Len: 500, Partial: true}.Frame()
	g := flowtable.GSO{Type: tcpv6, Size: 123}
	want := segments(t, [][]byte{f}, g)
	same := func(name string, frags [][]byte) {
		t.Helper()
		got := segments(t, frags, g)
		if len(got) != len(want) {
			t.Fatalf("%s: %d packets", name, len(got))
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("%s: packet %d differs", name, i)
			}
		}
	}
	for at := range f {
		same(fmt.Sprintf("cut at %d", at), [][]byte{f[:at], f[at:]})
		same(fmt.Sprintf("cut at %d, with nothing between", at), [][]byte{nil, f[:at], nil, {}, f[at:], nil})
	}
	var bytewise [][]byte
	for i := range f {
		bytewise = append(bytewise, f[i:i+1])
	}
	same("byte by byte", bytewise)
}

func TestSegmenterRefusesWhatContradictsItself(t *testing.T) {
	b := pt.TCP{Len: 100, Partial: true}
	six := pt.TCP{V6: true, Len: 100, Partial: true}
	cutTo := func(f []byte, n int) []byte { return f[:n] }
	for _, c := range []struct {
		name  string
		frame []byte
		gso   flowtable.GSO
		want  error
	}{
		{"gso_size 0", b.Frame(), flowtable.GSO{Type: tcpv4}, flowtable.ErrGSOSize},
		{"type 0", b.Frame(), flowtable.GSO{Size: 10}, flowtable.ErrGSOType},
		{"type ECN alone", b.Frame(), flowtable.GSO{Type: ecnBit, Size: 10}, flowtable.ErrGSOType},
		{"type UDP", b.Frame(), flowtable.GSO{Type: 3, Size: 10}, flowtable.ErrGSOType},
		{"type UDP_L4", b.Frame(), flowtable.GSO{Type: 5, Size: 10}, flowtable.ErrGSOType},
		{"IPv4 called IPv6", b.Frame(), flowtable.GSO{Type: tcpv6, Size: 10}, flowtable.ErrGSOType},
		{"IPv6 called IPv4", six.Frame(), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOType},
		{"UDP in IPv4", pt.UDP{Len: 100}.Frame(), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOType},
		{"UDP in IPv6", pt.UDP{V6: true, Len: 100}.Frame(), flowtable.GSO{Type: tcpv6, Size: 10}, flowtable.ErrGSOType},
		{"no bytes", nil, flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOHeader},
		{"17 bytes", cutTo(b.Frame(), 17), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOHeader},
		{"IPv4 header cut", cutTo(b.Frame(), 33), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOHeader},
		{"IPv6 header cut", cutTo(six.Frame(), 53), flowtable.GSO{Type: tcpv6, Size: 10}, flowtable.ErrGSOHeader},
		{"IPv4 length too long", b.With(func(p *pt.TCP) { p.IPLenDelta = 1 }).Frame(), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOLength},
		{"IPv4 length too short", b.With(func(p *pt.TCP) { p.IPLenDelta = -1 }).Frame(), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOLength},
		{"IPv6 length too short", six.With(func(p *pt.TCP) { p.IPLenDelta = -1 }).Frame(), flowtable.GSO{Type: tcpv6, Size: 10}, flowtable.ErrGSOLength},
		{"IPv4 version", b.With(func(p *pt.TCP) { p.Version = 5 }).Frame(), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOHeader},
		{"IHL 4", b.With(func(p *pt.TCP) { p.IHL = 4 }).Frame(), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOHeader},
		{"fragment", b.With(func(p *pt.TCP) { p.MF = true }).Frame(), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOHeader},
		{"IPv6 fragment", six.With(func(p *pt.TCP) { p.Ext = []pt.Ext{pt.FragmentHeader(0, true, 1)} }).Frame(), flowtable.GSO{Type: tcpv6, Size: 10}, flowtable.ErrGSOType},
		{"data offset 4", b.With(func(p *pt.TCP) { p.Doff = 4 }).Frame(), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOHeader},
		{"data offset beyond the frame", pt.TCP{Len: 3, Doff: 15}.Frame(), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOHeader},
		{"two tags", pt.TCP{Tags: []uint16{1, 2}, Len: 100}.Frame(), flowtable.GSO{Type: tcpv4, Size: 10}, flowtable.ErrGSOType},
		{"extension headers without end", append(six.With(func(p *pt.TCP) {
			for i := range uint32(9) {
				p.Ext = append(p.Ext, pt.DstOpts(i))
			}
		}).Frame(), nil...), flowtable.GSO{Type: tcpv6, Size: 10}, flowtable.ErrGSOHeader},
	} {
		var s flowtable.Segmenter
		if err := s.Init([][]byte{c.frame}, c.gso); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if n, ok, err := s.Next(make([]byte, 2000)); n != 0 || ok || err != nil || s.Count() != 0 && c.want == nil {
			t.Errorf("%s: a packet came out of a refused frame", c.name)
		}
	}
}

// Frames of the largest length, and the shortest destination that is enough.
func TestSegmenterLimits(t *testing.T) {
	f := pt.TCP{Len: 65535 - 40, Partial: true}.Frame()
	if got := segments(t, [][]byte{f}, flowtable.GSO{Type: tcpv4, Size: 1448}); len(got) != 46 {
		t.Errorf("%d packets", len(got))
	}
	if got := segments(t, [][]byte{f}, flowtable.GSO{Type: tcpv4, Size: 65535}); len(got) != 1 || binary.BigEndian.Uint16(got[0][16:]) != 65535 {
		t.Errorf("%d packets", len(got))
	}
	var s flowtable.Segmenter
	f = pt.TCP{Len: 100, Partial: true}.Frame()
	if err := s.Init([][]byte{f}, flowtable.GSO{Type: tcpv4, Size: 60}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Next(make([]byte, 54+59)); !errors.Is(err, flowtable.ErrShort) {
		t.Errorf("one byte too few: %v", err)
	}
	for _, want := range []int{54 + 60, 54 + 40} { // nothing was lost by the refusal
		if n, ok, err := s.Next(make([]byte, want)); n != want || !ok || err != nil {
			t.Errorf("%d, %v, %v; want %d bytes", n, ok, err, want)
		}
	}
	// An empty payload is still one packet: a guest may describe a lone FIN so.
	if got := segments(t, [][]byte{pt.TCP{Flags: pt.ACK | pt.FIN, Partial: true}.Frame()}, flowtable.GSO{Type: tcpv4, Size: 60}); len(got) != 1 ||
		!bytes.Equal(got[0], pt.TCP{Flags: pt.ACK | pt.FIN}.Frame()) {
		t.Errorf("empty payload: %x", got)
	}
}
