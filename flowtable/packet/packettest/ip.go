package packettest

import "encoding/binary"

// Addresses that packets have unless told otherwise.
var (
	DstMAC = [6]byte{0x02, 0, 0, 0, 0, 0x02}
	SrcMAC = [6]byte{0x02, 0, 0, 0, 0, 0x01}
	Src4   = [4]byte{192, 0, 2, 1}
	Dst4   = [4]byte{192, 0, 2, 2}
	Src6   = [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1}
	Dst6   = [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 2}
)

// Ext is one IPv6 extension header.
type Ext struct {
	Type uint8  // 0 hop-by-hop, 43 routing, 44 fragment, 60 destination options
	Body []byte // what stands behind the next-header byte; 8n-1 bytes
}

// HopByHop is a hop-by-hop header of 8 bytes that holds padding only (PadN).
func HopByHop() Ext { return Ext{0, []byte{0, 1, 4, 0, 0, 0, 0}} }

// Routing is a routing header of 8 bytes without segments left.
func Routing() Ext { return Ext{43, []byte{0, 4, 0, 0, 0, 0, 0}} }

// DstOpts is a destination options header of 8 bytes: an unknown option to skip, of type 0x1e (experimental), with the
// value v.
func DstOpts(v uint32) Ext {
	return Ext{60, append([]byte{0, 0x1e, 4}, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))}
}

// FragmentHeader is an IPv6 fragment header. offset counts units of 8 bytes.
func FragmentHeader(offset uint16, more bool, id uint32) Ext {
	w := offset << 3
	if more {
		w |= 1
	}
	return Ext{44, []byte{0, byte(w >> 8), byte(w), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}}
}

// ethernet is what stands before IP.
func ethernet(dst, src [6]byte, tpid uint16, tags []uint16, kind uint16) []byte {
	if dst == ([6]byte{}) {
		dst = DstMAC
	}
	if src == ([6]byte{}) {
		src = SrcMAC
	}
	if tpid == 0 {
		tpid = 0x8100
	}
	b := append(append([]byte(nil), dst[:]...), src[:]...)
	for _, tci := range tags {
		b = binary.BigEndian.AppendUint16(b, tpid)
		b = binary.BigEndian.AppendUint16(b, tci)
		tpid = 0x8100 // only the outer tag is ever something else
	}
	return binary.BigEndian.AppendUint16(b, kind)
}

// pad fills a frame up to what Ethernet demands: 60 bytes without tag and FCS.
func pad(frame []byte, tags int) []byte {
	for len(frame) < 60+4*tags {
		frame = append(frame, 0)
	}
	return frame
}

// ip4 is an IPv4 header for n bytes behind it, with its checksum.
func ip4(h *TCP, proto uint8, n int) []byte {
	opts := h.IPOpts
	b := []byte{0x40 | byte(5+len(opts)/4), h.TOS, 0, 0}
	b = binary.BigEndian.AppendUint16(b, h.ID)
	frag := h.FragOffset & 0x1fff
	if !h.NoDF {
		frag |= 0x4000
	}
	if h.MF {
		frag |= 0x2000
	}
	if h.Reserved {
		frag |= 0x8000
	}
	b = binary.BigEndian.AppendUint16(b, frag)
	b = append(b, ttl(h.TTL), proto, 0, 0)
	src, dst := h.Src4, h.Dst4
	if src == ([4]byte{}) {
		src = Src4
	}
	if dst == ([4]byte{}) {
		dst = Dst4
	}
	b = append(append(append(b, src[:]...), dst[:]...), opts...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+n+h.IPLenDelta))
	binary.BigEndian.PutUint16(b[10:], HeaderCheck(b))
	return b
}

// ip6 is an IPv6 header with its extension headers for n bytes behind them.
func ip6(h *TCP, proto uint8, n int) []byte {
	b := binary.BigEndian.AppendUint32(nil, 6<<28|uint32(h.TOS)<<20|h.FlowLabel&0xfffff)
	exts := 0
	for _, e := range h.Ext {
		exts += 1 + len(e.Body)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(exts+n+h.IPLenDelta))
	next := proto
	if len(h.Ext) > 0 {
		next = h.Ext[0].Type
	}
	b = append(b, next, ttl(h.TTL))
	src, dst := h.Src6, h.Dst6
	if src == ([16]byte{}) {
		src = Src6
	}
	if dst == ([16]byte{}) {
		dst = Dst6
	}
	b = append(append(b, src[:]...), dst[:]...)
	for i, e := range h.Ext {
		next := proto
		if i+1 < len(h.Ext) {
			next = h.Ext[i+1].Type
		}
		b = append(append(b, next), e.Body...)
	}
	return b
}

func ttl(v uint8) uint8 {
	if v == 0 {
		return 64
	}
	return v
}
