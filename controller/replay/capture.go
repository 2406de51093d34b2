package replay

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/gopacket/gopacket/layers"
)

var (
	// ErrNotCapture means that the input is neither pcap nor pcapng.
	ErrNotCapture = errors.New("not a pcap or pcapng capture")
	// ErrLinkType means that the packets are not Ethernet frames.
	ErrLinkType = errors.New("link type is not Ethernet")
	// ErrVersion means that the capture's format is older or newer than what is read.
	ErrVersion = errors.New("unknown version of a capture format")
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
type capture interface {
	// next returns io.EOF at the end; any other error is damage or an unreadable stream.
	next() (record, error)
}

func newCapture(in io.Reader) (capture, error) {
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
		return newPcapng(br), nil
	}
	return newPcap(br, [4]byte(magic))
}

// originalLength is a packet's length on the wire. A captured length above it is taken at its word: the bytes are there.
func originalLength(orig, captured uint32) int {
	return int(max(min(orig, math.MaxInt32), captured))
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

func linkError(link uint32) error {
	hint := "capture on an Ethernet interface"
	if link == uint32(layers.LinkTypeLinuxSLL) || link == uint32(layers.LinkTypeLinuxSLL2) {
		hint = "that is what a capture of all interfaces has ('-i any'), whose packets have lost their Ethernet header: capture on one interface ('-i eth0')"
	}
	return fmt.Errorf("%w but %d (%v): %s", ErrLinkType, link, layers.LinkType(link), hint)
}
