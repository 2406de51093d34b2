package flowtable_test

import (
	"math/rand/v2"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// source makes choices: at random, or as a fuzzer's bytes say.
type source struct {
	rnd  *rand.Rand
	data []byte
	read bool // from data
}

// n is a number below most. When the bytes are used up it is 0.
func (s *source) n(most int) int {
	if !s.read {
		return s.rnd.IntN(most)
	}
	v := 0
	for m := most - 1; m > 0; m >>= 8 {
		if len(s.data) > 0 {
			v = v<<8 | int(s.data[0])
			s.data = s.data[1:]
		}
	}
	return v % most
}

func (s *source) one(in int) bool { return s.n(in) == in-1 }

func (s *source) done() bool { return s.read && len(s.data) == 0 }

// Longest segments of a wire's MTU, about.
const (
	ordinary = 1500
	jumbo    = 8960
)

// stream is a flow under way.
type stream struct {
	port  uint32
	p     pt.TCP // the next packet
	fixed bool   // its IPv4 ID stands still
}

// traffic is several streams over several ports, mostly well-behaved, with everything else in between.
type traffic struct {
	s       *source
	streams []stream
	hostile bool // with damaged frames
	mss     int  // of the longest segments, about
}

func newTraffic(s *source, ports, mss int, hostile bool) *traffic {
	t := &traffic{s: s, hostile: hostile, mss: mss}
	for i := range 1 + s.n(8) {
		p := pt.TCP{
			V6: s.one(2), Seq: uint32(s.n(1<<16)) << 16, Ack: uint32(s.n(1<<16)) << 16, Len: 1 + s.n(mss),
			SrcPort: 1000 + uint16(i/2), ID: uint16(s.n(1 << 16)), NoDF: s.one(4), Pad: s.one(4), // some differ by the address only
		}
		if i%2 == 1 {
			p.Src4, p.Src6 = [4]byte{192, 0, 2, 77}, [16]byte{0xfe, 0x80, 15: 77}
		}
		if s.one(4) {
			p.Tags = []uint16{uint16(s.n(3)) << 12}
		}
		switch s.n(6) {
		case 0, 1, 2:
			p.Opts = pt.Timestamps(uint32(s.n(256)), 9)
		case 3:
			p.Opts = pt.SACK(uint32(s.n(256)), 9)
		}
		if s.one(4) {
			p.Seq, p.Ack = 0-uint32(s.n(5000)), 0-uint32(s.n(5000)) // near the wrap
		}
		t.streams = append(t.streams, stream{port: uint32(s.n(ports)), p: p, fixed: s.one(4)})
	}
	return t
}

// step feeds one packet, or something else that happens.
func (t *traffic) step(r *runner) {
	s := t.s
	switch s.n(24) {
	case 0:
		r.advance(time.Duration(s.n(120)) * time.Microsecond)
	case 1:
		r.tab.EndBurst(r.now)
		r.model.endBurst(r.now)
	case 2:
		if s.one(8) {
			r.clear(uint32(s.n(r.ports)), flowtable.ReasonStop)
		}
	case 3:
		other := [][]byte{pt.ARP(), pt.UDP{Len: 20}.Frame(), pt.ICMP(true, 9), pt.UDP{V6: true, Len: 1}.Frame(), {}, {1}}
		r.add(uint32(s.n(r.ports)), other[s.n(len(other))], s.one(8))
	default:
		f := &t.streams[s.n(len(t.streams))]
		p := t.packet(f)
		frame := p.Frame()
		if t.hostile && s.one(8) {
			frame = t.damage(frame)
		}
		r.add(f.port, frame, t.hostile && s.one(32))
	}
	r.advance(time.Duration(s.n(4)) * time.Microsecond)
}

// packet is the next packet of a stream, mostly with nothing odd about it.
func (t *traffic) packet(f *stream) pt.TCP {
	s := t.s
	p := f.p
	if s.one(10) {
		return t.empty(p)
	}
	tweak(s, &p)
	n := p.Next()
	f.p.Seq, f.p.ID = n.Seq, n.ID
	if f.fixed && !s.one(16) {
		f.p.ID = p.ID
	}
	switch s.n(24) { // what stays changed
	case 0:
		f.p.Ack += uint32(s.n(3000))
	case 1:
		f.p.Win = 1 + s.n(65535)
	case 2:
		if len(f.p.Opts) == 12 {
			f.p.Opts = pt.Timestamps(uint32(s.n(256)), 9)
		}
	case 3:
		f.p.TTL = 60 + uint8(s.n(5))
	case 4:
		f.p.Flags = []uint16{pt.ACK, pt.ACK | pt.ECE, pt.ACK | pt.CWR, pt.ACK | pt.NS}[s.n(4)]
	case 5:
		f.p.Len = 1 + s.n(t.mss)
	}
	return p
}

// tweak changes something about every second packet.
func tweak(s *source, p *pt.TCP) {
	flags := p.Flags
	if flags == 0 {
		flags = pt.ACK
	}
	switch s.n(48) {
	case 0:
		p.Flags = flags | pt.PSH
	case 1:
		p.Flags = flags | pt.FIN
	case 2:
		p.Flags = flags | []uint16{pt.SYN, pt.RST, pt.URG}[s.n(3)]
	case 3:
		p.Flags = []uint16{pt.NoFlags, pt.PSH, pt.ACK | pt.Reserved}[s.n(3)]
	case 4:
		p.Len = 1 + s.n(p.Len)
	case 5:
		p.Len += s.n(100)
	case 6:
		p.Seq += uint32(s.n(2000))
	case 7:
		p.Seq -= uint32(s.n(2000))
	case 8:
		p.Ack -= uint32(s.n(2000))
	case 9:
		p.TOS = uint8(s.n(256))
	case 10:
		p.ID += uint16(s.n(3)) - 1
	case 11:
		p.NoDF = !p.NoDF
	case 12:
		p.FlowLabel = uint32(s.n(1 << 20))
	case 13:
		p.SrcMAC = [6]byte{2, 0, 0, 0, 0, uint8(s.n(4))}
	case 14:
		p.BadTCP = true
	case 15:
		p.BadIP = !p.V6
	case 16:
		p.Partial = true
	case 17:
		p.Noncanonical = p.Len >= 2
	case 18:
		p.Trailer = make([]byte, s.n(100))
	case 19:
		p.Urgent = uint16(s.n(3))
	case 20:
		if !p.V6 {
			p.MF, p.Reserved, p.FragOffset = s.one(2), s.one(2), uint16(s.n(2))
		}
	case 21:
		if p.V6 {
			p.Ext = []pt.Ext{[]pt.Ext{pt.HopByHop(), pt.Routing(), pt.FragmentHeader(uint16(s.n(2)), s.one(2), 1)}[s.n(3)]}
			for range []int{0, 0, 7, 8}[s.n(4)] {
				p.Ext = append(p.Ext, pt.DstOpts(0))
			}
		} else {
			p.IPOpts = make([]byte, 4)
		}
	case 22:
		p.Opts = [][]byte{nil, pt.Timestamps(1, 9), pt.TimestampsApart(1, 9), pt.WindowScale(1)}[s.n(4)]
	case 23:
		if len(p.Tags) > 0 {
			p.Tags = [][]uint16{{uint16(s.n(8)) << 13}, {5, 6}}[s.n(2)]
		}
	}
}

// empty is a segment without payload.
func (t *traffic) empty(p pt.TCP) pt.TCP {
	s := t.s
	p.Len = 0
	switch s.n(8) {
	case 0, 1:
		p.Win = 1 + s.n(65535)
	case 2:
		p.Ack += uint32(s.n(3)) - 1
	case 3:
		p.Seq += uint32(s.n(3)) - 1
	case 4:
		p.Flags = []uint16{pt.NoFlags, pt.FIN | pt.ACK, pt.SYN, pt.RST, pt.PSH | pt.ACK}[s.n(5)]
	case 5:
		p.TTL, p.Win = 1+uint8(s.n(99)), 1+s.n(65535)
	case 6:
		p.TOS, p.Win = uint8(s.n(4)), 1+s.n(65535)
	}
	return p
}

// damage cuts a frame or changes bytes of its headers.
func (t *traffic) damage(f []byte) []byte {
	s := t.s
	if s.one(3) {
		return f[:s.n(len(f)+1)]
	}
	for range 1 + s.n(3) {
		f[s.n(min(len(f), 80))] ^= byte(1 << s.n(8))
	}
	return f
}
