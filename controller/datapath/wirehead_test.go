package datapath

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// headOf is a frame's private beginning, with the room behind it that it has.
func headOf(frame []byte) []byte {
	b := make([]byte, headSlot)
	return b[:copy(b[:HeadRoom], frame)]
}

// cutAll are the packets that a TSO frame stands for.
func cutAll(tb testing.TB, frame []byte, g flowtable.GSO) (all [][]byte, err error) {
	tb.Helper()
	var s flowtable.Segmenter
	if err := s.Init([][]byte{frame}, g); err != nil {
		return nil, err
	}
	for {
		b := make([]byte, 1<<17)
		n, ok, err := s.Next(b)
		if err != nil {
			tb.Fatal(err)
		}
		if !ok {
			return all, nil
		}
		all = append(all, b[:n])
	}
}

// kernelOf does with a frame what the kernel does that is told h of it: it completes the checksum, or cuts and completes.
func kernelOf(tb testing.TB, frame []byte, h virtio.NetHdr) [][]byte {
	tb.Helper()
	if h.GSOType == virtio.GSONone {
		b := bytes.Clone(frame)
		if h.Flags&virtio.HdrNeedsCsum != 0 {
			if err := checksum.Complete(b, int(h.CsumStart), int(h.CsumOffset)); err != nil {
				tb.Fatal(err)
			}
		}
		return [][]byte{b}
	}
	all, err := cutAll(tb, frame, flowtable.GSO{Type: h.GSOType, Size: h.GSOSize})
	if err != nil {
		tb.Fatalf("the kernel gets what it cannot cut: %v", err)
	}
	return all
}

// What the kernel gets of a TSO frame becomes the packets that we would have cut, whatever the guest left for its device to fill in.
func TestTheKernelGetsWhatWeWouldHaveCut(t *testing.T) {
	for name, edit := range map[string]func(*pt.TCP){
		"plain":             func(*pt.TCP) {},
		"timestamps":        func(p *pt.TCP) { p.Opts = pt.Timestamps(1, 2) },
		"40 bytes options":  func(p *pt.TCP) { p.Opts = make([]byte, 40) },
		"CWR, PSH, FIN":     func(p *pt.TCP) { p.Flags = pt.ACK | pt.CWR | pt.PSH | pt.FIN },
		"IP length 0":       func(p *pt.TCP) { p.ZeroIPLength = true },
		"a whole checksum":  func(p *pt.TCP) { p.Partial = false },
		"one packet":        func(p *pt.TCP) { p.Len = 1000 },
		"303 packets":       func(p *pt.TCP) { p.Len = 303 * 216 },
		"the longest":       func(p *pt.TCP) { p.Len = 65535 - 60 },
		"an ID that wraps":  func(p *pt.TCP) { p.ID = 0xfffe },
		"a last short byte": func(p *pt.TCP) { p.Len = 4*1000 + 1 },
	} {
		for _, v6 := range []bool{false, true} {
			for _, vlan := range []uint16{0, 0x6005} {
				p := from(1, wire, 5000)
				p.V6, p.Partial, p.Opts = v6, true, nil
				edit(&p)
				g := flowtable.GSO{Type: virtio.GSOTCPv4, Size: 1000}
				if v6 {
					g.Type = virtio.GSOTCPv6
				}
				if name == "303 packets" {
					g.Size = 216
				}
				frame := p.Frame()
				h := wireHead{bytes: headOf(frame)}
				var cut flowtable.Segmenter
				if why, ok := h.buildGSO(len(frame), g, 1500, &cut); !ok {
					t.Fatalf("%s: refused for %s", name, why)
				}
				want, err := cutAll(t, frame, g)
				if err != nil {
					t.Fatal(err)
				}
				if vlan != 0 {
					h.tag(vlan)
					for i := range want {
						want[i] = append(append(append([]byte{}, want[i][:12]...), 0x81, 0, byte(vlan>>8), byte(vlan)), want[i][12:]...)
					}
				}
				rest := frame[min(len(frame), HeadRoom):]
				sent := append(bytes.Clone(h.bytes), rest...)
				if n := int(h.hdr.HdrLen); h.packets != len(want) || n > len(h.bytes) || int(h.hdr.CsumStart)+tcpMinHeader > n {
					t.Errorf("%s: %d packets of %d, %+v", name, h.packets, len(want), h.hdr)
				}
				if cwr := p.Flags&pt.CWR != 0; (h.hdr.GSOType&virtio.GSOECN != 0) != (cwr && h.packets > 1) {
					t.Errorf("%s: gso_type %#x", name, h.hdr.GSOType)
				}
				got := kernelOf(t, sent, h.hdr)
				if len(got) != len(want) {
					t.Fatalf("%s: %d packets, want %d", name, len(got), len(want))
				}
				for i := range got {
					if !bytes.Equal(got[i], want[i]) {
						t.Fatalf("%s, IPv6 %v, VLAN %#x: packet %d:\n got %x\nwant %x", name, v6, vlan, i, head(got[i]), head(want[i]))
					}
				}
			}
		}
	}
}

