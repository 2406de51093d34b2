package replay

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

var (
	// ErrNotCapture means that the input is neither pcap nor pcapng.
	ErrNotCapture = errors.New("not a pcap or pcapng capture")
	// ErrLinkType means that the packets are not Ethernet frames.
	ErrLinkType = errors.New("link type is not Ethernet")
	// ErrDamaged means that the capture ends in mid-record or that lengths inside it contradict each other.
	ErrDamaged = errors.New("capture is damaged")
)

// maxPacket is the most captured bytes one record may have: libpcap's MAXIMUM_SNAPLEN.
const maxPacket = 262144

// maxClock is where the clock stops, in ns: far beyond any real capture and far enough below the largest int64 that a hold
// time can be added.
const maxClock = int64(1) << 62

// record is one packet of a capture.
type record struct {
	data  []byte // valid until the next call of next
	orig  int    // length on the wire, at least len(data)
	ts    int64  // ns since 1970
	timed bool   // false: the record carries no time (pcapng simple packet blocks)
}

// capture reads the packets of a pcap or pcapng stream, compressed by gzip or not, in constant memory.
type capture struct {
	next func() (record, error) // io.EOF at the end; any other error is damage or an unreadable stream
}

type packetSource interface {
	ZeroCopyReadPacketData() ([]byte, gopacket.CaptureInfo, error)
}

func newCapture(in io.Reader) (*capture, error) {
	br := bufio.NewReaderSize(in, 256<<10)
	if magic, _ := br.Peek(2); len(magic) == 2 && magic[0] == 0x1f && magic[1] == 0x8b {
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("%w: gzip: %w", ErrDamaged, err)
		}
		br = bufio.NewReaderSize(zr, 256<<10)
	}
	magic, err := br.Peek(4)
	switch {
	case len(magic) == 0 && errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%w: it is empty", ErrNotCapture)
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case len(magic) < 4:
		return nil, fmt.Errorf("%w: it has %d bytes", ErrNotCapture, len(magic))
	}
	if string(magic) == "\x0a\x0d\x0d\x0a" {
		return newPcapng(br)
	}
	return newPcap(br, [4]byte(magic))
}

func newPcap(br *bufio.Reader, magic [4]byte) (*capture, error) {
	switch string(magic[:]) {
	case "\xa1\xb2\xc3\xd4", "\xd4\xc3\xb2\xa1", "\xa1\xb2\x3c\x4d", "\x4d\x3c\xb2\xa1":
	default:
		return nil, fmt.Errorf("%w: unknown magic number %x", ErrNotCapture, magic)
	}
	r, err := pcapgo.NewReader(br)
	if err != nil {
		return nil, damaged("file header", err)
	}
	if r.LinkType() != layers.LinkTypeEthernet {
		return nil, linkError(r.LinkType())
	}
	// The reader takes records up to the larger of this and its own limit; the file's word is not needed.
	r.SetSnaplen(maxPacket)
	return &capture{next: reading(r, func(err error) error { return err })}, nil
}

func newPcapng(br *bufio.Reader) (*capture, error) {
	blocks := newBlocks(br)
	// The block reader's own error is nearer to the cause than what the library makes of it.
	cause := func(err error) error {
		if blocks.err != nil && blocks.err != io.EOF {
			return blocks.err
		}
		return err
	}
	r, err := pcapgo.NewNgReader(blocks, pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		return nil, damaged("section header", cause(err))
	}
	return &capture{next: reading(r, cause)}, nil
}

func reading(src packetSource, cause func(error) error) func() (record, error) {
	return func() (record, error) {
		data, ci, err := src.ZeroCopyReadPacketData()
		if err != nil {
			// At a clean end nothing of a record was read. The library says io.EOF too when a record's header
			// was the last thing in the file.
			if err == io.EOF && ci.Timestamp.IsZero() && cause(err) == io.EOF {
				return record{}, io.EOF
			}
			return record{}, damaged("packet", cause(err))
		}
		if len(ci.AncillaryData) > 0 {
			if link, ok := ci.AncillaryData[0].(layers.LinkType); ok && link != layers.LinkTypeEthernet {
				return record{}, linkError(link)
			}
		}
		rec := record{data: data, orig: max(ci.Length, len(data))}
		if !ci.Timestamp.IsZero() {
			rec.timed = true
			// Seconds are at most 2^32 in pcap, and blocks keeps pcapng below maxClock.
			rec.ts = ci.Timestamp.UnixNano()
		}
		return rec, nil
	}
}

func damaged(where string, err error) error {
	if errors.Is(err, ErrDamaged) || errors.Is(err, ErrLinkType) {
		return err
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: it ends inside a %s", ErrDamaged, where)
	}
	return fmt.Errorf("%w: %s: %w", ErrDamaged, where, err)
}

func linkError(link layers.LinkType) error {
	return fmt.Errorf("%w but %d (%v): capture on an Ethernet interface", ErrLinkType, uint16(link), link)
}
