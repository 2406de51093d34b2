package virtio

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
)

// Feature bit numbers. Network bits are of section 5.1.3, ring and transport bits of section 6.
const (
	FCsum              = 0  // device completes partial checksums of frames the guest sends
	FGuestCsum         = 1  // guest accepts partial checksums and the "verified" mark
	FCtrlGuestOffloads = 2  // guest may switch its receive offloads at run time
	FMTU               = 3  // the device names an MTU
	FMAC               = 5  // the device names a MAC address
	FGSO               = 6  // legacy
	FGuestTSO4         = 7  // guest accepts TCP superframes over IPv4
	FGuestTSO6         = 8  // guest accepts TCP superframes over IPv6
	FGuestECN          = 9  // guest accepts superframes whose TCP header carries CWR
	FGuestUFO          = 10 // obsolete
	FHostTSO4          = 11 // device segments IPv4 TCP frames of the guest
	FHostTSO6          = 12 // device segments IPv6 TCP frames of the guest
	FHostECN           = 13 // device segments frames with CWR rightly
	FHostUFO           = 14 // obsolete
	FMrgRxbuf          = 15 // one frame may span several receive buffers
	FStatus            = 16 // the configuration space has a status field
	FCtrlVQ            = 17 // control queue
	FCtrlRx            = 18 // receive mode by control queue
	FCtrlVLAN          = 19 // VLAN filter by control queue
	FCtrlRxExtra       = 20 // further receive modes
	FGuestAnnounce     = 21 // guest can announce itself after a migration
	FMQ                = 22 // several queue pairs
	FCtrlMACAddr       = 23 // MAC address by control queue
	FNotifyOnEmpty     = 24 // legacy
	FLogAll            = 26 // vhost only: log every page written
	FAnyLayout         = 27 // legacy
	FIndirectDesc      = 28 // descriptors may name a table of descriptors
	FEventIdx          = 29 // notifications by index instead of by flag
	FProtocolFeatures  = 30 // vhost-user only: protocol features exist
	FVersion1          = 32 // the standard, as opposed to its draft
	FAccessPlatform    = 33 // addresses go through an IOMMU
	FRingPacked        = 34 // packed ring layout
	FInOrder           = 35 // buffers are used in the order they were made available
	FOrderPlatform     = 36 // real memory barriers needed
	FNotificationData  = 38 // a kick carries data
	FRingReset         = 40 // queues may be reset one by one
	FNotfCoal          = 53 // interrupt moderation by control queue
	FGuestUSO4         = 54 // guest accepts UDP superframes over IPv4
	FGuestUSO6         = 55 // guest accepts UDP superframes over IPv6
	FHostUSO           = 56 // device segments UDP frames of the guest
	FHashReport        = 57 // header carries a hash and grows to 20 bytes
	FGuestHdrLen       = 59 // driver sets an exact hdr_len on send
	FRSS               = 60 // receive-side scaling by control queue
	FRSCExt            = 61 // device reports segments and duplicate ACKs of a superframe
	FStandby           = 62 // standby of another device
	FSpeedDuplex       = 63 // the configuration space has speed and duplex
)

// Errors of [Features.Check].
var (
	// ErrFeatureDependency: a bit is set without one that it needs (section 5.1.3.1).
	ErrFeatureDependency = errors.New("virtio features: a bit lacks one it depends on")
	// ErrFeatureUnsupported: the bit changes the ring or the header in a way this module does not speak.
	ErrFeatureUnsupported = errors.New("virtio features: a bit is not supported")
)

// Features is a set of feature bits, bit n of the number being feature n.
type Features uint64

// Mask returns the set that holds exactly the given bits.
func Mask(bit ...uint) Features {
	var f Features
	for _, b := range bit {
		f |= 1 << b
	}
	return f
}

// Has says whether the bit of that number is in the set.
func (f Features) Has(bit uint) bool { return bit < 64 && f>>bit&1 != 0 }

// HdrLen is the size of the header in front of each frame, in bytes, in both directions: 12 with VERSION_1
// or MRG_RXBUF, otherwise the legacy 10 (section 5.1.6). HASH_REPORT would make it 20; [Features.Check] refuses it.
func (f Features) HdrLen() int {
	if f.Has(FVersion1) || f.Has(FMrgRxbuf) {
		return HdrSize
	}
	return HdrSizeLegacy
}

// Names lists the set's bits by name in ascending order, for people. A bit without a name is "bit N".
func (f Features) Names() []string {
	out := make([]string, 0, bits.OnesCount64(uint64(f)))
	for rest := uint64(f); rest != 0; rest &= rest - 1 {
		n := bits.TrailingZeros64(rest)
		name := featureNames[n]
		if name == "" {
			name = "bit " + strconv.Itoa(n)
		}
		out = append(out, name)
	}
	return out
}

