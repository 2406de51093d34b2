package replay

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/gopacket/gopacket/layers"
)

// Block types of pcapng (draft-ietf-opsawg-pcapng, section 4).
const (
	blockInterface = 0x00000001
	blockPacket    = 0x00000002 // obsolete, still written by old tools
	blockSimple    = 0x00000003
	blockEnhanced  = 0x00000006
	blockSection   = 0x0a0d0d0a
)

const (
	byteOrderMagic = 0x1a2b3c4d
	maxBlock       = 1 << 20 // of those blocks that are read into memory; a packet block is little more than maxPacket
	maxInterfaces  = 1 << 16 // per section

	optTSResolution = 9  // if_tsresol
	optTSOffset     = 14 // if_tsoffset
)

// pcapng reads a file of blocks (draft-ietf-opsawg-pcapng), one at a time, and hands on its packets. Blocks that hold no packet and
// describe none are passed over, whatever their length.
//
// pcapgo.NgReader is not used: it believes the lengths inside a block, keeps every name and secret it meets for the whole of a file
// that may have any size, and rounds binary timestamp resolutions.
type pcapng struct {
	in     *bufio.Reader
	order  binary.ByteOrder
	ifaces []ngInterface
	block  []byte // reused
}

type ngInterface struct {
	link    layers.LinkType
	snaplen uint32
	exp     uint8 // resolution is 2^-exp or 10^-exp seconds
	binary  bool
	offset  int64 // seconds
}

func newPcapng(in *bufio.Reader) *pcapng {
	return &pcapng{in: in, order: binary.LittleEndian}
}

// next returns the next packet; see capture.
func (p *pcapng) next() (record, error) {
	for {
		kind, body, err := p.nextBlock()
		if err != nil {
			return record{}, err
		}
		switch kind {
		case blockSection:
			err = p.section(body)
		case blockInterface:
			err = p.addInterface(body)
		case blockSimple:
			return p.simplePacket(body)
		case blockPacket, blockEnhanced:
			return p.packet(kind, body)
		}
		if err != nil {
			return record{}, err
		}
	}
}

// nextBlock reads one block. body is what lies between its two lengths, at least fixedPart bytes; nil for a block nobody needs.
func (p *pcapng) nextBlock() (kind uint32, body []byte, err error) {
	head, err := p.in.Peek(12)
	switch {
	case len(head) == 0 && err == io.EOF:
		return 0, nil, io.EOF
	case err != nil:
		return 0, nil, damaged("block", err)
	}
	if binary.LittleEndian.Uint32(head) == blockSection { // a palindrome
		switch uint32(byteOrderMagic) {
		case binary.LittleEndian.Uint32(head[8:]):
			p.order = binary.LittleEndian
		case binary.BigEndian.Uint32(head[8:]):
			p.order = binary.BigEndian
		default:
			return 0, nil, fmt.Errorf("%w: section without a byte-order magic", ErrDamaged)
		}
	}
	kind, length := p.order.Uint32(head), p.order.Uint32(head[4:])
	if length < 12 || length%4 != 0 {
		return 0, nil, fmt.Errorf("%w: block length %d", ErrDamaged, length)
	}
	fixed, needed := fixedPart(kind)
	if !needed {
		return kind, nil, p.skip(length)
	}
	if length > maxBlock || int(length) < 12+fixed {
		return 0, nil, fmt.Errorf("%w: block length %d", ErrDamaged, length)
	}
	if cap(p.block) < int(length) {
		p.block = make([]byte, length)
	}
	block := p.block[:length]
	if _, err := io.ReadFull(p.in, block); err != nil {
		return 0, nil, damaged("block", err)
	}
	if trailer := p.order.Uint32(block[length-4:]); trailer != length {
		return 0, nil, fmt.Errorf("%w: block lengths differ: %d in front, %d behind", ErrDamaged, length, trailer)
	}
	return kind, block[8 : length-4], nil
}

// skip passes over a block nobody needs, of any length.
func (p *pcapng) skip(length uint32) error {
	for left := int64(length); left > 0; {
		n, err := p.in.Discard(int(min(left, 1<<20)))
		left -= int64(n)
		if err != nil {
			return damaged("block", err)
		}
	}
	return nil
}

// fixedPart is the number of bytes a block's body has at least, for the blocks that are read.
func fixedPart(kind uint32) (bytes int, needed bool) {
	switch kind {
	case blockSection:
		return 16, true
	case blockInterface:
		return 8, true
	case blockSimple:
		return 4, true
	case blockPacket, blockEnhanced:
		return 20, true
	}
	return 0, false
}

