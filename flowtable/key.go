package flowtable

import (
	crand "crypto/rand"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"

	"github.com/rscctl/rscctl/flowtable/packet"
)

// key names a flow: the port, the VLAN, the addresses, the protocol and its ports. Two VMs may use the same addresses, so the port comes
// first. Everything else in the headers is compared by match.
type key struct {
	addr uint64    // IPv4: both addresses; IPv6: the first half of the source
	meta uint64    // TCP or UDP ports, port, family, protocol, tag
	rest [3]uint64 // IPv6: the other halves
	fold uint64    // of addr and rest, by Table.fold
}

// Bits of key.meta below the ports of TCP or UDP (32 bits) and the port (16 bits).
const (
	metaTagged = 1 << 12 // above the VLAN id
	metaIPv6   = 1 << 13
	metaUDP    = 1 << 14
	metaPort   = 16
	metaTCP    = 32
	metaPair   = 1<<metaTCP - 1 - metaUDP // what two flows between the same addresses have in common
)

// readKey reads a flow's key from a frame whose Info says that it is there (Keyed) and whose offsets were checked.
func readKey(data []byte, in *packet.Info, port uint32, k *key) {
	k.meta = uint64(binary.LittleEndian.Uint32(data[in.L4:]))<<metaTCP | uint64(port)<<metaPort
	if in.Tagged {
		k.meta |= metaTagged | uint64(in.TCI&0xfff)
	}
	if in.UDP {
		k.meta |= metaUDP
	}
	if in.Family == 4 {
		k.addr = binary.LittleEndian.Uint64(data[in.L3+12:])
		return
	}
	k.meta |= metaIPv6
	a := data[in.L3+8 : in.L3+40 : in.L3+40]
	k.addr = binary.LittleEndian.Uint64(a)
	k.rest[0] = binary.LittleEndian.Uint64(a[8:])
	k.rest[1] = binary.LittleEndian.Uint64(a[16:])
	k.rest[2] = binary.LittleEndian.Uint64(a[24:])
}

// seed holds the secret of a table's hash.
type seed [6]uint64

// sow makes a secret: at random, or always the same of a number that is not 0.
func (s *seed) sow(from uint64) error {
	var b [len(s) * 8]byte
	if from != 0 {
		rand.NewChaCha8([32]byte(binary.LittleEndian.AppendUint64(make([]byte, 24), from))).Read(b[:])
	} else if _, err := crand.Read(b[:]); err != nil {
		return err
	}
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return nil
}

// fold brings the addresses of a key together.
func (t *Table) fold(k *key) {
	k.fold = k.addr
	if k.meta&metaIPv6 != 0 {
		k.fold = k.fold6(&t.seed)
	}
}

// A flow's hash multiplies halves of its key by secret numbers and keeps both ends of the product. As long as the seed is
// secret and random, nobody can choose flows that fall into one bucket more often than chance has it (multiply-shift hashing).
// bucketOf has the last step; this is what IPv6 needs before it.
func (k *key) fold6(s *seed) uint64 {
	return mix(k.addr^s[2], k.rest[0]^s[3]) ^ mix(k.rest[1]^s[4], k.rest[2]^s[5])
}

// bucketOf is where a flow of an IPv4 pair's addresses, or of what fold made of an IPv6 pair's, and of a key's meta has its place.
func (t *Table) bucketOf(fold, meta uint64) uint32 {
	return uint32(mix(fold^t.seed[0], meta^t.seed[1]) >> (t.shift & 63))
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// pair hashes the two addresses of a folded key, with port, family and VLAN: of a packet whose ports are out of reach the protocol may be too.
func (k *key) pair(s *seed) uint64 {
	return mix(k.fold^s[1], k.meta&metaPair^s[0])
}

// addressed tells whether a frame has its addresses where its Info says.
func addressed(data []byte, in *packet.Info) bool {
	l3, ip := uint32(14), 20
	if in.Tagged {
		l3 = 18
	}
	if in.Family == 6 {
		ip = 40
	}
	return in.L3 == l3 && len(data) >= int(l3)+ip && data[l3]>>4 == in.Family && (in.Family == 4 || in.Family == 6)
}

// looseInfo tries to find addresses and ports of a malformed packet: an IP length that says more than there is (a capture
// cut short) or too little does not hide whose packet it is, and that flow's held packets must go first.
func looseInfo(data []byte, in *packet.Info) (packet.Info, bool) {
	out := *in
	n := uint32(len(data))
	proto := uint8(6)
	if in.UDP {
		proto = 17
	}
	switch {
	case in.L3 < 14 || in.L3 > 18:
		return out, false
	case in.Family == 4:
		if n < in.L3+20 || data[in.L3]>>4 != 4 || data[in.L3]&15 < 5 || data[in.L3+9] != proto || binary.BigEndian.Uint16(data[in.L3+6:])&0x1fff != 0 {
			return out, false
		}
		out.L4 = in.L3 + uint32(data[in.L3]&15)*4
	case in.Family == 6:
		if n < in.L3+40 || data[in.L3]>>4 != 6 || data[in.L3+6] != proto {
			return out, false
		}
		out.L4 = in.L3 + 40
	default:
		return out, false
	}
	return out, n >= out.L4+4
}

// sound tells whether the offsets of an Info can be used on the first fragment of a frame of size bytes. They come from the caller, who may have them from
// elsewhere than packet.Parse; what does not fit is parsed again.
func sound(data []byte, size int, in *packet.Info) bool {
	n := uint64(len(data))
	if in.Verdict != packet.OK {
		if !in.Keyed {
			return in.Verdict != packet.Fragment && in.Verdict != packet.ExtHeader || addressed(data, in)
		}
		ip := uint64(20)
		if in.Family == 6 {
			ip = 40
		}
		return (in.Family == 4 || in.Family == 6) && in.L3 >= 14 && in.L3 <= 18 &&
			uint64(in.L4) >= uint64(in.L3)+ip && uint64(in.L4)+4 <= n
	}
	var l3 uint32 = 14
	if in.Tagged {
		l3 = 18
	}
	end := uint64(in.Payload) + uint64(in.PayloadLen)
	if !in.Keyed || in.L3 != l3 || end > uint64(size) || uint64(in.Payload) > n || in.Payload > 18+40+60 {
		return false
	}
	var total, l4 uint32
	switch in.Family {
	case 4:
		l4 = l3 + 20
	case 6:
		l4 = l3 + 40
	default:
		return false
	}
	if in.L4 != l4 || in.Payload < l4+20 || n < uint64(l4)+20 {
		return false
	}
	if in.Family == 4 {
		total = uint32(binary.BigEndian.Uint16(data[l3+2:]))
	} else {
		total = 40 + uint32(binary.BigEndian.Uint16(data[l3+4:]))
	}
	return end == uint64(l3+total) && uint32(data[l4+12]>>4)*4 == in.Payload-l4 && data[l4+13] == in.TCPFlags
}
