package flowtable

import (
	"encoding/binary"
	"math/bits"

	"github.com/rscctl/rscctl/flowtable/packet"
)

// words are a packet's header fields that must equal those of the superframe's first packet, packed so that one pass over
// six words compares them all. A slot's are the first packet's; what the profile rsc does not compare is the newest packet's there (moveOn):
//
//	0  destination MAC, first two bytes of the source MAC
//	1  rest of the source MAC | TCI << 32 | TOS or traffic class << 56
//	2  IPv4's bytes 6 to 9 as they stand there: flags and fragment | TTL << 16 | protocol << 24. IPv6: flow label, but for its upper 4
//	   bits | hop limit << 16 | these bits << 24. Both: urgent pointer << 32
//	3  TCP's bytes 8 to 15 as they stand there: acknowledgement | reserved bits, NS << 32 | data offset << 36 | flags without
//	   PSH and FIN << 40 | window << 48
//	4  TCP options, first 8 bytes
//	5  next 8 bytes
type words [6]uint64

// inlineOptions is how many bytes of options the words hold: timestamps (12) and every shorter list. Longer lists are rare and
// compared byte by byte with the first packet's header.
const inlineOptions = 16

// mismatch is one field that is compared.
type mismatch struct {
	word   int
	mask   uint64
	reason Reason
}

// Masks of single fields in their words. TCP's word is read as the bytes lie, little-endian, so its first byte is the lowest: a flag is
// tested where it lies, and only ack and window turn their bytes round.
const (
	maskTOS    = 0xff << 56
	maskECN    = 0x03 << 56
	maskTTL    = 0xff << 16
	maskLabel  = 0x0f00ffff
	maskDF     = 0xffff // IPv4: all flags, and the fragment
	maskUrgent = 0xffff << 32
	maskACK    = 0xffffffff
	maskFlags  = 0xff0f << 32
	maskDoff   = 0xf0 << 32
	maskWindow = 0xffff << 48

	ended = (packet.PSH | packet.FIN) << 40 // in word 3: compared by no rule, as both only end a superframe
)

// mismatches are the fields in the order in which they decide, that of docs/rules.md ("What must be equal"): from Ethernet up.
// When several fields differ, the counters name the lowest layer.
var mismatches = [...]mismatch{
	{0, ^uint64(0), ReasonMACChange},
	{1, 0xffffffff, ReasonMACChange},
	// Of the tag only priority and DEI can differ: the VLAN id is in the key.
	{1, 0xffff << 32, ReasonVLANPriority},
	// In IPv4 these bits are DF, which comes behind the TTL: see mismatchOf.
	{2, maskLabel, ReasonFlowLabel},
	{1, maskTOS - maskECN, ReasonDSCPChange},
	{1, maskECN, ReasonECNChange},
	{2, maskTTL, ReasonTTLChange},
	{3, maskFlags, ReasonTCPFlagsChange},
	{2, maskUrgent, ReasonUrgentPointer},
	{3, maskACK, ReasonACKChange},
	{3, maskWindow, ReasonWindowChange},
	// Another data offset is another length of the options.
	{3, maskDoff, ReasonOptionsChange},
	{4, ^uint64(0), ReasonOptionsChange},
	{5, ^uint64(0), ReasonOptionsChange},
}

