package virtio

import "errors"

// Errors of [CheckRx] and [CheckTx]. V1 to V8 are the device's duties on receive (section 5.1.6.4.1), numbered as in
// the comment of CheckRx. None holds a number of the frame or of the header.
var (
	ErrFrameShort = errors.New("virtio header: frame is shorter than its headers say")
	ErrFrameLong  = errors.New("virtio header: frame is longer than any frame can be")
	ErrFlags      = errors.New("virtio header: unknown flag")
	ErrNumBuffers = errors.New("virtio header: num_buffers is 0, or not 1 without MRG_RXBUF")
	ErrUnused     = errors.New("virtio header: a field without meaning here is not 0")

	ErrFlagsNoCsum   = errors.New("virtio header: V1: flags set, but GUEST_CSUM is not negotiated")
	ErrGSOType       = errors.New("virtio header: V2: gso_type is unknown or not negotiated")
	ErrGSONoCsum     = errors.New("virtio header: V3: gso_type without NEEDS_CSUM")
	ErrGSOSize       = errors.New("virtio header: V3: gso_size is not a segment's size")
	ErrRSCMissing    = errors.New("virtio header: V4: RSC_EXT is negotiated, but a superframe lacks RSC_INFO")
	ErrRSCCount      = errors.New("virtio header: V4: number of segments does not fit the payload")
	ErrRSCUnexpected = errors.New("virtio header: V5: RSC_INFO without RSC_EXT or without a superframe")
	ErrCsumPlace     = errors.New("virtio header: V6: csum_start or csum_offset is not the checksum's place")
	ErrCsumPartial   = errors.New("virtio header: V6: checksum field is not the pseudo-header's sum")
	ErrDataValid     = errors.New("virtio header: V7: DATA_VALID on a frame whose checksums are wrong or unknown")
	ErrECN           = errors.New("virtio header: V8: ECN bit of gso_type, CWR and ECN feature do not agree")

	ErrHdrLen     = errors.New("virtio header: hdr_len is not the length of the headers")
	ErrNotUDP     = errors.New("virtio header: superframe is not UDP")
	ErrNotTCP     = errors.New("virtio header: superframe is not TCP over the IP version of gso_type")
	ErrIPLength   = errors.New("virtio header: IP length disagrees with the frame")
	ErrIPChecksum = errors.New("virtio header: IPv4 header checksum is wrong")
	ErrTCPFlags   = errors.New("virtio header: superframe carries SYN, RST or URG")

	ErrCsumNotNegotiated = errors.New("virtio header: NEEDS_CSUM, but CSUM is not negotiated")
)
