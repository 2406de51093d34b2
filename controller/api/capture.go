package api

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Side is where a capture listens.
type Side string

const (
	SideWire  Side = "wire"  // frames as they came for the VM, and as it sent them
	SideGuest Side = "guest" // frames as the guest got them
)

// Sides are all of them; the first is the default.
var Sides = []Side{SideWire, SideGuest}

// Bounds of the bytes of a frame that a capture keeps. No frame is longer.
const (
	MinSnapLen = 64
	MaxSnapLen = 1 << 17
)

// CaptureQuery says what of a VM is captured.
type CaptureQuery struct {
	VM      string
	Side    Side
	Flow    string // see ParseFlowFilter
	SnapLen int    // bytes of each frame, 0: all
}

// CaptureHead is the first line of a capture's stream, JSON. Behind it are blocks; see CaptureBlock.
type CaptureHead struct {
	Schema  int      `json:"schema"`
	VM      string   `json:"vm"`
	Iface   string   `json:"iface"`
	Side    Side     `json:"side"`
	SnapLen int      `json:"snaplen"`
	Reasons []string `json:"reasons"` // the names of the numbers in the blocks
	Deeds   []string `json:"deeds"`
	Note    string   `json:"note,omitempty"` // what this capture cannot see
}

// BlockKind tells the blocks of a stream apart.
type BlockKind uint8

// The kinds of blocks.
const (
	BlockFrame BlockKind = 1 + iota
	BlockLost            // Count frames are not in the stream: they came faster than they were read
	BlockEnd             // the last one; Data says why
)

// VirtioHeader is what a guest is told of a frame, as in struct virtio_net_hdr_v1.
type VirtioHeader struct {
	Flags, GSOType                                     uint8
	HdrLen, GSOSize, CsumStart, CsumOffset, NumBuffers uint16
}

// CaptureBlock is one block of a capture's stream: blockSize bytes, and Data behind them. Numbers are little-endian.
type CaptureBlock struct {
	Kind     BlockKind
	Deed     uint8 // into CaptureHead.Deeds
	Reason   uint8 // into CaptureHead.Reasons
	ToWire   bool  // the VM sent it
	Queue    uint16
	Len      uint32 // bytes of the frame, Ethernet first
	Packets  uint32
	Segments uint32
	TimeNS   int64  // since 1970
	Count    uint64 // of BlockLost
	Hdr      VirtioHeader
	Data     []byte // its first bytes
}

const blockSize = 52

// Append writes the block behind b.
func (k *CaptureBlock) Append(b []byte) []byte {
	le := binary.LittleEndian
	way := byte(0)
	if k.ToWire {
		way = 1
	}
	b = append(b, byte(k.Kind), k.Deed, k.Reason, way)
	b = le.AppendUint16(b, k.Queue)
	b = append(b, k.Hdr.Flags, k.Hdr.GSOType)
	for _, v := range [...]uint32{uint32(len(k.Data)), k.Len, k.Packets, k.Segments} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, uint64(k.TimeNS))
	b = le.AppendUint64(b, k.Count)
	for _, v := range [...]uint16{k.Hdr.HdrLen, k.Hdr.GSOSize, k.Hdr.CsumStart, k.Hdr.CsumOffset, k.Hdr.NumBuffers, 0} {
		b = le.AppendUint16(b, v)
	}
	return append(b, k.Data...)
}

// readBlock reads what Append wrote. Data is buf, or longer memory.
func readBlock(in io.Reader, k *CaptureBlock, buf []byte) error {
	var h [blockSize]byte
	if _, err := io.ReadFull(in, h[:]); err != nil {
		return err
	}
	le := binary.LittleEndian
	*k = CaptureBlock{
		Kind: BlockKind(h[0]), Deed: h[1], Reason: h[2], ToWire: h[3] == 1, Queue: le.Uint16(h[4:]), Len: le.Uint32(h[12:]), Packets: le.Uint32(h[16:]), Segments: le.Uint32(h[20:]),
		TimeNS: int64(le.Uint64(h[24:])), Count: le.Uint64(h[32:]),
		Hdr: VirtioHeader{h[6], h[7], le.Uint16(h[40:]), le.Uint16(h[42:]), le.Uint16(h[44:]), le.Uint16(h[46:]), le.Uint16(h[48:])},
	}
	n := le.Uint32(h[8:])
	if n > MaxSnapLen || k.Kind == BlockFrame && n > k.Len || k.Kind < BlockFrame || k.Kind > BlockEnd {
		return fmt.Errorf("%w: %d bytes in a block of kind %d", errBadBlock, n, k.Kind)
	}
	if uint32(cap(buf)) < n {
		buf = make([]byte, n)
	}
	k.Data = buf[:n]
	if _, err := io.ReadFull(in, k.Data); err != nil {
		return io.ErrUnexpectedEOF
	}
	return nil
}

var errBadBlock = errors.New("bad block")

// CaptureStream is a capture under way. One goroutine uses it.
type CaptureStream struct {
	Head CaptureHead
	c    *Client
	ctx  context.Context
	body io.ReadCloser
	in   *bufio.Reader
	buf  []byte
}

// Capture begins a capture, which ctx ends. The caller closes it.
func (c *Client) Capture(ctx context.Context, q CaptureQuery) (*CaptureStream, error) {
	v := query{"vm": q.VM, "side": string(q.Side), "flow": q.Flow}
	if q.SnapLen > 0 {
		v["snaplen"] = strconv.Itoa(q.SnapLen)
	}
	body, err := c.open(ctx, "/v1/capture", v)
	if err != nil {
		return nil, err
	}
	s := &CaptureStream{c: c, ctx: ctx, body: body, in: bufio.NewReaderSize(body, 256<<10)}
	line, err := s.in.ReadSlice('\n')
	if err == nil {
		err = json.Unmarshal(line, &s.Head)
	}
	if err != nil {
		body.Close()
		return nil, c.cut(ctx, err)
	}
	return s, nil
}

// Next reads the next frame or loss into k; k.Data stays as it is until the next call. The error is as Client.Trace has it.
func (s *CaptureStream) Next(k *CaptureBlock) error {
	if err := readBlock(s.in, k, s.buf); err != nil {
		return s.c.cut(s.ctx, err)
	}
	s.buf = k.Data[:cap(k.Data)]
	if k.Kind == BlockEnd {
		return fmt.Errorf("%w: %s", ErrEnded, k.Data)
	}
	return nil
}

// Pending tells whether Next would not wait.
func (s *CaptureStream) Pending() bool { return s.in.Buffered() > 0 }

// Close ends the capture.
func (s *CaptureStream) Close() error { return s.body.Close() }