func TestTSOFramesThatTheWireDoesNotTakeAreRefused(t *testing.T) {
	p := from(1, wire, 5000)
	p.Opts = nil
	frame := p.Frame()
	for _, c := range []struct {
		name  string
		g     flowtable.GSO
		total int
		why   flowtable.Reason
	}{
		{"guard: the full MTU", flowtable.GSO{Type: virtio.GSOTCPv4, Size: 1460}, len(frame), 0},
		{"a packet beyond the MTU", flowtable.GSO{Type: virtio.GSOTCPv4, Size: 1461}, len(frame), flowtable.ReasonBadLength},
		{"no size", flowtable.GSO{Type: virtio.GSOTCPv4}, len(frame), flowtable.ReasonMalformed},
		{"of the other family", flowtable.GSO{Type: virtio.GSOTCPv6, Size: 1000}, len(frame), flowtable.ReasonMalformed},
		{"said to be UDP", flowtable.GSO{Type: virtio.GSOUDPL4, Size: 1000}, len(frame), flowtable.ReasonMalformed},
		{"longer than its IP packet", flowtable.GSO{Type: virtio.GSOTCPv4, Size: 1000}, len(frame) + 1, flowtable.ReasonMalformed},
		{"of more packets than there may be", flowtable.GSO{Type: virtio.GSOTCPv4, Size: 3}, len(frame), flowtable.ReasonBadLength},
	} {
		h := wireHead{bytes: headOf(frame)}
		var cut flowtable.Segmenter
		if why, ok := h.buildGSO(c.total, c.g, 1500, &cut); ok != (c.why == 0) || why != c.why {
			t.Errorf("%s: %v, %v, want %v", c.name, why, ok, c.why)
		}
	}
}

// A checksum is the kernel's to complete only where TCP or UDP has it.
func TestTheKernelCompletesChecksumsOnlyWhereTheyAre(t *testing.T) {
	tcp, udp := from(1, wire, 400), pt.UDP{SrcMAC: macOf(1), DstMAC: wire, Len: 400}.Frame()
	six := tcp.With(func(p *pt.TCP) { p.V6 = true }).Frame()
	four := tcp.Frame()
	fragment := bytes.Clone(four)
	fragment[20] |= 0x20
	options := bytes.Clone(four)
	options[14] = 0x46
	for _, c := range []struct {
		name      string
		frame     []byte
		start, at int
		want      bool
	}{
		{"TCP", four, 34, 50, true}, {"TCP in IPv6", six, 54, 70, true}, {"UDP", udp, 34, 40, true},
		{"TCP, behind IP options", options, 38, 54, true},
		{"TCP, UDP's place", four, 34, 40, false}, {"UDP, TCP's place", udp, 34, 50, false},
		{"inside the addresses", four, 14, 30, false}, {"in the source address", four, 0, 6, false},
		{"behind", four, 35, 51, false}, {"a fragment", fragment, 34, 50, false},
		{"IPv6 that is IPv4", four, 54, 70, false}, {"a runt", four[:33], 34, 50, false}, {"half a header", four[:53], 34, 50, false},
		{"neither", make([]byte, 100), 34, 50, false},
	} {
		h := wireHead{bytes: headOf(c.frame)}
		if got := h.buildSum(len(c.frame), c.start, c.at); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		} else if got && (h.hdr != virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: uint16(c.start), CsumOffset: uint16(c.at - c.start)}) {
			t.Errorf("%s: %+v", c.name, h.hdr)
		}
	}
}

// soundHead says what is wrong with a head that is to be given to the kernel: what was judged has to be what leaves.
func soundHead(h *wireHead, was []byte, total, mtu int) string {
	end := int(h.hdr.CsumStart) + int(h.hdr.CsumOffset) + 2
	switch {
	case !bytes.Equal(h.bytes[:14], was[:14]):
		return "the Ethernet header changed"
	case len(h.bytes) != len(was):
		return "the length changed"
	case h.hdr.Flags != virtio.HdrNeedsCsum:
		return "flags"
	case int(h.hdr.CsumStart) < ethHeader+ipv4Min, end > total, h.hdr.CsumOffset != protoTCPCsum && h.hdr.CsumOffset != protoUDPCsum:
		return "the checksum's place"
	case end > len(h.bytes):
		return "the checksum lies in the guest's memory"
	case h.hdr.GSOType == virtio.GSONone && h.hdr.GSOSize != 0, h.hdr.GSOType != virtio.GSONone && h.hdr.GSOSize == 0:
		return "gso_size"
	case h.packets < 1, h.packets > mostPackets(h.hdr.GSOType, maxKernelCut):
		return "packets"
	}
	if h.hdr.GSOType != virtio.GSONone {
		place, least := uint16(protoTCPCsum), tcpMinHeader
		if h.hdr.GSOType == virtio.GSOUDPL4 {
			place, least = protoUDPCsum, udpHeader
		}
		switch {
		case h.hdr.CsumOffset != place:
			return "a checksum of another protocol"
		case int(h.hdr.HdrLen) > len(h.bytes), int(h.hdr.HdrLen) < int(h.hdr.CsumStart)+least:
			return "hdr_len"
		case int(h.hdr.HdrLen)+int(h.hdr.GSOSize) > mtu+ethHeader:
			return "packets beyond the MTU"
		}
	}
	return ""
}

