package tap

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// check says whether the kernel will take this frame for a tap of that MTU, and with it the number of fragments that are not
// empty. The error wraps ErrRefused.
//
// The rules are the kernel's own (packet_snd and virtio_net_hdr_to_skb), and stricter where it accepts a frame only to drop it
// later. One of them saves the ring: a vhost whose backend lets it batch small frames puts a descriptor back and stops when a
// checksum lies beyond the frame (drivers/vhost/net.c, vhost_net_build_xdp).
func check(f *virtio.Frame, mtu int) (frags int, err error) {
	total := 0
	for _, b := range f.Frags {
		if len(b) > 0 {
			frags++
			total += len(b)
		}
	}
	h := &f.Hdr
	switch {
	case total != f.Len, f.Len < ethLen:
		return 0, ErrFrameLength
	case h.Flags&^(virtio.HdrNeedsCsum|virtio.HdrDataValid) != 0:
		return 0, ErrHdrFlags
	case int(h.HdrLen) > f.Len:
		return 0, ErrHdrLen
	}
	end := int(h.CsumStart) + int(h.CsumOffset) + 2
	if h.Flags&virtio.HdrNeedsCsum != 0 && (int(h.CsumStart) < ethLen || end > f.Len) {
		return 0, ErrHdrCsum
	}
	if h.GSOType == virtio.GSONone {
		return frags, checkMTU(f, mtu)
	}
	return frags, checkGSO(f)
}

func checkMTU(f *virtio.Frame, mtu int) error {
	limit := mtu + ethLen
	for _, b := range f.Frags {
		if len(b) == 0 {
			continue
		}
		if len(b) >= ethLen && binary.BigEndian.Uint16(b[12:]) == 0x8100 {
			limit += tagLen
		}
		break
	}
	if f.Len > limit {
		return ErrMTU
	}
	return nil
}

// leastGSO is the smallest gso_size of TCP that every kernel takes: 6.1.192 of Debian drops what has less on its way to the tap, and says nothing
// (tried: 1 to 7 are lost, 8 arrives). Linux calls that bound TCP_MIN_GSO_SIZE (include/net/tcp.h).
const leastGSO = 8

// TooSmall reports whether a frame is a superframe of TCP whose segments are so small that some kernels lose it. It is to be sent packet by packet:
// Send and Post refuse it (ErrSmall).
func TooSmall(h *virtio.NetHdr) bool {
	return h.GSOType != virtio.GSONone && h.GSOType != virtio.GSOUDPL4 && h.GSOSize < leastGSO
}

// checkGSO judges a superframe. NEEDS_CSUM is demanded because the kernel would set it anyway and replace the checksum.
func checkGSO(f *virtio.Frame) error {
	h := &f.Hdr
	place, least := uint16(tcpCsum), tcpMin
	switch h.GSOType {
	case virtio.GSOTCPv4, virtio.GSOTCPv6, virtio.GSOTCPv4 | virtio.GSOECN, virtio.GSOTCPv6 | virtio.GSOECN:
	case virtio.GSOUDPL4:
		place, least = udpCsum, udpLen
	default:
		return ErrHdrGSO
	}
	switch {
	case f.Len > MaxLen:
		return ErrTooLong
	case h.Flags&virtio.HdrNeedsCsum == 0, h.GSOSize == 0, h.GSOSize == 0xffff: // 65535 means "by fragment list" to the kernel
		return ErrHdrGSO
	case TooSmall(h):
		return ErrSmall
	case h.CsumOffset != place:
		return ErrHdrCsum
	case int(h.HdrLen) < int(h.CsumStart)+least:
		return ErrHdrLen
	}
	return nil
}
