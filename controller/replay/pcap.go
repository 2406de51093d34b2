package replay

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/gopacket/gopacket/layers"
)

// Layout of a classic capture (draft-ietf-opsawg-pcap): a file header, and a header in front of each packet.
const (
	pcapHeader   = 24 // magic, version (2 x 16 bits), zone, accuracy, snap length, link type
	recordHeader = 16 // seconds, fraction, captured length, original length

	// linkMask leaves out what says how long the frame check sequence is that the packets may end in: it lies behind the IP packet.
	linkMask = 0x03ffffff
)

// pcap reads a classic capture.
//
// pcapgo.Reader is not used: it refuses formats before 2.4 and packets whose captured length exceeds the original one, which
// libpcap reads. That happens where a driver counts the padding or the check sequence on one side only.
type pcap struct {
	in    *bufio.Reader
	order binary.ByteOrder
	unit  int64  // of a timestamp's fraction, ns
	minor uint16 // version
	buf   []byte // reused
}

// newPcap reads the file header. magic is its first word as it stands in the file.
func newPcap(in *bufio.Reader, magic [4]byte) (*pcap, error) {
	p := &pcap{in: in, order: binary.LittleEndian, unit: 1000}
	switch string(magic[:]) {
	case "\xa1\xb2\xc3\xd4":
		p.order = binary.BigEndian
	case "\xd4\xc3\xb2\xa1":
	case "\xa1\xb2\x3c\x4d":
		p.order, p.unit = binary.BigEndian, 1
	case "\x4d\x3c\xb2\xa1":
		p.unit = 1
	default:
		return nil, fmt.Errorf("%w: unknown magic number %x", ErrNotCapture, magic)
	}
	var head [pcapHeader]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, damaged("file header", err)
	}
	major, minor := p.order.Uint16(head[4:]), p.order.Uint16(head[6:])
	if major != 2 || minor > 4 {
		return nil, fmt.Errorf("%w: pcap %d.%d: 2.0 to 2.4 are read", ErrVersion, major, minor)
	}
	p.minor = minor
	if link := p.order.Uint32(head[20:]) & linkMask; link != uint32(layers.LinkTypeEthernet) {
		return nil, linkError(link)
	}
	return p, nil
}

// lengths puts a record's two lengths in order. Format 2.3 changed it, and not every program that wrote 2.3 knew (libpcap,
// sf-pcap.c).
func (p *pcap) lengths(first, second uint32) (captured, orig uint32) {
	if p.minor < 3 || p.minor == 3 && first > second {
		return second, first
	}
	return first, second
}

// next returns the next packet; see capture.
func (p *pcap) next() (record, error) {
	var head [recordHeader]byte
	if n, err := io.ReadFull(p.in, head[:]); err != nil {
		if n == 0 && err == io.EOF {
			return record{}, io.EOF
		}
		return record{}, damaged("packet", err)
	}
	captured, orig := p.lengths(p.order.Uint32(head[8:]), p.order.Uint32(head[12:]))
	if captured > maxPacket {
		return record{}, fmt.Errorf("%w: packet of %d bytes", ErrDamaged, captured)
	}
	if cap(p.buf) < int(captured) {
		p.buf = make([]byte, captured)
	}
	data := p.buf[:captured]
	if _, err := io.ReadFull(p.in, data); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return record{}, damaged("packet", err)
	}
	ts := int64(p.order.Uint32(head[:]))*1e9 + int64(p.order.Uint32(head[4:]))*p.unit // at most 2^32 seconds: below maxClock
	return record{data: data, orig: originalLength(orig, captured), ts: ts, timed: true}, nil
}
