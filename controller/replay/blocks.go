package replay

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
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

// blocks stands between a pcapng file and the library's reader, which believes the lengths in a block, keeps every name and
// secret it meets and rounds binary timestamp resolutions. blocks checks each block by itself and hands on only sections,
// interfaces and packets, without options and with every time in nanoseconds. It holds one block at a time.
type blocks struct {
	in     *bufio.Reader
	order  byteOrder
	ifaces []ngInterface
	block  []byte // of the input, reused
	out    []byte // of the output, reused
	unread []byte // rest of out
	err    error  // sticky; io.EOF at a clean end
}

type byteOrder interface {
	binary.ByteOrder
	binary.AppendByteOrder
}

type ngInterface struct {
	snaplen uint32
	exp     uint8 // resolution is 2^-exp or 10^-exp seconds
	binary  bool
	offset  int64 // seconds
}

func newBlocks(in *bufio.Reader) *blocks {
	return &blocks{in: in, order: binary.LittleEndian}
}

// Read implements io.Reader. It never returns bytes together with an error.
func (b *blocks) Read(p []byte) (int, error) {
	for len(b.unread) == 0 {
		if b.err == nil {
			b.err = b.nextBlock()
		}
		if b.err != nil {
			return 0, b.err
		}
	}
	n := copy(p, b.unread)
	b.unread = b.unread[n:]
	return n, nil
}

// nextBlock reads one block and leaves what is to be handed on in b.unread.
func (b *blocks) nextBlock() error {
	head, err := b.in.Peek(12)
	switch {
	case len(head) == 0 && err == io.EOF:
		return io.EOF
	case err == io.EOF:
		return damaged("block", err)
	case err != nil:
		return err
	}
	if binary.LittleEndian.Uint32(head) == blockSection { // a palindrome
		switch uint32(byteOrderMagic) {
		case binary.LittleEndian.Uint32(head[8:]):
			b.order = binary.LittleEndian
		case binary.BigEndian.Uint32(head[8:]):
			b.order = binary.BigEndian
		default:
			return fmt.Errorf("%w: section without a byte-order magic", ErrDamaged)
		}
	}
	kind, length := b.order.Uint32(head), b.order.Uint32(head[4:])
	if length < 12 || length%4 != 0 {
		return fmt.Errorf("%w: block length %d", ErrDamaged, length)
	}
	switch kind {
	case blockSection, blockInterface, blockPacket, blockSimple, blockEnhanced:
	default:
		return b.skip(length)
	}
	if length > maxBlock {
		return fmt.Errorf("%w: block length %d", ErrDamaged, length)
	}
	if cap(b.block) < int(length) {
		b.block = make([]byte, length)
	}
	block := b.block[:length]
	if _, err := io.ReadFull(b.in, block); err != nil {
		return damaged("block", err)
	}
	return b.accept(kind, length, block[8:length-4], b.order.Uint32(block[length-4:]))
}

// skip passes over a block nobody needs, of any length.
func (b *blocks) skip(length uint32) error {
	for left := int64(length); left > 0; {
		n, err := b.in.Discard(int(min(left, 1<<20)))
		left -= int64(n)
		if err != nil {
			return damaged("block", err)
		}
	}
	return nil
}

// accept checks the inside of one block. body is what lies between the two lengths.
func (b *blocks) accept(kind, length uint32, body []byte, trailer uint32) error {
	if trailer != length {
		return fmt.Errorf("%w: block lengths differ: %d in front, %d behind", ErrDamaged, length, trailer)
	}
	if len(body) < fixedPart(kind) {
		return fmt.Errorf("%w: block length %d", ErrDamaged, length)
	}
	switch kind {
	case blockSection:
		b.ifaces = b.ifaces[:0]
		b.emit(kind, body[:16])
		return nil
	case blockInterface:
		return b.acceptInterface(body)
	case blockSimple:
		return b.acceptSimple(body)
	}
	return b.acceptPacket(kind, body)
}

// fixedPart is the number of bytes a block's body has at least.
func fixedPart(kind uint32) int {
	switch kind {
	case blockSection:
		return 16
	case blockInterface:
		return 8
	case blockSimple:
		return 4
	}
	return 20
}

func (b *blocks) acceptInterface(body []byte) error {
	if len(b.ifaces) == maxInterfaces {
		return fmt.Errorf("%w: more than %d interfaces", ErrDamaged, maxInterfaces)
	}
	nic := ngInterface{snaplen: b.order.Uint32(body[4:]), exp: 6}
	for opts := body[8:]; len(opts) >= 4; {
		code, n := b.order.Uint16(opts), int(b.order.Uint16(opts[2:]))
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
			nic.offset = int64(b.order.Uint64(value))
		}
	}
	if nic.binary && nic.exp > 63 || !nic.binary && nic.exp > 19 {
		return fmt.Errorf("%w: interface timestamp resolution with exponent -%d", ErrDamaged, nic.exp)
	}
	b.ifaces = append(b.ifaces, nic)
	// The same interface with one option, nanoseconds, and the end of options.
	var clean [20]byte
	copy(clean[:8], body)
	b.order.PutUint16(clean[8:], optTSResolution)
	b.order.PutUint16(clean[10:], 1)
	clean[12] = 9
	b.emit(blockInterface, clean[:])
	return nil
}

func (b *blocks) acceptSimple(body []byte) error {
	if len(b.ifaces) == 0 {
		return fmt.Errorf("%w: packet before any interface", ErrDamaged)
	}
	length := b.order.Uint32(body)
	if snap := b.ifaces[0].snaplen; snap != 0 {
		length = min(length, snap)
	}
	return b.emitPacket(blockSimple, body, 4, length)
}

// acceptPacket takes an enhanced packet block or its predecessor, whose interface number has 16 bits.
func (b *blocks) acceptPacket(kind uint32, body []byte) error {
	id := b.order.Uint32(body)
	if kind == blockPacket {
		id = uint32(b.order.Uint16(body))
	}
	if uint64(id) >= uint64(len(b.ifaces)) {
		return fmt.Errorf("%w: packet of interface %d, the section has %d", ErrDamaged, id, len(b.ifaces))
	}
	ticks := uint64(b.order.Uint32(body[4:]))<<32 | uint64(b.order.Uint32(body[8:]))
	ns := uint64(b.ifaces[id].nanoseconds(ticks))
	b.order.PutUint32(body[4:], uint32(ns>>32))
	b.order.PutUint32(body[8:], uint32(ns))
	return b.emitPacket(kind, body, 20, b.order.Uint32(body[12:]))
}

// emitPacket hands on a packet block whose data of the given length lie behind fixed bytes, without its options.
func (b *blocks) emitPacket(kind uint32, body []byte, fixed int, length uint32) error {
	if length > maxPacket {
		return fmt.Errorf("%w: packet of %d bytes", ErrDamaged, length)
	}
	end := fixed + int(length+3)&^3
	if end > len(body) {
		return fmt.Errorf("%w: packet of %d bytes in a block with %d", ErrDamaged, length, len(body)-fixed)
	}
	b.emit(kind, body[:end])
	return nil
}

func (b *blocks) emit(kind uint32, body []byte) {
	length := uint32(len(body) + 12)
	b.out = b.order.AppendUint32(b.out[:0], kind)
	b.out = b.order.AppendUint32(b.out, length)
	b.out = append(b.out, body...)
	b.out = b.order.AppendUint32(b.out, length)
	b.unread = b.out
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
