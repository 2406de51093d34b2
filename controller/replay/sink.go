package replay

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Frame is one frame the guest would have received. It and its slices are valid during Sink.Frame only.
type Frame struct {
	TS       int64 // moment of delivery, ns since 1970 on the capture's clock
	Len      int   // bytes from Ethernet on
	Orig     int   // length on the wire of a packet the capture had cut, otherwise Len
	Segments int   // data segments: 1 for an unmerged one, 0 for an empty one
	DupAcks  int
	GSOType  uint8 // virtio_net_hdr.gso_type
	GSOSize  uint16
	Flags    uint8 // virtio_net_hdr.flags
	Reason   string
	Packets  []uint64 // indexes in the capture from 0, in merge order
	Frags    [][]byte // concatenated they are the frame
}

// Sink takes frames in the order of their delivery. The first error ends the replay.
type Sink interface {
	Frame(f *Frame) error
}

// JSONSink prints one object per line and frame.
type JSONSink struct {
	w   io.Writer
	buf []byte
}

// NewJSONSink returns a sink that makes one Write per frame.
func NewJSONSink(w io.Writer) *JSONSink { return &JSONSink{w: w} }

// Frame implements Sink. The line is put together by hand: captures have many millions of frames.
func (s *JSONSink) Frame(f *Frame) error {
	b := append(s.buf[:0], `{"ts_ns":`...)
	b = strconv.AppendInt(b, f.TS, 10)
	for _, field := range [...]struct {
		name  string
		value int
	}{
		{"len", f.Len}, {"segments", f.Segments}, {"dup_acks", f.DupAcks}, {"gso_type", int(f.GSOType)},
		{"gso_size", int(f.GSOSize)}, {"flags", int(f.Flags)},
	} {
		b = append(b, `,"`...)
		b = append(b, field.name...)
		b = append(b, `":`...)
		b = strconv.AppendInt(b, int64(field.value), 10)
	}
	b = append(b, `,"reason":`...)
	b = strconv.AppendQuote(b, f.Reason) // plain ASCII words
	b = append(b, `,"packets":[`...)
	for i, p := range f.Packets {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, p, 10)
	}
	s.buf = append(b, "]}\n"...)
	_, err := s.w.Write(s.buf)
	return err
}

// PcapSink writes frames to a pcap file with nanosecond timestamps.
type PcapSink struct {
	w   *pcapgo.Writer
	buf []byte
}

// NewPcapSink writes the file header.
func NewPcapSink(w io.Writer) (*PcapSink, error) {
	s := &PcapSink{w: pcapgo.NewWriterNanos(w)}
	if err := s.w.WriteFileHeader(maxPacket, layers.LinkTypeEthernet); err != nil {
		return nil, fmt.Errorf("pcap header: %w", err)
	}
	return s, nil
}

// Frame implements Sink.
func (s *PcapSink) Frame(f *Frame) error {
	s.buf = s.buf[:0]
	for _, frag := range f.Frags {
		s.buf = append(s.buf, frag...)
	}
	return s.w.WritePacket(gopacket.CaptureInfo{
		Timestamp:     time.Unix(0, f.TS),
		CaptureLength: len(s.buf),
		Length:        f.Orig,
	}, s.buf)
}
