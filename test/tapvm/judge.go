package tapvm

import (
	"encoding/binary"
	"errors"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// Stats counts what passed a VM's tap. Frames go to the guest, TxFrames come from it.
type Stats struct {
	Frames, Bytes         uint64 // Bytes without virtio_net_hdr
	DataFrames, DataBytes uint64 // those with TCP payload: frames, and bytes of payload
	Datagrams, UDPFrames  uint64 // of UDP: payload over gso_size, rounded up, and the frames that they came in
	Superframes           uint64 // with a GSO type
	Segments              uint64 // of TCP: payload over gso_size, rounded up; any other data frame is one
	Buffers               uint64 // receive buffers, the sum of num_buffers
	Largest               uint64 // frame, in bytes

	TxFrames, TxBytes uint64

	HdrLenHints  uint64 // superframes whose hdr_len is not the headers' length: the kernel gives a hint
	Violations   uint64 // headers that a guest must not be given
	StackRefused uint64 // frames that the guest's stack would not take from its tap: EINVAL
	Lost         uint64 // frames that a tap would not take for its state, either direction
	FirstBad     string // the first violation or refusal
}

// MeanDataFrame is the mean number of bytes of TCP payload per frame that has some.
func (s *Stats) MeanDataFrame() float64 {
	if s.DataFrames == 0 {
		return 0
	}
	return float64(s.DataBytes) / float64(s.DataFrames)
}

// judge counts a frame for the guest and holds it against what a guest with features f may be given.
func (s *Stats) judge(h virtio.NetHdr, frame []byte, f virtio.Features) {
	s.Frames++
	s.Bytes += uint64(len(frame))
	s.Buffers += uint64(h.NumBuffers)
	s.Largest = max(s.Largest, uint64(len(frame)))
	hdrLen, payload, udp := layout(frame)
	switch {
	case payload > 0 && udp:
		s.UDPFrames++
		s.Datagrams++
		if h.GSOType != virtio.GSONone && h.GSOSize > 0 {
			s.Datagrams += uint64((payload - 1) / int(h.GSOSize))
		}
	case payload > 0:
		s.DataFrames++
		s.DataBytes += uint64(payload)
		s.Segments++
		if h.GSOType != virtio.GSONone && h.GSOSize > 0 {
			s.Segments += uint64((payload - 1) / int(h.GSOSize))
		}
	}
	if h.GSOType != virtio.GSONone {
		s.Superframes++
		if hdrLen > 0 && int(h.HdrLen) != hdrLen {
			// A tap gives the length of the buffer's linear part, which for frames of the host's own stack is another.
			s.HdrLenHints++
			h.HdrLen = uint16(hdrLen)
		}
	}
	if err := virtio.CheckRx(&h, frame, f); err != nil {
		s.Violations++
		s.bad(err)
	}
}

func (s *Stats) bad(err error) {
	if s.FirstBad == "" {
		s.FirstBad = err.Error()
	}
}

// wrote counts what a tap said to a frame.
func (s *Stats) wrote(err error, einval *uint64) {
	switch {
	case err == nil:
	case errors.Is(err, errInvalid):
		*einval++
		s.bad(err)
	default:
		s.Lost++
	}
}

// layout is the length of all headers and of the payload of a TCP or UDP frame, and 0, 0 for anything else.
func layout(b []byte) (hdrLen, payload int, udp bool) {
	at := 12
	if len(b) >= 18 && b[12] == 0x81 && b[13] == 0 {
		at += 4
	}
	ip := at + 2
	if len(b) < ip+40 {
		return 0, 0, false
	}
	var l4, end int
	var proto byte
	switch kind := binary.BigEndian.Uint16(b[at:]); {
	case kind == 0x0800 && b[ip]>>4 == 4:
		proto, l4, end = b[ip+9], ip+int(b[ip]&15)*4, ip+int(binary.BigEndian.Uint16(b[ip+2:]))
	case kind == 0x86dd:
		proto, l4, end = b[ip+6], ip+40, ip+40+int(binary.BigEndian.Uint16(b[ip+4:]))
	default:
		return 0, 0, false
	}
	switch {
	case end > len(b):
		return 0, 0, false
	case proto == 6 && l4+20 <= end:
		hdrLen = l4 + int(b[l4+12]>>4)*4
	case proto == 17 && l4+8 <= end:
		hdrLen = l4 + 8
	default:
		return 0, 0, false
	}
	return hdrLen, max(0, end-hdrLen), proto == 17
}
