package tap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What a feed does with a frame it does not take. They are made once: the data path may return them a million times.
var (
	// ErrFull: no room now; the same frame may be tried again.
	ErrFull = errors.New("feed: no room")
	// ErrLost: the kernel had no room and has dropped the frame. It may be tried again.
	ErrLost = errors.New("feed: dropped by a full queue of the kernel's")
	// ErrRefused: this frame cannot be sent, now or later. The errors below say why.
	ErrRefused = errors.New("feed: frame refused")
	// ErrGone: the tap is not there any more, or not usable: see ErrDown.
	ErrGone = errors.New("feed: the tap is gone")
	// ErrDown is the ErrGone of a tap whose link is down; it can come up again.
	ErrDown = fmt.Errorf("%w: its link is down", ErrGone)
	// ErrSocket: what another process handed over is no packet socket on this tap.
	ErrSocket = errors.New("feed: no packet socket of this interface")
	// ErrClosed: the feed was closed.
	ErrClosed = errors.New("feed: closed")
)

// Why a frame is refused.
var (
	ErrFrameLength = fmt.Errorf("%w: its length is not that of its fragments, or not that of any frame", ErrRefused)
	ErrMTU         = fmt.Errorf("%w: longer than the tap's MTU without being a superframe", ErrRefused)
	ErrTooLong     = fmt.Errorf("%w: more than 65535 bytes with Ethernet", ErrRefused)
	ErrSmall       = fmt.Errorf("%w: superframe of segments that are too small for some kernels", ErrRefused)
	ErrFragments   = fmt.Errorf("%w: too many fragments or chunks", ErrRefused)
	ErrCopy        = fmt.Errorf("%w: too many bytes outside of the UMEM", ErrRefused)
	ErrHdrFlags    = fmt.Errorf("%w: header with a flag that means nothing to a tap", ErrRefused)
	ErrHdrLen      = fmt.Errorf("%w: hdr_len beyond the frame or inside the headers", ErrRefused)
	ErrHdrCsum     = fmt.Errorf("%w: checksum outside of the frame", ErrRefused)
	ErrHdrGSO      = fmt.Errorf("%w: superframe without gso_size, of an unknown type, or without NEEDS_CSUM", ErrRefused)
	// ErrMemory: the frame's memory is not there any more.
	ErrMemory = fmt.Errorf("%w: its memory is gone", ErrRefused)
	// ErrKernelRefused is for what the kernel found and we did not.
	ErrKernelRefused = fmt.Errorf("%w by the kernel", ErrRefused)
)

// Why there is no /dev/vhost-net to use. Each text holds the remedy.
var (
	ErrNoVhostNet = errors.New("/dev/vhost-net: missing: load the module (modprobe vhost_net), or make the node (mknod /dev/vhost-net c 10 238)")
	ErrPermission = errors.New("/dev/vhost-net: no permission: run as root or a member of its group (kvm), and allow the device in the service's or container's device rules (DeviceAllow=/dev/vhost-net rw)")
	// ErrFeatures: the kernel's vhost-net lacks what a ring of ours needs.
	ErrFeatures = errors.New("/dev/vhost-net: a needed feature is not offered")
	// ErrRing: the kernel gave the ring up, as it does when an address is not mapped or a chain is malformed.
	ErrRing = errors.New("/dev/vhost-net: ring stopped with an error")
	// ErrConfig: sizes that no ring can have.
	ErrConfig = errors.New("feed: impossible configuration")
)

// sendError translates what sendmmsg(2) on a packet socket says (net/packet/af_packet.c, packet_snd).
func sendError(errno unix.Errno) error {
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return ErrFull
	case unix.EINVAL, unix.EMSGSIZE:
		return ErrKernelRefused
	case unix.ENETDOWN:
		return ErrDown
	case unix.ENODEV, unix.ENXIO:
		return ErrGone
	}
	return fmt.Errorf("packet socket: send: %w", errno)
}