// build treats a frame as the worker does, and returns what is wrong.
func build(frame []byte, hdr virtio.NetHdr, mtu int) (h wireHead, built bool, bad string) {
	was := headOf(frame)
	h = wireHead{bytes: headOf(frame)}
	var cut flowtable.Segmenter
	if hdr.GSOType != virtio.GSONone {
		_, built = h.buildGSO(len(frame), flowtable.GSO{Type: hdr.GSOType, Size: hdr.GSOSize}, mtu, &cut)
	} else {
		built = h.buildSum(len(frame), int(hdr.CsumStart), int(hdr.CsumStart)+int(hdr.CsumOffset))
	}
	if built {
		bad = soundHead(&h, was, len(frame), mtu)
	}
	return h, built, bad
}

func FuzzWireHead(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		p := from(1, wire, 3000)
		p.V6, p.Partial = v6, true
		f.Add(p.Frame(), uint8(0), uint8(1), uint16(1000), uint16(34), uint16(16))
		f.Add(p.Frame(), uint8(1), uint8(4), uint16(1), uint16(54), uint16(16))
	}
	f.Add(pt.UDP{Len: 30}.Frame(), uint8(1), uint8(0), uint16(0), uint16(34), uint16(6))
	f.Add(pt.UDP{Len: 3000, Partial: true}.Frame(), uint8(1), uint8(5), uint16(1000), uint16(34), uint16(6))
	f.Add(pt.UDP{V6: true, Len: 3000, Partial: true}.Frame(), uint8(1), uint8(5), uint16(24), uint16(54), uint16(6))
	f.Fuzz(func(t *testing.T, frame []byte, flags, gso uint8, size, start, offset uint16) {
		if len(frame) < ethHeader || len(frame) > 1<<16 {
			return
		}
		h, built, bad := build(frame, virtio.NetHdr{Flags: flags, GSOType: gso, GSOSize: size, CsumStart: start, CsumOffset: offset}, 1500)
		if bad != "" {
			t.Fatalf("%s: %+v of %x", bad, h, head(frame))
		}
		if built && h.packets <= 300 {
			sent := append(bytes.Clone(h.bytes), frame[min(len(frame), HeadRoom):]...)
			for _, b := range kernelOf(t, sent, h.hdr) {
				if !bytes.Equal(b[:14], frame[:14]) || len(b) > max(1514, len(frame)) {
					t.Fatalf("a packet of %d bytes, %x", len(b), b[:14])
				}
			}
		}
	})
}

// A million headers that mean nothing, in front of frames that nearly do: none makes the kernel write over what was judged, or cut what
// does not fit.
func TestAMillionRandomHeaders(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var frames [][]byte
	for _, v6 := range []bool{false, true} {
		for _, size := range []int{0, 1, 200, 1448, 30000} {
			p := from(1, wire, size)
			p.V6, p.Partial = v6, true
			frames = append(frames, p.Frame(), pt.UDP{V6: v6, SrcMAC: macOf(1), DstMAC: wire, Len: size}.Frame())
		}
	}
	built := 0
	b := make([]byte, 1<<16)
	for range n {
		frame := b[:copy(b, frames[rng.IntN(len(frames))])]
		for range rng.IntN(4) {
			frame[ethHeader+rng.IntN(min(len(frame), 120)-ethHeader)] = byte(rng.Uint32())
		}
		var raw [virtio.HdrSize]byte
		binary.LittleEndian.PutUint64(raw[:], rng.Uint64())
		binary.LittleEndian.PutUint32(raw[8:], rng.Uint32())
		var hdr virtio.NetHdr
		if err := hdr.Decode(raw[:]); err != nil {
			t.Fatal(err)
		}
		switch rng.IntN(5) { // or nearly nothing would get past the first look
		case 0:
			hdr.GSOType = virtio.GSOTCPv4
		case 1:
			hdr.GSOType = virtio.GSOTCPv6 | hdr.GSOType&virtio.GSOECN
		case 3:
			hdr.GSOType = virtio.GSOUDPL4
		case 2:
			hdr.GSOType, hdr.CsumStart, hdr.CsumOffset = virtio.GSONone, 34+20*uint16(rng.IntN(2)), 6+10*uint16(rng.IntN(2))
		}
		if rng.IntN(2) == 0 {
			hdr.GSOSize &= 0x7ff
		}
		h, ok, bad := build(frame, hdr, 1500)
		if bad != "" {
			t.Fatalf("%s: %+v of %+v, %x", bad, h, hdr, head(frame))
		}
		if ok {
			built++
		}
	}
	if built < n/20 {
		t.Errorf("%d of %d headers got anywhere", built, n)
	}
}