// groMask compares everything. rscMask leaves out what the newest packet or the smallest value decides, and the urgent pointer,
// which means nothing without URG (row urgent_pointer).
var (
	groMask = words{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	rscMask = words{^uint64(0), ^uint64(0), ^uint64(maskTTL | maskUrgent), ^uint64(maskACK | maskWindow), ^uint64(0), ^uint64(0)}
)

// readIPWords fills the words below TCP from a frame whose Info is sound and OK.
func readIPWords(data []byte, in *packet.Info, w *words) {
	// The VLAN tag's ethertype is not among the words: whether there is a tag is in the key.
	w[0] = binary.LittleEndian.Uint64(data)
	w[1] = uint64(binary.LittleEndian.Uint32(data[8:])) | uint64(in.TCI)<<32
	if in.Family == 4 {
		ip := data[in.L3 : in.L3+20 : in.L3+20]
		w[1] |= uint64(ip[1]) << 56
		w[2] = uint64(binary.LittleEndian.Uint32(ip[6:]))
	} else {
		ip := data[in.L3 : in.L3+40 : in.L3+40]
		first := binary.BigEndian.Uint32(ip)
		w[1] |= uint64(first>>20&0xff) << 56
		w[2] = uint64(first&0xffff | uint32(ip[7])<<16 | first>>16&0xf<<24)
	}
}

// readWords fills w from a frame whose Info is sound and OK.
func readWords(data []byte, in *packet.Info, w *words) {
	readIPWords(data, in, w)
	tcp := data[in.L4 : in.L4+20 : in.L4+20]
	w[2] |= uint64(binary.LittleEndian.Uint16(tcp[18:])) << 32
	w[3] = binary.LittleEndian.Uint64(tcp[8:]) &^ ended
	w[4], w[5] = 0, 0
	// Loads of a fixed size instead of a copy: this runs for every segment that may be held. A list that is not 8 bytes long leaves the
	// rest of its words 0, and no list can be mistaken for a longer one, as the data offset is compared too.
	options := data[in.L4+20 : in.Payload]
	switch {
	case len(options) == 0:
	case len(options) == 12: // timestamps, by far the most common
		w[4] = binary.LittleEndian.Uint64(options)
		w[5] = uint64(binary.LittleEndian.Uint32(options[8:]))
	case len(options) >= inlineOptions:
		w[4] = binary.LittleEndian.Uint64(options)
		w[5] = binary.LittleEndian.Uint64(options[8:])
	default: // 4 or 8
		w[4] = uint64(binary.LittleEndian.Uint32(options))
		if len(options) == 8 {
			w[4] |= uint64(binary.LittleEndian.Uint32(options[4:])) << 32
		}
	}
}

// ack is the acknowledgement in a packet's words, window its window as in the header, hop its TTL or hop limit; df is of IPv4.
func (w *words) ack() uint32    { return bits.ReverseBytes32(uint32(w[3])) }
func (w *words) window() uint16 { return bits.ReverseBytes16(uint16(w[3] >> 48)) }
func (w *words) hop() uint8     { return uint8(w[2] >> 16) }
func (w *words) df() bool       { return w[2]&0x40 != 0 }

// moveOn takes over from a packet's words what the profile rsc does not compare: the acknowledgement, the window, and the TTL if that is smaller.
func (w *words) moveOn(v *words) {
	w[3] ^= (w[3] ^ v[3]) & (maskACK | maskWindow)
	if v.hop() < w.hop() {
		w[2] ^= (w[2] ^ v[2]) & maskTTL
	}
}

// equals tells whether all fields of two packets are equal. It has no branch per field: in a train they are equal nearly always.
func (w *words) equals(v *words) bool {
	return (w[0]^v[0])|(w[1]^v[1])|(w[2]^v[2])|(w[3]^v[3])|(w[4]^v[4])|(w[5]^v[5]) == 0
}

// differs tells whether any compared field of two packets differs.
func (w *words) differs(v, mask *words) bool {
	return (w[0]^v[0])&mask[0]|(w[1]^v[1])&mask[1]|(w[2]^v[2])&mask[2]|
		(w[3]^v[3])&mask[3]|(w[4]^v[4])&mask[4]|(w[5]^v[5])&mask[5] != 0
}

// mismatchOf names the first field that differs. One that compares equal under mask must not be asked: the answer is DF then, which is
// the one field that is left.
func (w *words) mismatchOf(v, mask *words, ipv6 bool) Reason {
	for i := range mismatches {
		m := &mismatches[i]
		if (w[m.word]^v[m.word])&mask[m.word]&m.mask == 0 {
			continue
		}
		if m.reason == ReasonFlowLabel && !ipv6 {
			continue // DF: behind TTL, below
		}
		if !ipv6 && i > rowTTL && (w[2]^v[2])&maskDF != 0 {
			return ReasonDFChange
		}
		return m.reason
	}
	return ReasonDFChange
}

// rowTTL is the index in mismatches of the TTL, behind which DF has its place in IPv4.
const rowTTL = 6
