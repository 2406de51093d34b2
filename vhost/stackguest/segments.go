package stackguest

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// countTCP counts a frame's TCP data segments as a guest sees them: a superframe has payload/gso_size of them, rounded
// up, any other TCP frame with payload is one. It reads the frame and not the back-end's counters, so that the two can
// be compared.
func (c *counts) countTCP(h *virtio.NetHdr, frame []byte) {
	c.largest = max(c.largest, uint64(len(frame)))
	payload := tcpPayload(frame)
	if payload <= 0 {
		return
	}
	c.dataFrames++
	if h.GSOType == virtio.GSONone || h.GSOSize == 0 {
		c.segments++
		return
	}
	size := int(h.GSOSize)
	c.segments += uint64((payload + size - 1) / size)
}

// tcpPayload is the number of payload bytes of an untagged TCP frame without IPv6 extension headers, by its IP length,
// and 0 for everything else.
func tcpPayload(b []byte) int {
	if len(b) < 14+20+20 {
		return 0
	}
	var l4, end int
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		if b[14]>>4 != 4 || b[14+9] != 6 {
			return 0
		}
		l4 = 14 + int(b[14]&15)*4
		end = 14 + int(binary.BigEndian.Uint16(b[14+2:]))
	case 0x86dd:
		if b[14+6] != 6 {
			return 0
		}
		l4 = 14 + 40
		end = l4 + int(binary.BigEndian.Uint16(b[14+4:]))
	default:
		return 0
	}
	if end > len(b) || l4+20 > len(b) {
		return 0
	}
	return max(0, end-l4-int(b[l4+12]>>4)*4)
}