// section begins a section, which has interfaces of its own. Minor version 2 was written by mistake and means 0 (section 4.1).
func (p *pcapng) section(body []byte) error {
	major, minor := p.order.Uint16(body[4:]), p.order.Uint16(body[6:])
	if major != 1 || minor != 0 && minor != 2 {
		return fmt.Errorf("%w: pcapng %d.%d: 1.0 is read", ErrVersion, major, minor)
	}
	p.ifaces = p.ifaces[:0]
	return nil
}

func (p *pcapng) addInterface(body []byte) error {
	if len(p.ifaces) == maxInterfaces {
		return fmt.Errorf("%w: more than %d interfaces", ErrDamaged, maxInterfaces)
	}
	nic := ngInterface{link: layers.LinkType(p.order.Uint16(body)), snaplen: p.order.Uint32(body[4:]), exp: 6}
	for opts := body[8:]; len(opts) >= 4; {
		code, n := p.order.Uint16(opts), int(p.order.Uint16(opts[2:]))
		padded := 4 + (n+3)&^3
		if code == 0 {
			break
		}
		if padded > len(opts) {
			return fmt.Errorf("%w: interface option %d is longer than its block", ErrDamaged, code)
		}
		value := opts[4 : 4+n]
		opts = opts[padded:]
		switch {
		case code == optTSResolution && n == 1:
			nic.exp, nic.binary = value[0]&0x7f, value[0]&0x80 != 0
		case code == optTSOffset && n == 8:
			nic.offset = int64(p.order.Uint64(value))
		}
	}
	if nic.binary && nic.exp > 63 || !nic.binary && nic.exp > 19 {
		return fmt.Errorf("%w: interface timestamp resolution with exponent -%d", ErrDamaged, nic.exp)
	}
	p.ifaces = append(p.ifaces, nic)
	return nil
}

// simplePacket takes a simple packet block: of the section's first interface, cut at its snap length, without a time.
func (p *pcapng) simplePacket(body []byte) (record, error) {
	if len(p.ifaces) == 0 {
		return record{}, fmt.Errorf("%w: packet before any interface", ErrDamaged)
	}
	orig := p.order.Uint32(body)
	length := orig
	if snap := p.ifaces[0].snaplen; snap != 0 {
		length = min(length, snap)
	}
	return newRecord(p.ifaces[0].link, body[4:], length, orig)
}

// packet takes an enhanced packet block or its predecessor, whose interface number has 16 bits.
func (p *pcapng) packet(kind uint32, body []byte) (record, error) {
	id := p.order.Uint32(body)
	if kind == blockPacket {
		id = uint32(p.order.Uint16(body))
	}
	if uint64(id) >= uint64(len(p.ifaces)) {
		return record{}, fmt.Errorf("%w: packet of interface %d, the section has %d", ErrDamaged, id, len(p.ifaces))
	}
	nic := &p.ifaces[id]
	rec, err := newRecord(nic.link, body[20:], p.order.Uint32(body[12:]), p.order.Uint32(body[16:]))
	rec.timed = true
	rec.ts = nic.nanoseconds(uint64(p.order.Uint32(body[4:]))<<32 | uint64(p.order.Uint32(body[8:])))
	return rec, err
}

// newRecord is a packet of length captured bytes at the beginning of rest.
func newRecord(link layers.LinkType, rest []byte, length, orig uint32) (record, error) {
	switch {
	case length > maxPacket:
		return record{}, fmt.Errorf("%w: packet of %d bytes", ErrDamaged, length)
	case int(length) > len(rest):
		return record{}, fmt.Errorf("%w: packet of %d bytes in a block with %d", ErrDamaged, length, len(rest))
	case link != layers.LinkTypeEthernet:
		return record{}, linkError(uint32(link))
	}
	return record{data: rest[:length], orig: originalLength(orig, length)}, nil
}

// nanoseconds converts a packet's time to ns since 1970, at least 0 and at most maxClock.
func (n *ngInterface) nanoseconds(ticks uint64) int64 {
	var sec, frac uint64
	if n.binary {
		sec = ticks >> n.exp
		hi, lo := bits.Mul64(ticks&(1<<n.exp-1), 1e9)
		frac = hi<<(64-n.exp) | lo>>n.exp // exp 0: nothing is left of the ticks, and shifts by 64 give 0
	} else {
		unit := uint64(1)
		for range n.exp {
			unit *= 10
		}
		sec = ticks / unit
		hi, lo := bits.Mul64(ticks%unit, 1e9)
		frac, _ = bits.Div64(hi, lo, unit) // the remainder is below unit, so the quotient is below 1e9
	}
	const maxSec = maxClock / 1e9
	if sec > uint64(maxSec) || n.offset > maxSec {
		return maxClock
	}
	total := int64(sec) + max(n.offset, -maxSec) // both terms are small: no overflow
	switch {
	case total < 0:
		return 0
	case total >= maxSec:
		return maxClock
	}
	return total*1e9 + int64(frac)
}
