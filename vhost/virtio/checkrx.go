package virtio

import "encoding/binary"

// CheckRx says whether a device may hand a guest that negotiated f this header in front of this frame. The frame is
// whole and contiguous and begins with Ethernet. nil means yes. The rules are the device's duties of section 5.1.6.4.1:
//
//	V1  without GUEST_CSUM flags are 0
//	V2  a GSO type only if its feature is negotiated
//	V3  a GSO type needs NEEDS_CSUM and gso_size
//	V4  with RSC_EXT a superframe of TCP needs RSC_INFO and the number of segments
//	V5  without RSC_EXT there is no RSC_INFO
//	V6  NEEDS_CSUM: the frame was verified, the field holds the pseudo-header's sum, start and offset find it
//	V7  DATA_VALID only when the checksums are right
//	V8  the ECN bit stands exactly on superframes with CWR, and those need GUEST_ECN
//
// and beyond them what a guest relies on: hdr_len exact on superframes, IP lengths equal to the frame's, the IPv4
// header checksum right, the payload larger than gso_size, and fields that mean nothing 0. num_buffers is checked for
// being possible; whether it is true only the ring knows. A frame with flags 0 and no GSO type may hold anything.
func CheckRx(h *NetHdr, frame []byte, f Features) error {
	if len(frame) < ethLen {
		return ErrFrameShort
	}
	if err := CheckRxHdr(h, f); err != nil {
		return err
	}
	switch {
	case h.GSOType != GSONone:
		return checkSuperframe(h, frame, f)
	case h.GSOSize != 0, int(h.HdrLen) > len(frame):
		return ErrUnused
	case h.Flags&HdrNeedsCsum != 0:
		return checkPartial(h, frame)
	case h.CsumStart != 0, h.CsumOffset != 0:
		return ErrUnused
	case h.Flags&HdrDataValid != 0:
		return checkDataValid(frame)
	}
	return nil
}

// CheckRxHdr judges what needs no frame: V1 to V5, and that num_buffers is possible.
func CheckRxHdr(h *NetHdr, f Features) error {
	if h.Flags&^(HdrNeedsCsum|HdrDataValid|HdrRSCInfo) != 0 {
		return ErrFlags
	}
	if h.Flags != 0 && !f.Has(FGuestCsum) {
		return ErrFlagsNoCsum
	}
	if f.HdrLen() >= HdrSize && (h.NumBuffers == 0 || h.NumBuffers > 1 && !f.Has(FMrgRxbuf)) {
		return ErrNumBuffers
	}
	switch h.GSOType &^ GSOECN {
	case GSONone:
		if h.GSOType != GSONone {
			return ErrECN
		}
	case GSOTCPv4:
		if !f.Has(FGuestTSO4) {
			return ErrGSOType
		}
	case GSOTCPv6:
		if !f.Has(FGuestTSO6) {
			return ErrGSOType
		}
	case GSOUDPL4: // which family's, the frame tells
		if h.GSOType != GSOUDPL4 {
			return ErrECN
		}
		if !f.Has(FGuestUSO4) && !f.Has(FGuestUSO6) {
			return ErrGSOType
		}
	default: // UDP fragmentation is never negotiated with us
		return ErrGSOType
	}
	super := h.GSOType != GSONone
	tcp := super && h.GSOType != GSOUDPL4
	switch {
	case super && h.Flags&HdrNeedsCsum == 0:
		return ErrGSONoCsum
	case super && (h.GSOSize == 0 || h.GSOSize == 0xffff): // Linux takes 65535 for "by fragment list" and drops it
		return ErrGSOSize
	case h.Flags&HdrRSCInfo != 0 && (!tcp || !f.Has(FRSCExt)):
		return ErrRSCUnexpected
	case tcp && f.Has(FRSCExt) && h.Flags&HdrRSCInfo == 0:
		return ErrRSCMissing
	}
	return nil
}

