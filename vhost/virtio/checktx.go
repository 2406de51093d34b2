package virtio

// MaxFrame is the longest frame in bytes that anybody may send or receive: Ethernet with one 802.1Q tag, an IPv6 header
// and 65535 bytes behind it. Over IPv4 it is 36 bytes less, which the IP length tells.
const MaxFrame = ethLen + 4 + ip6Len + 65535

// CheckTx says whether a guest that negotiated f may send a frame of frameLen bytes (Ethernet first, without the
// header) behind this header: the driver's duties of section 5.1.6.2.1. Sizes and places are only checked to be
// possible; whoever segments the frame or completes its checksum looks at the frame itself.
//
// Unknown flags and num_buffers are ignored, as section 5.1.6.2.2 wants it, and so is hdr_len, which is a hint that
// guests get wrong. csum_start and csum_offset count only with NEEDS_CSUM.
func CheckTx(h *NetHdr, frameLen int, f Features) error {
	switch {
	case frameLen < ethLen:
		return ErrFrameShort
	case frameLen > MaxFrame:
		return ErrFrameLong
	}
	if h.Flags&HdrNeedsCsum != 0 {
		if !f.Has(FCsum) {
			return ErrCsumNotNegotiated
		}
		if h.CsumStart < ethLen || int(h.CsumStart)+int(h.CsumOffset)+2 > frameLen {
			return ErrCsumPlace
		}
	}
	least, place, header := ethLen, uint16(16), tcpMin // where the transport header can begin at the earliest, its checksum in it, its length
	switch h.GSOType &^ GSOECN {
	case GSONone:
		if h.GSOType != GSONone {
			return ErrECN
		}
		return nil
	case GSOTCPv4:
		if !f.Has(FHostTSO4) {
			return ErrGSOType
		}
		least += ip4Min
	case GSOTCPv6:
		if !f.Has(FHostTSO6) {
			return ErrGSOType
		}
		least += ip6Len
	case GSOUDPL4:
		if !f.Has(FHostUSO) {
			return ErrGSOType
		}
		if h.GSOType != GSOUDPL4 { // CWR is TCP's
			return ErrECN
		}
		least, place, header = least+ip4Min, 6, udpLen
	default:
		return ErrGSOType
	}
	switch {
	case h.GSOType&GSOECN != 0 && !f.Has(FHostECN):
		return ErrECN
	case h.Flags&HdrNeedsCsum == 0:
		return ErrGSONoCsum
	case h.GSOSize == 0:
		return ErrGSOSize
	case int(h.CsumStart) < least, h.CsumOffset != place:
		return ErrCsumPlace
	case int(h.CsumStart)+header > frameLen:
		return ErrFrameShort
	}
	return nil
}
