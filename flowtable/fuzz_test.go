package flowtable_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// FuzzTable lets the fuzzer make every choice of TestPropertiesOnRandomTraffic: configuration, streams, damage, time. Every
// packet must be explained exactly once, superframes of the gro profile must come apart bit for bit through a Segmenter too,
// and the oracle must agree.
func FuzzTable(f *testing.F) { fuzzTable(f, ordinary) }

// FuzzTableOfJumboSegments is that with the segments of a wire whose MTU is 9000: a superframe is full with seven of them.
func FuzzTableOfJumboSegments(f *testing.F) { fuzzTable(f, jumbo) }

func fuzzTable(f *testing.F, mss int) {
	f.Helper()
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		b := make([]byte, 64<<(seed%4))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b, seed%2 == 0)
	}
	f.Fuzz(func(t *testing.T, choices []byte, room bool) {
		if len(choices) > 1024 {
			return
		}
		exercise(t, &source{read: true, data: choices}, 2000, mss, true, room)
	})
}

// FuzzSegmenter gives any frame with any description. What is taken has to come out as whole packets whose payload is that
// of the frame, with checksums that a receiver finds right.
func FuzzSegmenter(f *testing.F) {
	add := func(p pt.TCP, kind uint8, size uint16, split uint16) { f.Add(p.Frame(), kind, size, false, split) }
	add(pt.TCP{Len: 1000, Partial: true}, 1, 100, 0)
	add(pt.TCP{V6: true, Len: 1001, Flags: pt.ACK | pt.CWR | pt.PSH, Partial: true}, 0x84, 100, 7)
	add(pt.TCP{Len: 300, Tags: []uint16{5}, Opts: pt.Timestamps(1, 2), ID: 0xffff}, 1, 299, 60)
	add(pt.TCP{Len: 0}, 1, 1, 1)
	add(pt.TCP{Len: 7 * 8948, Opts: pt.Timestamps(1, 2), Partial: true}, 1, 8948, 0)
	add(pt.TCP{V6: true, Len: 6*8928 + 1, Flags: pt.ACK | pt.PSH, Opts: pt.Timestamps(1, 2), Partial: true}, 4, 8928, 9000)
	add(pt.TCP{Len: 100, IPOpts: []byte{1, 1, 1, 1}}, 1, 33, 30)
	add(pt.TCP{V6: true, Len: 100, Ext: []pt.Ext{pt.HopByHop(), pt.DstOpts(1)}}, 4, 33, 30)
	add(pt.TCP{Len: 100, ZeroIPLength: true}, 1, 33, 30)
	add(pt.TCP{Len: 100, MF: true}, 1, 33, 30)
	f.Add(pt.UDP{Len: 1001, Partial: true}.Frame(), uint8(5), uint16(100), false, uint16(40))
	f.Add(pt.UDP{V6: true, Len: 7 * 1200, Partial: true}.Frame(), uint8(5), uint16(1200), false, uint16(70))
	f.Fuzz(func(t *testing.T, frame []byte, kind uint8, size uint16, fixed bool, split uint16) {
		if len(frame) > 1<<17 {
			return
		}
		at := min(int(split), len(frame))
		frags := [][]byte{frame[:at], nil, frame[at:]}
		original := append([]byte(nil), frame...)
		var s flowtable.Segmenter
		if err := s.Init(frags, flowtable.GSO{Type: kind, Size: size, FixedID: fixed}); err != nil {
			if n, ok, err := s.Next(make([]byte, 100)); n != 0 || ok || err != nil {
				t.Fatalf("after a refusal: %d, %v, %v", n, ok, err)
			}
			return
		}
		if size == 1 && len(frame) > 4096 {
			return // right, but slow
		}
		hdr := s.HeaderLen()
		want := frame[hdr:]
		dst := make([]byte, hdr+int(size))
		packets := 0
		for {
			n, ok, err := s.Next(dst)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			packets++
			if n < hdr || n > hdr+int(size) || !bytes.HasPrefix(want, dst[hdr:n]) {
				t.Fatalf("packet %d: payload is not the frame's", packets)
			}
			want = want[n-hdr:]
			whole(t, dst[:n], hdr)
		}
		if len(want) != 0 || packets != s.Count() {
			t.Fatalf("%d bytes left, %d packets of %d", len(want), packets, s.Count())
		}
		if !bytes.Equal(frame, original) {
			t.Fatal("the frame was changed")
		}
	})
}

// whole checks the lengths and checksums of one packet that a Segmenter wrote, as its receiver would.
func whole(tb testing.TB, f []byte, hdr int) {
	tb.Helper()
	l3 := 14
	if f[12] == 0x81 {
		l3 = 18
	}
	ip := f[l3:]
	proto, l4 := ip[9], int(ip[0]&15)*4
	if ip[0]>>4 == 6 {
		if got := int(binary.BigEndian.Uint16(ip[4:])); got != len(ip)-40 {
			tb.Fatalf("payload length %d of %d", got, len(ip)-40)
		}
		proto, l4 = upperBehind(ip)
	} else {
		if got := int(binary.BigEndian.Uint16(ip[2:])); got != len(ip) {
			tb.Fatalf("total length %d of %d", got, len(ip))
		}
		if binary.BigEndian.Uint16(ip[10:]) != pt.HeaderCheck(ip[:l4]) {
			tb.Fatal("IPv4 header checksum")
		}
	}
	if proto == 17 {
		udp, ends := ip[l4:], ip[12:20]
		if ip[0]>>4 == 6 {
			ends = ip[8:40]
		}
		if n := int(binary.BigEndian.Uint16(udp[4:])); n != len(udp) || l3+l4+8 != hdr {
			tb.Fatalf("UDP length %d of %d, headers of %d bytes, said %d", n, len(udp), l3+l4+8, hdr)
		}
		if binary.BigEndian.Uint16(udp[6:]) == 0 || pt.Sum(ends, []byte{0, 17}, udp[4:6], udp) != 0xffff {
			tb.Fatalf("UDP checksum %x", udp[6:8])
		}
		return
	}
	if got := int(ip[l4+12]>>4) * 4; l3+l4+got != hdr {
		tb.Fatalf("headers of %d bytes, said %d", l3+l4+got, hdr)
	}
	if got, want := binary.BigEndian.Uint16(ip[l4+16:]), pt.TCPCheck(ip, l4); got != want {
		tb.Fatalf("TCP checksum %04x, want %04x", got, want)
	}
}

// upperBehind walks extension headers whose lengths were checked.
func upperBehind(ip []byte) (proto uint8, l4 int) {
	next, off := ip[6], 40
	for next != 6 && next != 17 {
		next, off = ip[off], off+8+8*int(ip[off+1])
	}
	return next, off
}
