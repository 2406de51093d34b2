package user

import (
	"encoding/binary"
	"fmt"
)

// Sizes in bytes. MaxPayload is far above the largest request a network
// back-end takes (a memory table of eight regions, 264 bytes) and far below
// anything that could hurt.
const (
	HeaderSize = 12
	MaxPayload = 4096 - HeaderSize
	MaxRegions = 8  // of one SET_MEM_TABLE
	maxFDs     = 32 // room for descriptors of one message; more are refused
)

// Bits of Header.Flags. A reply carries FlagVersion|FlagReply and nothing else:
// QEMU ends the session on any other value, also on an echoed need-reply bit.
const (
	FlagVersion     = 0x1
	FlagVersionMask = 0x3
	FlagReply       = 0x4
	FlagNeedReply   = 0x8

	replyFlags = FlagVersion | FlagReply
)

// Header is the fixed part of a message: request number, flags, payload bytes.
type Header struct {
	Request Request
	Flags   uint32
	Size    uint32
}

// Encode writes h to the first HeaderSize bytes of b.
func (h *Header) Encode(b []byte) {
	binary.LittleEndian.PutUint32(b[0:], uint32(h.Request))
	binary.LittleEndian.PutUint32(b[4:], h.Flags)
	binary.LittleEndian.PutUint32(b[8:], h.Size)
}

// Decode reads h from b and checks what holds for a message in either
// direction: version 1, no unknown flag, a size that can be met. The errors are
// ErrBadHeader and ErrTooLarge.
func (h *Header) Decode(b []byte) error {
	if len(b) < HeaderSize {
		return fmt.Errorf("message: %d bytes of header: %w", len(b), ErrBadHeader)
	}
	h.Request = Request(binary.LittleEndian.Uint32(b[0:]))
	h.Flags = binary.LittleEndian.Uint32(b[4:])
	h.Size = binary.LittleEndian.Uint32(b[8:])
	if h.Flags&FlagVersionMask != FlagVersion || h.Flags&^uint32(FlagVersionMask|FlagReply|FlagNeedReply) != 0 {
		return fmt.Errorf("message: flags %#x: %w", h.Flags, ErrBadHeader)
	}
	if h.Size > MaxPayload {
		return fmt.Errorf("message: %d bytes of payload: %w", h.Size, ErrTooLarge)
	}
	return nil
}

// Message is one request or reply with the descriptors that came along. The
// descriptors belong to whoever holds the message until TakeFD hands one out.
type Message struct {
	Header
	Payload []byte
	FDs     []int
}

// Payload sizes in bytes.
const (
	sizeU64          = 8
	sizeVringState   = 8
	sizeVringAddr    = 40
	sizeRegion       = 32
	sizeSingleRegion = 8 + sizeRegion
	sizeLog          = 16
)

// U64 decodes an 8-byte payload.
func U64(b []byte) (uint64, error) {
	if len(b) != sizeU64 {
		return 0, fmt.Errorf("u64: %d bytes: %w", len(b), ErrBadPayload)
	}
	return binary.LittleEndian.Uint64(b), nil
}

// AppendU64 encodes an 8-byte payload.
func AppendU64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }

// Bits of the word that comes with a ring's file descriptor.
const (
	fdWordIndex = 0xff
	fdWordNoFD  = 1 << 8
)

// VringState is the payload of SET_VRING_NUM, BASE and ENABLE and the reply to
// GET_VRING_BASE.
type VringState struct {
	Index, Num uint32
}

// Decode reads s from exactly 8 bytes.
func (s *VringState) Decode(b []byte) error {
	if len(b) != sizeVringState {
		return fmt.Errorf("ring state: %d bytes: %w", len(b), ErrBadPayload)
	}
	s.Index = binary.LittleEndian.Uint32(b[0:])
	s.Num = binary.LittleEndian.Uint32(b[4:])
	return nil
}

// Append encodes s at the end of b.
func (s VringState) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, s.Index)
	return binary.LittleEndian.AppendUint32(b, s.Num)
}

// VringAddrLog in VringAddr.Flags asks for logging of used-ring writes.
const VringAddrLog = 1

// VringAddr is the payload of SET_VRING_ADDR. Desc, Used and Avail are
// addresses in the front-end's process, Log is guest-physical.
type VringAddr struct {
	Index, Flags     uint32
	Desc, Used       uint64
	Avail, LogOffset uint64
}

// Decode reads a from exactly 40 bytes.
func (a *VringAddr) Decode(b []byte) error {
	if len(b) != sizeVringAddr {
		return fmt.Errorf("ring addresses: %d bytes: %w", len(b), ErrBadPayload)
	}
	a.Index = binary.LittleEndian.Uint32(b[0:])
	a.Flags = binary.LittleEndian.Uint32(b[4:])
	a.Desc = binary.LittleEndian.Uint64(b[8:])
	a.Used = binary.LittleEndian.Uint64(b[16:])
	a.Avail = binary.LittleEndian.Uint64(b[24:])
	a.LogOffset = binary.LittleEndian.Uint64(b[32:])
	return nil
}

// Append encodes a at the end of b.
func (a VringAddr) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, a.Index)
	b = binary.LittleEndian.AppendUint32(b, a.Flags)
	for _, v := range [...]uint64{a.Desc, a.Used, a.Avail, a.LogOffset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// MemRegion describes Size bytes of guest memory: at GPA for descriptors, at
// UVA in the front-end, at Offset in the file that comes with the message.
type MemRegion struct {
	GPA, Size, UVA, Offset uint64
}

func (r *MemRegion) decode(b []byte) {
	r.GPA = binary.LittleEndian.Uint64(b[0:])
	r.Size = binary.LittleEndian.Uint64(b[8:])
	r.UVA = binary.LittleEndian.Uint64(b[16:])
	r.Offset = binary.LittleEndian.Uint64(b[24:])
}

func (r MemRegion) append(b []byte) []byte {
	for _, v := range [...]uint64{r.GPA, r.Size, r.UVA, r.Offset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// DecodeMemTable reads the payload of SET_MEM_TABLE: at most MaxRegions regions
// and not a byte more than they need.
func DecodeMemTable(b []byte) ([]MemRegion, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("memory table: %d bytes: %w", len(b), ErrBadPayload)
	}
	n := binary.LittleEndian.Uint32(b)
	if n > MaxRegions {
		return nil, fmt.Errorf("memory table: %d regions: %w", n, ErrTooManySlots)
	}
	if len(b) != 8+int(n)*sizeRegion {
		return nil, fmt.Errorf("memory table: %d bytes for %d regions: %w", len(b), n, ErrBadPayload)
	}
	regions := make([]MemRegion, n)
	for i := range regions {
		regions[i].decode(b[8+i*sizeRegion:])
	}
	return regions, nil
}

// AppendMemTable encodes the payload of SET_MEM_TABLE.
func AppendMemTable(b []byte, regions []MemRegion) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(regions)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	for _, r := range regions {
		b = r.append(b)
	}
	return b
}

// DecodeSingleRegion reads the payload of ADD_MEM_REG and REM_MEM_REG.
func DecodeSingleRegion(b []byte) (MemRegion, error) {
	var r MemRegion
	if len(b) != sizeSingleRegion {
		return r, fmt.Errorf("memory region: %d bytes: %w", len(b), ErrBadPayload)
	}
	r.decode(b[8:])
	return r, nil
}

// AppendSingleRegion encodes the payload of ADD_MEM_REG and REM_MEM_REG.
func AppendSingleRegion(b []byte, r MemRegion) []byte {
	return r.append(binary.LittleEndian.AppendUint64(b, 0))
}
