package flowtable

import (
	"fmt"
	"math"
	"slices"

	"github.com/rscctl/rscctl/flowtable/packet"
)

// port is one port's rules, its slots by age, and its account.
type port struct {
	hold   int64 // ns; the longest, if adaptive
	holds  [holdLevels]int64
	maxIP  [2]uint32 // untagged, tagged: the smaller of both below
	bytes  [2]uint32 // by PortConfig
	guest  int       // by LimitFrame, Ethernet length; 0: no limit
	maxSeg uint32
	may    [4]Reason // IPv4, IPv6, and the same of UDP: why everything is passed by PortConfig, or open
	gate   [4]Reason // the same with single
	single bool      // by Single
	late   bool      // by LeaveSums
	oldest uint32    // slots in the order of their first packets
	newest uint32
	active uint32 // 1 + index in Table.active, 0: no slots

	rules  ruleSet
	plain4 bool      // nothing but the rules gro says what becomes of TCP in IPv4
	udp    *udpRules // nil: UDP passes as what is not TCP

	csum, ecn, rscInfo, fixedID, tagged, pshClose, noVerify bool

	adaptive bool
	adapting

	exclude []uint16 // sorted
	ledger  Ledger
}

// open is no reason: nothing speaks against going on.
const open = Reason(NumReasons)

// configure puts a configuration in force. The caller has sealed what is held.
func (p *port) configure(c *PortConfig) error {
	if c.MaxBytes == 0 {
		c.MaxBytes = MaxIPLength
	}
	switch {
	case c.Hold < 0:
		return fmt.Errorf("%w: hold %v is negative", ErrConfig, c.Hold)
	case c.MaxBytes < 0 || c.MaxBytes > MaxIPLength:
		return fmt.Errorf("%w: %d bytes at most: not between 1 and %d", ErrConfig, c.MaxBytes, MaxIPLength)
	case c.MaxSegments < 0 || c.MaxFrame < 0:
		return fmt.Errorf("%w: negative limit", ErrConfig)
	case c.Profile > RSC:
		return fmt.Errorf("%w: unknown profile %d", ErrConfig, c.Profile)
	}
	p.hold = c.Hold.Nanoseconds()
	p.adapt(c.Adaptive, p.hold)
	p.rules = rulesOf(c)
	p.bytes = [2]uint32{uint32(c.MaxBytes), uint32(min(c.MaxBytes, MaxTaggedIPLength))}
	if c.MaxFrame > 0 {
		p.bytes = shorten(p.bytes, c.MaxFrame)
	}
	p.limit(p.guest)
	p.maxSeg = math.MaxUint16
	if c.MaxSegments > 0 {
		p.maxSeg = uint32(min(c.MaxSegments, math.MaxUint16))
	}
	p.may = [4]Reason{gate(c, c.IPv4, c.TSO4), gate(c, c.IPv6, c.TSO6), gate(c, c.IPv4, c.USO4), gate(c, c.IPv6, c.USO6)}
	if p.udp = nil; c.UDP && (p.may[2] == open || p.may[3] == open) {
		p.udp = &udpRules{}
	}
	p.exclude = slices.Sorted(slices.Values(c.ExcludePorts))
	p.shutAll(p.single)
	p.csum, p.ecn, p.rscInfo = c.GuestCsum, c.ECN, c.RSCExt
	p.fixedID, p.pshClose = c.FixedID, c.PSHClose
	p.tagged = p.rules.tags(c)
	return nil
}

// limit takes the smaller of the operator's limit and the guest's, frame bytes of Ethernet.
func (p *port) limit(frame int) {
	p.guest, p.maxIP = frame, p.bytes
	if frame > 0 {
		p.maxIP = shorten(p.bytes, frame)
	}
}

// shutAll passes everything, or what PortConfig allows.
func (p *port) shutAll(single bool) {
	p.single, p.gate = single, p.may
	for i, r := range p.gate {
		if single && r == open {
			p.gate[i] = ReasonGuestRefuses
		}
	}
	_, gro := p.rules.(*groRules)
	p.plain4 = gro && len(p.exclude) == 0 && p.gate[0] == open
}

// longest is the IP length that a superframe may have into which a packet is to join.
func (p *port) longest(in *packet.Info) uint32 {
	if in.Tagged {
		return p.maxIP[1]
	}
	return p.maxIP[0]
}

// shorten turns an Ethernet length into IP lengths and takes the smaller.
func shorten(ip [2]uint32, frame int) [2]uint32 {
	return [2]uint32{min(ip[0], uint32(max(frame-14, 0))), min(ip[1], uint32(max(frame-18, 0)))}
}

// gate tells why a family's packets all pass, or open.
func gate(c *PortConfig, family, tso bool) Reason {
	switch {
	case !c.Coalesce:
		return ReasonPolicyOff
	case !family:
		return ReasonFamilyOff
	case !c.GuestCsum || !tso:
		return ReasonNotNegotiated
	}
	return open
}

// shut tells why a packet of sound structure passes by policy, or open.
func (p *port) shut(data []byte, in *packet.Info) Reason {
	i := 0
	if in.Family == 6 {
		i = 1
	}
	if in.UDP {
		i += 2
	}
	r := p.gate[i]
	if r != open {
		return r
	}
	if len(p.exclude) > 0 {
		src := uint16(data[in.L4])<<8 | uint16(data[in.L4+1])
		dst := uint16(data[in.L4+2])<<8 | uint16(data[in.L4+3])
		if _, ok := slices.BinarySearch(p.exclude, src); ok {
			return ReasonPortExcluded
		}
		if _, ok := slices.BinarySearch(p.exclude, dst); ok {
			return ReasonPortExcluded
		}
	}
	if in.Tagged && !p.tagged {
		return ReasonVLANTag
	}
	return open
}
