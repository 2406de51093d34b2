// Package wire judges captured frames as a receiver without any offload would: lengths, IP and TCP, UDP and ICMP
// checksums. It shares no code with the product, which makes those checksums.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Errors that Check wraps. Everything it does not know (ARP, fragments, other protocols) has nothing to check beyond
// the layer below.
var (
	ErrLength   = errors.New("bad length")
	ErrChecksum = errors.New("bad checksum")
)

const (
	ethernet  = 14
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
	protoICM6 = 58
)

// Kind is how far a frame was checked.
type Kind struct {
	Family  int // 4, 6, 0 for anything else
	Proto   int // the transport, when Checked
	Checked bool
	Payload int // bytes of TCP or UDP payload
}

// Check verifies a frame of at most max bytes, Ethernet included.
func Check(frame []byte, max int) (Kind, error) {
	var k Kind
	if len(frame) > max {
		return k, fmt.Errorf("frame of %d bytes, at most %d: %w", len(frame), max, ErrLength)
	}
	if len(frame) < ethernet {
		return k, fmt.Errorf("frame of %d bytes: %w", len(frame), ErrLength)
	}
	packet := frame[ethernet:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		return ipv4(packet)
	case 0x86dd:
		return ipv6(packet)
	}
	return k, nil
}

func ipv4(p []byte) (Kind, error) {
	k := Kind{Family: 4}
	if len(p) < 20 || p[0]>>4 != 4 {
		return k, fmt.Errorf("ipv4 header: %w", ErrLength)
	}
	header, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	if header < 20 || total < header || total > len(p) {
		return k, fmt.Errorf("ipv4: header %d, total %d, present %d: %w", header, total, len(p), ErrLength)
	}
	if sum(0, p[:header]) != 0xffff {
		return k, fmt.Errorf("ipv4 header: %w", ErrChecksum)
	}
	const moreOrOffset = 0x3fff
	if binary.BigEndian.Uint16(p[6:])&moreOrOffset != 0 {
		return k, nil // a fragment: its checksum covers the others too
	}
	k.Proto = int(p[9])
	if k.Proto == protoICMP {
		k.Checked = true
		return k, verify("icmp", sum(0, p[header:total]))
	}
	return transport(k, p[12:20], p[header:total])
}

func ipv6(p []byte) (Kind, error) {
	k := Kind{Family: 6}
	if len(p) < 40 || p[0]>>4 != 6 {
		return k, fmt.Errorf("ipv6 header: %w", ErrLength)
	}
	length := int(binary.BigEndian.Uint16(p[4:]))
	if 40+length > len(p) {
		return k, fmt.Errorf("ipv6: payload %d, present %d: %w", length, len(p)-40, ErrLength)
	}
	k.Proto = int(p[6])
	return transport(k, p[8:40], p[40:40+length])
}

// transport checks what follows the IP header; addrs are both addresses, as the pseudo-header has them.
func transport(k Kind, addrs, b []byte) (Kind, error) {
	pseudo := uint32(sum(0, addrs)) + uint32(k.Proto) + uint32(len(b))
	switch k.Proto {
	case protoTCP:
		if len(b) < 20 || int(b[12]>>4)*4 < 20 || int(b[12]>>4)*4 > len(b) {
			return k, fmt.Errorf("tcp header: %w", ErrLength)
		}
		k.Checked, k.Payload = true, len(b)-int(b[12]>>4)*4
		return k, verify("tcp", sum(pseudo, b))
	case protoUDP:
		if len(b) < 8 || int(binary.BigEndian.Uint16(b[4:])) != len(b) {
			return k, fmt.Errorf("udp header: %w", ErrLength)
		}
		k.Payload = len(b) - 8
		if binary.BigEndian.Uint16(b[6:]) == 0 && k.Family == 4 {
			return k, nil // sent without a checksum
		}
		k.Checked = true
		return k, verify("udp", sum(pseudo, b))
	case protoICM6:
		k.Checked = true
		return k, verify("icmpv6", sum(pseudo, b))
	}
	return k, nil
}

// verify: data and its own checksum sum up to all ones (RFC 1071).
func verify(what string, s uint16) error {
	if s != 0xffff {
		return fmt.Errorf("%s: %w", what, ErrChecksum)
	}
	return nil
}

// sum is the ones' complement sum of big-endian words, an odd byte padded with zero.
func sum(start uint32, b []byte) uint16 {
	s := uint64(start)
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(b[0])<<8 | uint64(b[1])
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
