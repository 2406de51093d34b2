package flowtable

import (
	"errors"
	"math/bits"
	"time"

	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// The errors of New, SetPort and Segmenter.
var (
	ErrConfig = errors.New("flow table: configuration")
	ErrPort   = errors.New("flow table: no such port")
)

// Profile chooses the rules.
type Profile uint8

// The profiles.
const (
	GRO Profile = iota // lossless: a Segmenter gives back the packets bit for bit
	RSC                // Windows' rules; GRO is used unless RSC_EXT was negotiated
)

// String returns "gro" or "rsc".
func (p Profile) String() string {
	if p == RSC {
		return "rsc"
	}
	return "gro"
}

// Limits of lengths, in bytes.
const (
	MaxIPLength       = 65535 // IP total length of a superframe, both families
	MaxTaggedIPLength = 65532 // with a tag in the frame: what is left of a 65,562-byte guest buffer
	MaxSlots          = 65536
	DefaultSlots      = 4096
)

// Values in virtio_net_hdr (virtio 1.2, section 5.1.6). The table does not import the package that speaks virtio.
const (
	hdrNeedsCsum = 1
	hdrDataValid = 2
	hdrRSCInfo   = 4

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDPL4 = 5
	gsoECN   = 0x80
)

// PortConfig is what holds for one port: the operator's policy and what the guest negotiated.
type PortConfig struct {
	Coalesce     bool // off: every packet leaves alone
	IPv4, IPv6   bool
	UDP          bool // merge UDP datagrams too, if the guest takes them
	Profile      Profile
	Hold         time.Duration // longest wait of a first segment; 0: to the end of the burst
	Adaptive     bool          // how long it is up to Hold is found out, per flow and per port
	MaxBytes     int           // IP length of a superframe, 1 to MaxIPLength
	MaxFrame     int           // Ethernet length of a superframe, tag included; 0: no limit beyond MaxBytes
	MaxSegments  int           // 0: no limit
	ExcludePorts []uint16      // ports of TCP and UDP, source or destination, that are never merged

	GuestCsum, TSO4, TSO6, ECN, RSCExt bool // VIRTIO_NET_F_GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, RSC_EXT
	USO4, USO6                         bool // VIRTIO_NET_F_GUEST_USO4, GUEST_USO6

	FixedID   bool // merge IPv4 trains with DF set whose ID stands still
	MergeVLAN bool // gro: merge frames with an 802.1Q tag
	PSHClose  bool // rsc: a segment with PSH ends the superframe
}

// DefaultPortConfig merges what it may for at most 50 us, for a guest that negotiated nothing yet.
func DefaultPortConfig() PortConfig {
	return PortConfig{
		Coalesce: true, IPv4: true, IPv6: true,
		Hold: 50 * time.Microsecond, MaxBytes: MaxIPLength,
		FixedID: true, MergeVLAN: true,
	}
}

// Packet is one frame on its way in. Its memory is borrowed: it must stay as it is until its Refs come back in a Superframe.
// The table may rewrite the headers in it then. The Packet itself is the caller's again when Add returns; one that is used over
// and over costs nothing, a new one is allocated.
type Packet struct {
	Data     []byte // the frame, Ethernet first; of one in several fragments the first, which must have all headers
	Ref      uint64 // the caller's name for Data's memory
	Port     uint32
	Info     packet.Info // what packet.Parse or ParseHead says; of a cut frame the caller may set Verdict to Truncated
	GSOInput bool        // more than one segment, or a partial checksum, by the caller's knowledge: passed with flags 0
	Asked    bool        // Follow has said no to it: Add does not ask again
	Tail     []Fragment  // what follows Data in other memory (AF_XDP multi-buffer), usually nothing; read during Add only
	// CsumStart, if not 0, says that the two bytes CsumOffset behind it hold the pseudo header's sum, and that the sum is to be completed from
	// there on: a VM of this machine has left it so, and nothing can have damaged the packet since. Such a packet is in one fragment, and is as
	// long as IP says. It stays as it is if it leaves alone, at once, for a guest with GUEST_CSUM; else the table completes the sum.
	CsumStart, CsumOffset uint16
}

// Fragment is a part of a frame in memory of its own.
type Fragment struct {
	Data []byte
	Ref  uint64 // the caller's name for Data's memory
}

// MaxTail is the number of further fragments of a packet that may be merged. With more it leaves alone, for reason pressure.
const MaxTail = 255

// size is the length of the frame.
func (p *Packet) size() int {
	n := len(p.Data)
	for i := range p.Tail {
		n += len(p.Tail[i].Data)
	}
	return n
}

// sum adds the transport header and the payload of a packet of sound structure, in any number of fragments, to a partial checksum.
func (p *Packet) sum(initial uint32) uint16 {
	from, end := p.Info.L4, p.Info.Payload+p.Info.PayloadLen
	n := min(end, uint32(len(p.Data)))
	sum := checksum.Sum(p.Data[from:n], initial)
	odd := (n-from)&1 != 0
	left := end - n
	for i := range p.Tail {
		n := min(left, uint32(len(p.Tail[i].Data)))
		left -= n
		part := checksum.Sum(p.Tail[i].Data[:n], 0)
		if odd { // its first byte is the second of a word
			part = bits.ReverseBytes16(part)
		}
		sum = checksum.Fold(uint64(sum) + uint64(part))
		odd = odd != (n&1 != 0)
	}
	return sum
}

// Superframe is one frame on its way out: a single packet as it came, or many with one set of headers. The fields named
// as in virtio_net_hdr hold what belongs there, in host byte order. It and its slices are valid only during Deliver; the
// memory behind Frags belongs to Output from then on, together with Refs. Every packet that Add took leaves in exactly one.
type Superframe struct {
	Entry             // what the Output books, once, when the frame has reached its fate
	Port       uint32 // of the packets; its Ledger is to hear of the frame
	DupAcks    int    // always 0: duplicate acknowledgements leave alone
	Flags      uint8
	GSOType    uint8
	GSOSize    uint16
	HdrLen     uint16
	CsumStart  uint16
	CsumOffset uint16
	Frags      [][]byte // their concatenation is the frame; Frags[0] begins with the headers, in the first packet's memory, or with Sums in the table's
	Refs       []uint64 // of all its packets' fragments, in merge order, those of absorbed window updates included
	FixedID    bool     // the packets' IPv4 ID stands still: a Segmenter is to be told
	Held       int64    // ns the first packet waited
	// Sums, for a port with LeaveSums, has an entry for each fragment behind the first, which then has all headers and nothing else. Where
	// it is not 0 the fragment is the payload of a packet that is damaged unless checksum.Sum(fragment, sum) is 0xffff, and the Output has
	// to find that out before anybody sees the frame. Packet i of a superframe is as it came, in the memory of Refs[i]: headers as long as
	// Frags[0], then Frags[i+1], to its capacity. Flags are for a frame that proves good.
	Sums []uint16
}

// Output takes what the table gives out, in order of delivery. It books each frame's Entry in the port's Ledger once, when it
// has delivered or dropped the frame. Deliver must not call the table, but for Ledger. It may keep the frame's lists, Frags, Refs and Sums, if it leaves
// other ones in their place, of any length: the table uses those then.
type Output interface {
	Deliver(sf *Superframe)
}

// Config sizes a table. All of its memory is allocated by New.
type Config struct {
	Slots    int    // packets and superframes held at a time, 0: DefaultSlots, at most MaxSlots
	MaxHeld  int    // chunks (Refs) held at a time, 0: four times Slots; the oldest superframe leaves when it is reached
	Ports    int    // ports are 0..Ports-1, at most 65,536
	Seed     uint64 // of the hash; 0: random, which nobody can choose flows against. With it the same packets get the same adaptive holds
	NoVerify bool   // benchmarks only: checksums are believed, and DATA_VALID is never set
}