var featureNames = [64]string{
	FCsum: "CSUM", FGuestCsum: "GUEST_CSUM", FCtrlGuestOffloads: "CTRL_GUEST_OFFLOADS", FMTU: "MTU", FMAC: "MAC",
	FGSO: "GSO", FGuestTSO4: "GUEST_TSO4", FGuestTSO6: "GUEST_TSO6", FGuestECN: "GUEST_ECN", FGuestUFO: "GUEST_UFO",
	FHostTSO4: "HOST_TSO4", FHostTSO6: "HOST_TSO6", FHostECN: "HOST_ECN", FHostUFO: "HOST_UFO",
	FMrgRxbuf: "MRG_RXBUF", FStatus: "STATUS", FCtrlVQ: "CTRL_VQ", FCtrlRx: "CTRL_RX", FCtrlVLAN: "CTRL_VLAN",
	FCtrlRxExtra: "CTRL_RX_EXTRA", FGuestAnnounce: "GUEST_ANNOUNCE", FMQ: "MQ", FCtrlMACAddr: "CTRL_MAC_ADDR",
	FNotifyOnEmpty: "NOTIFY_ON_EMPTY", FLogAll: "LOG_ALL", FAnyLayout: "ANY_LAYOUT",
	FIndirectDesc: "INDIRECT_DESC", FEventIdx: "EVENT_IDX", FProtocolFeatures: "PROTOCOL_FEATURES",
	FVersion1: "VERSION_1", FAccessPlatform: "ACCESS_PLATFORM", FRingPacked: "RING_PACKED", FInOrder: "IN_ORDER",
	FOrderPlatform: "ORDER_PLATFORM", FNotificationData: "NOTIFICATION_DATA", FRingReset: "RING_RESET",
	FNotfCoal: "NOTF_COAL", FGuestUSO4: "GUEST_USO4", FGuestUSO6: "GUEST_USO6", FHostUSO: "HOST_USO",
	FHashReport: "HASH_REPORT", FGuestHdrLen: "GUEST_HDRLEN", FRSS: "RSS", FRSCExt: "RSC_EXT",
	FStandby: "STANDBY", FSpeedDuplex: "SPEED_DUPLEX",
}

// dependencies: a bit and the bits of which at least one must stand beside it. The standard lists RSC_EXT as
// needing HOST_TSO4 or HOST_TSO6, while its text (and QEMU, and Windows) mean the GUEST bits; we follow the text.
// Bits that need CTRL_VQ are not listed: that queue stays in the VM monitor, which does not tell a back-end of it.
var dependencies = [...]struct {
	bit  uint
	need Features
}{
	{FGuestTSO4, 1 << FGuestCsum},
	{FGuestTSO6, 1 << FGuestCsum},
	{FGuestECN, 1<<FGuestTSO4 | 1<<FGuestTSO6},
	{FGuestUFO, 1 << FGuestCsum},
	{FHostTSO4, 1 << FCsum},
	{FHostTSO6, 1 << FCsum},
	{FHostECN, 1<<FHostTSO4 | 1<<FHostTSO6},
	{FHostUFO, 1 << FCsum},
	{FGuestUSO4, 1 << FGuestCsum},
	{FGuestUSO6, 1 << FGuestCsum},
	{FHostUSO, 1 << FCsum},
	{FRSCExt, 1<<FGuestTSO4 | 1<<FGuestTSO6},
}

// unsupported bits change the layout of rings, addresses or headers; accepting one would misread everything.
const unsupported = Features(1<<FRingPacked | 1<<FAccessPlatform | 1<<FHashReport | 1<<FNotificationData)

// Check says whether the set is one that a guest may acknowledge and that we can serve. The error wraps
// [ErrFeatureDependency] or [ErrFeatureUnsupported] and names the bit.
func (f Features) Check() error {
	if bad := f & unsupported; bad != 0 {
		return fmt.Errorf("%s: %w", bad.Names()[0], ErrFeatureUnsupported)
	}
	for _, d := range dependencies {
		if f.Has(d.bit) && f&d.need == 0 {
			return fmt.Errorf("%s needs %v: %w", featureNames[d.bit], d.need.Names(), ErrFeatureDependency)
		}
	}
	return nil
}

// WithoutLoneECN clears GUEST_ECN and HOST_ECN where no TSO bit of their direction stands beside them. Alone they
// promise nothing: they speak of GSO frames, and there are none.
func (f Features) WithoutLoneECN() Features {
	if f&(1<<FGuestTSO4|1<<FGuestTSO6) == 0 {
		f &^= 1 << FGuestECN
	}
	if f&(1<<FHostTSO4|1<<FHostTSO6) == 0 {
		f &^= 1 << FHostECN
	}
	return f
}