// checkSuperframe holds the header against the frame of a GSO type.
func checkSuperframe(h *NetHdr, frame []byte, f Features) error {
	l, err := dissect(frame)
	if err != nil {
		return err
	}
	if h.GSOType == GSOUDPL4 {
		return checkDatagrams(h, frame, &l, f)
	}
	family := 4
	if h.GSOType&^GSOECN == GSOTCPv6 {
		family = 6
	}
	switch {
	case l.family != family, l.proto != protTCP, !l.l4whole:
		return ErrNotTCP
	case l.end != len(frame): // padding would become payload
		return ErrIPLength
	case l.end-l.l4 < tcpMin:
		return ErrFrameShort
	}
	tcp := frame[l.l4:]
	doff := int(tcp[12]>>4) * 4
	if doff < tcpMin || doff > len(tcp) {
		return ErrFrameShort
	}
	payload := len(tcp) - doff
	switch {
	case int(h.HdrLen) != l.l4+doff:
		return ErrHdrLen
	case payload <= int(h.GSOSize): // one segment is not a superframe: guests deliver it as a plain one
		return ErrGSOSize
	case tcp[13]&(tcpSYN|tcpRST|tcpURG) != 0:
		return ErrTCPFlags
	}
	if ecn, cwr := h.GSOType&GSOECN != 0, tcp[13]&tcpCWR != 0; ecn != cwr || cwr && !f.Has(FGuestECN) {
		return ErrECN
	}
	if h.Flags&HdrRSCInfo != 0 {
		// csum_start counts segments here: none larger than gso_size, none empty.
		segments := int(h.CsumStart)
		if segments < (payload+int(h.GSOSize)-1)/int(h.GSOSize) || segments > payload {
			return ErrRSCCount
		}
	} else if int(h.CsumStart) != l.l4 || h.CsumOffset != 16 {
		return ErrCsumPlace
	}
	if binary.BigEndian.Uint16(tcp[16:]) != fold(l.pseudo) {
		return ErrCsumPartial
	}
	return nil
}

// checkDatagrams is checkSuperframe for UDP.
func checkDatagrams(h *NetHdr, frame []byte, l *layers, f Features) error {
	switch {
	case l.proto != protUDP, !l.l4whole:
		return ErrNotUDP
	case l.family == 4 && !f.Has(FGuestUSO4), l.family == 6 && !f.Has(FGuestUSO6):
		return ErrGSOType
	case l.end != len(frame): // padding would become payload
		return ErrIPLength
	case l.end-l.l4 < udpLen:
		return ErrFrameShort
	}
	udp := frame[l.l4:]
	payload := len(udp) - udpLen
	switch {
	case int(h.HdrLen) != l.l4+udpLen:
		return ErrHdrLen
	case int(binary.BigEndian.Uint16(udp[4:])) != len(udp):
		return ErrIPLength
	case payload <= int(h.GSOSize), payload > maxDatagrams*int(h.GSOSize):
		return ErrGSOSize
	case int(h.CsumStart) != l.l4 || h.CsumOffset != 6:
		return ErrCsumPlace
	case binary.BigEndian.Uint16(udp[6:]) != fold(l.pseudo):
		return ErrCsumPartial
	}
	return nil
}

// checkPartial judges NEEDS_CSUM on a single packet.
func checkPartial(h *NetHdr, frame []byte) error {
	l, err := dissect(frame)
	if err == ErrNotTCP || err == nil && !l.l4whole {
		return ErrCsumPlace // a checksum that we cannot know of
	}
	if err != nil {
		return err
	}
	offset, least := 16, tcpMin
	switch l.proto {
	case protTCP:
	case protUDP:
		offset, least = 6, udpLen
	default:
		return ErrCsumPlace
	}
	switch {
	case l.end-l.l4 < least:
		return ErrFrameShort
	case int(h.CsumStart) != l.l4, int(h.CsumOffset) != offset:
		return ErrCsumPlace
	case l.end != len(frame): // the guest sums to the frame's end
		return ErrIPLength
	case binary.BigEndian.Uint16(frame[l.l4+offset:]) != fold(l.pseudo):
		return ErrCsumPartial
	}
	return nil
}

// checkDataValid does the whole sum.
func checkDataValid(frame []byte) error {
	l, err := dissect(frame)
	if err != nil || !l.l4whole {
		return ErrDataValid
	}
	l4 := frame[l.l4:l.end]
	switch l.proto {
	case protTCP:
		if len(l4) < tcpMin {
			return ErrDataValid
		}
	case protUDP:
		if len(l4) < udpLen || binary.BigEndian.Uint16(l4[6:]) == 0 { // no checksum is not a right one
			return ErrDataValid
		}
	default:
		return ErrDataValid
	}
	if fold(sum(l4, l.pseudo)) != 0xffff {
		return ErrDataValid
	}
	return nil
}
