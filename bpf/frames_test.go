package bpf

import "encoding/binary"

// Builders of frames for the tests: each returns the bytes that stand behind the header before it.

var (
	vmMAC   = [6]byte{2, 0, 0, 0, 0, 1}
	peerMAC = [6]byte{2, 0, 0, 0, 0, 2}
)

const testVLAN = 100

func be(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func join(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func ether(etherType int, rest ...[]byte) []byte {
	return join(vmMAC[:], peerMAC[:], be(etherType), join(rest...))
}

// tagged puts an 802.1Q tag (or with another tpid another) behind the addresses.
func tagged(tpid, tci int, frame []byte) []byte {
	return join(frame[:12], be(tpid), be(tci), frame[12:])
}

func ip4(proto, frag int, options, rest []byte) []byte {
	h := make([]byte, 20)
	h[0] = byte(0x45 + len(options)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(options)+len(rest)))
	binary.BigEndian.PutUint16(h[6:], uint16(frag))
	h[8], h[9] = 64, byte(proto)
	copy(h[12:], []byte{10, 0, 0, 2, 10, 0, 0, 1})
	return ether(0x0800, h, options, rest)
}

func ip6(next int, rest ...[]byte) []byte {
	body := join(rest...)
	h := make([]byte, 40)
	h[0] = 0x60
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	h[6], h[7] = byte(next), 64
	h[8], h[23], h[24], h[39] = 0xfd, 2, 0xfd, 1
	return ether(0x86dd, h, body)
}

// ext is a hop-by-hop, routing or destination options header of 8 * (1 + units) bytes.
func ext(next, units int) []byte {
	b := make([]byte, 8*(1+units))
	b[0], b[1] = byte(next), byte(units)
	return b
}

func fragHeader(next, field int) []byte {
	return join([]byte{byte(next), 0}, be(field), []byte{1, 2, 3, 4})
}

func tcp(words int, flags byte, payload int) []byte {
	b := make([]byte, max(20, words*4)+payload)
	binary.BigEndian.PutUint16(b, 40000)
	binary.BigEndian.PutUint16(b[2:], 443)
	b[12], b[13] = byte(words<<4), flags
	return b
}

func padded(n int, frame []byte) []byte { return append(frame, make([]byte, max(0, n-len(frame)))...) }

type sample struct {
	name  string
	frame []byte
}

// samples has every branch of the parsers in it.
func samples() []sample {
	var chain []byte
	for range 7 {
		chain = append(chain, ext(60, 0)...)
	}
	eight := join(chain, ext(6, 0), tcp(5, 0x10, 8))
	nine := join(chain, ext(60, 0), ext(6, 0), tcp(5, 0x10, 8))
	s := []sample{
		{"ipv4", ip4(6, 0x4000, nil, tcp(8, 0x18, 200))},
		{"ipv4 padded", padded(60, ip4(6, 0x4000, nil, tcp(5, 0x10, 0)))},
		{"ipv4 trailer", padded(90, ip4(6, 0x4000, nil, tcp(5, 0x10, 0)))},
		{"ipv4 options", ip4(6, 0, make([]byte, 12), tcp(5, 0x10, 40))},
		{"ipv4 options and more fragments", ip4(6, 0x2000, make([]byte, 4), tcp(5, 0x10, 40))},
		{"ipv4 first fragment", ip4(6, 0x2000, nil, tcp(5, 0x10, 40))},
		{"ipv4 later fragment", ip4(6, 0x00b9, nil, tcp(5, 0x10, 40))},
		{"ipv4 reserved flag", ip4(6, 0x8000, nil, tcp(5, 0x10, 40))},
		{"ipv4 udp", ip4(17, 0, nil, make([]byte, 30))},
		{"ipv4 tcp cut by the ip length", ip4(6, 0, nil, tcp(5, 0, 0)[:12])},
		{"ipv4 three bytes of tcp", padded(60, ip4(6, 0, nil, []byte{1, 2, 3}))},
		{"ipv4 data offset 4", ip4(6, 0, nil, tcp(4, 0, 20))},
		{"ipv4 data offset beyond", ip4(6, 0, nil, func() []byte { b := tcp(5, 0, 8); b[12] = 0xf0; return b }())},
		{"ipv6", ip6(6, tcp(8, 0x18, 200))},
		{"ipv6 padded", padded(78, ip6(6, tcp(5, 0x10, 0)))},
		{"ipv6 udp", ip6(17, make([]byte, 30))},
		{"ipv6 hop by hop", ip6(0, ext(6, 1), tcp(5, 0x10, 40))},
		{"ipv6 routing and destination", ip6(43, ext(60, 2), ext(6, 0), tcp(5, 0x10, 40))},
		{"ipv6 destination in front of udp", ip6(60, ext(17, 0), make([]byte, 30))},
		{"ipv6 long extension header", ip6(60, ext(6, 100), tcp(5, 0x10, 40))},
		{"ipv6 extension header beyond the packet", ip6(60, func() []byte { b := ext(6, 2); b[1] = 255; return b }(), tcp(5, 0x10, 40))},
		{"ipv6 eight extension headers", ip6(60, eight)},
		{"ipv6 nine extension headers", ip6(60, nine)},
		{"ipv6 atomic fragment", ip6(44, fragHeader(6, 0), tcp(5, 0x10, 40))},
		{"ipv6 first fragment", ip6(44, fragHeader(6, 1), tcp(5, 0x10, 40))},
		{"ipv6 later fragment", ip6(44, fragHeader(6, 8|1), tcp(5, 0x10, 40))},
		{"ipv6 fragment of udp", ip6(44, fragHeader(17, 1), make([]byte, 30))},
		{"ipv6 trailer", padded(120, ip6(6, tcp(5, 0x10, 0)))},
		{"arp", padded(60, ether(0x0806, make([]byte, 28)))},
		{"service tag", tagged(0x88a8, testVLAN, ip4(6, 0, nil, tcp(5, 0x10, 40)))},
		{"two tags", tagged(0x8100, testVLAN, tagged(0x8100, 7, ip4(6, 0, nil, tcp(5, 0x10, 40))))},
		{"tag in front of a service tag", tagged(0x8100, testVLAN, tagged(0x88a8, 7, ip4(6, 0, nil, tcp(5, 0x10, 40))))},
		{"priority tag in front of a tag", tagged(0x8100, 0xe000, tagged(0x8100, 7, ip4(6, 0, nil, tcp(5, 0x10, 40))))},
		{"priority tag", tagged(0x8100, 0xe000, ip4(6, 0, nil, tcp(5, 0x10, 40)))},
	}
	for _, v := range append([]sample(nil), s[:28]...) {
		s = append(s, sample{v.name + " in a vlan", tagged(0x8100, testVLAN|0x6000, v.frame)})
	}
	for _, n := range []int{59, 60, 61, 63, 64, 65} {
		s = append(s, sample{"short frame", padded(n, ip4(6, 0, nil, tcp(5, 0x10, 0)))},
			sample{"short tagged frame", padded(n, tagged(0x8100, testVLAN, ip4(6, 0, nil, tcp(5, 0x10, 0))))})
	}
	// Lying lengths: every value near the truth, and the extremes.
	for _, n := range []int{0, 19, 20, 39, 40, 51, 52, 53, 91, 92, 93, 0xffff} {
		f := ip4(6, 0, nil, tcp(8, 0x10, 40))
		binary.BigEndian.PutUint16(f[16:], uint16(n))
		g := ip6(6, tcp(8, 0x10, 40))
		binary.BigEndian.PutUint16(g[18:], uint16(n))
		s = append(s, sample{"lying ipv4 length", f}, sample{"lying ipv6 length", g})
	}
	for v := range 16 {
		f := ip4(6, 0, nil, tcp(8, 0x10, 40))
		f[14] = f[14]&0x0f | byte(v<<4)
		g := ip4(6, 0, nil, tcp(8, 0x10, 40))
		g[14] = g[14]&0xf0 | byte(v)
		h := ip6(6, tcp(8, 0x10, 40))
		h[14] = byte(v << 4)
		s = append(s, sample{"ipv4 version", f}, sample{"ipv4 header length", g}, sample{"ipv6 version", h})
	}
	return s
}
