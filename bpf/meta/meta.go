// Package meta is what the XDP program writes in front of a frame that it hands to AF_XDP, and the id by which it knows a VM. It
// mirrors struct frame_meta in bpf/abi.h, and needs neither the program nor its maps: the data path reads it.
package meta

import "encoding/binary"

// MaxPorts is how many VMs of one interface have a place at the same time.
const MaxPorts = 1 << portBits // mirrors MAX_PORTS in abi.h

const portBits = 8

// PortID is what the program knows a VM by: its place below MaxPorts, and how many VMs had that place before it. A place is
// given out again when its VM has left; an id is not, for 2^24 VMs of a place. So what still carries the id of a VM that left, in a
// ring or a map, is never taken for the VM that has its place now.
func PortID(index, generation uint32) uint32 { return generation<<portBits | index&(MaxPorts-1) }

// PortIndex is the place in a PortID.
func PortIndex(id uint32) uint32 { return id & (MaxPorts - 1) }

// Size is the number of bytes in front of a steered frame that Parse reads.
const Size = 32

// magic starts every metadata block ("RSC1" in memory). It mirrors META_MAGIC in abi.h.
const magic = 0x31435352

// Bits of Meta.Flags.
const (
	Tagged      = 1 << 0 // an 802.1Q tag is in the frame; TCI is its
	Keyed       = 1 << 1 // addresses and TCP ports are readable: the frame belongs to a flow
	Accelerated = 1 << 2 // the tag was taken out of the frame on its way; TCI is its
)

// Meta is what the program found out about a frame. Offsets count from the frame's first byte; those of headers that
// were not reached are 0. It mirrors struct frame_meta in abi.h.
type Meta struct {
	Port       uint32 // PortID
	L3         uint16
	L4         uint16
	Payload    uint16
	PayloadLen uint16
	TCI        uint16 // host byte order; 0 unless Flags has Tagged or Accelerated
	Family     uint8  // 4, 6 or 0
	Verdict    uint8  // parse verdict, a packet.Verdict
	Flags      uint8
	TCPFlags   uint8 // byte 13 of the TCP header
	// Tickets of the frame, of its VM and of its queue; see Shares.Took. 0 where the queue has no shares.
	VMTicket, QueueTicket uint16
}

// Parse reads the Size bytes in front of a frame of frameLen bytes. It returns false when they are not the
// program's, and then the caller parses the frame itself.
//
// The bytes in front of a frame are left over from the chunk's earlier use when the driver has no room for metadata, so
// a magic word alone proves nothing: the caller clears it when it gives a chunk back, and the frame's
// length must agree. It does not allocate.
func Parse(before []byte, frameLen int, m *Meta) bool {
	if len(before) < Size {
		return false
	}
	le := binary.LittleEndian
	b := (*Block)(before)
	if !b.ours() || b.frameLen() != frameLen {
		return false
	}
	m.Port = b.Port()
	m.L3 = le.Uint16(b[12:])
	m.L4 = le.Uint16(b[14:])
	m.Payload = b.Payload()
	m.PayloadLen = b.PayloadLen()
	m.TCI = le.Uint16(b[20:])
	m.Family = b[22]
	m.Verdict = b[23]
	m.Flags = b[24]
	m.TCPFlags = b[25]
	m.VMTicket, m.QueueTicket = b.Tickets()
	return true
}

// Words of the metadata that Plain knows: L3 and L4 are behind Ethernet and IPv4 without options; the family is 4, the verdict is that of a sound
// TCP segment, of whose flags ACK is set and PSH may be. A tag that was taken out of the frame on its way says nothing of the frame.
const (
	plainOffsets = 14 | 34<<16
	plainLength  = 1<<64 - 1 - 0xffff<<16 // the length and the offsets, without the ticket that stands between them
	plainKind    = 4<<16 | Keyed<<32 | tcpACK<<40
	plainMask    = 0xffff<<16 | (0xff-Accelerated)<<32 | (0xff-tcpPSH)<<40

	tcpPSH = 1 << 3
	tcpACK = 1 << 4
)

// Block is what stands in front of a frame.
type Block [Size]byte

// Plain reports whether the metadata is the program's, of a frame of frameLen bytes, and says what it says of nearly all frames: a segment of TCP in
// IPv4. Then the other methods have what is not the same for all of them, as in Meta. It is false of any other frame, which Parse may know all the same.
func (b *Block) Plain(frameLen int) bool {
	le := binary.LittleEndian // all at once: it is asked of every frame, and the answer is yes
	differs := uint64(le.Uint32(b[:])) ^ magic
	differs |= le.Uint64(b[8:])&plainLength ^ (uint64(frameLen) | plainOffsets<<32)
	differs |= le.Uint64(b[20:])&plainMask ^ plainKind
	return differs == 0
}

func (b *Block) ours() bool    { return binary.LittleEndian.Uint32(b[:]) == magic }
func (b *Block) frameLen() int { return int(binary.LittleEndian.Uint16(b[8:])) }

// Port is Meta.Port.
func (b *Block) Port() uint32 { return binary.LittleEndian.Uint32(b[4:]) }

// Payload is Meta.Payload.
func (b *Block) Payload() uint16 { return binary.LittleEndian.Uint16(b[16:]) }

// PayloadLen is Meta.PayloadLen.
func (b *Block) PayloadLen() uint16 { return binary.LittleEndian.Uint16(b[18:]) }

// Tickets are Meta.VMTicket and Meta.QueueTicket.
func (b *Block) Tickets() (vm, queue uint16) {
	return binary.LittleEndian.Uint16(b[26:]), binary.LittleEndian.Uint16(b[10:])
}

// Contradicts reports whether the Size bytes in front of a frame are the program's and describe a frame of another length. Where the
// caller clears the magic word as Parse says, pieces of the frame are missing then, or there are pieces of another one.
func Contradicts(before []byte, frameLen int) bool {
	if len(before) < Size {
		return false
	}
	b := (*Block)(before)
	return b.ours() && b.frameLen() != frameLen
}
