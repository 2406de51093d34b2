package datapath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
)

// plainTenant says what tenant.go should, with the plainest means: addresses of net/netip, headers cut off one after the other.
type plainTenant struct {
	mac   []byte
	mine  []netip.Prefix
	frame []byte
}

const plainPass = flowtable.Reason(0)

func (p *plainTenant) has(a netip.Addr) bool {
	if a.Is6() {
		m := p.mac
		ll := []byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]}
		if bytes.Equal(a.AsSlice(), ll) {
			return true
		}
	} else if a.AsSlice()[0] == 0 || a.AsSlice()[0] >= 224 {
		return false
	}
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return false
	}
	return slices.ContainsFunc(p.mine, func(m netip.Prefix) bool { return m.Contains(a) })
}

func (p *plainTenant) judge() flowtable.Reason {
	body := p.frame[14:]
	switch binary.BigEndian.Uint16(p.frame[12:]) {
	case 0x0800:
		return p.v4(body)
	case 0x86dd:
		return p.v6(body)
	case 0x0806:
		if len(body) < 28 {
			return flowtable.ReasonMalformed
		}
		from, to := netip.AddrFrom4([4]byte(body[14:])), netip.AddrFrom4([4]byte(body[24:]))
		request, reply := bytes.HasPrefix(body, []byte{0, 1, 8, 0, 6, 4, 0, 1}), bytes.HasPrefix(body, []byte{0, 1, 8, 0, 6, 4, 0, 2})
		probe := request && from.IsUnspecified() && p.has(to)
		if bytes.Equal(body[8:14], p.mac) && (probe || (request || reply) && p.has(from)) {
			return plainPass
		}
		return flowtable.ReasonSourceARP
	case 0x8035:
		if len(body) < 28 {
			return flowtable.ReasonMalformed
		}
		announce := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 3}, p.mac, make([]byte, 4), p.mac, make([]byte, 4))
		if bytes.HasPrefix(body, announce) {
			return plainPass
		}
		return flowtable.ReasonSourceARP
	}
	return flowtable.ReasonEtherType
}

func (p *plainTenant) v4(b []byte) flowtable.Reason {
	if len(b) < 20 || b[0] < 0x45 || b[0] > 0x4f || len(b) < int(b[0]-0x40)*4 {
		return flowtable.ReasonMalformed
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	udp := b[int(b[0]-0x40)*4:]
	more, offset := b[6]&0x20 != 0, binary.BigEndian.Uint16(b[6:])<<3
	if b[9] == 17 && offset == 0 {
		if len(udp) < 8 {
			return flowtable.ReasonMalformed
		}
		if bytes.Equal(udp[2:4], []byte{0, 68}) {
			return flowtable.ReasonDHCPServer
		}
		if !more && src.IsUnspecified() && dst.String() == "255.255.255.255" && bytes.Equal(udp[:4], []byte{0, 68, 0, 67}) {
			return plainPass
		}
	}
	if p.has(src) {
		return plainPass
	}
	return flowtable.ReasonSourceIP
}

func (p *plainTenant) v6(b []byte) flowtable.Reason {
	if len(b) < 40 || b[0]>>4 != 6 {
		return flowtable.ReasonMalformed
	}
	src, dst, kind := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6]
	foreign := flowtable.ReasonSourceIP
	if p.has(src) {
		foreign = plainPass
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	b = b[40:]
	if n > 0 && n < len(b) {
		b = b[:n]
	}
	fragments := false
	for headers := 0; bytes.IndexByte([]byte{0, 43, 44, 51, 60, 135, 139, 140}, kind) >= 0; headers++ {
		if headers == 8 || len(b) < 8 {
			return flowtable.ReasonMalformed
		}
		size := 8 + 8*int(b[1])
		if kind == 51 {
			size = 8 + 4*int(b[1])
		}
		if kind == 44 {
			size, fragments = 8, true
			if b[2] != 0 || b[3] > 7 {
				return foreign
			}
		}
		if len(b) < size {
			return flowtable.ReasonMalformed
		}
		kind, b = b[0], b[size:]
	}
	before := src.IsUnspecified() && dst.IsLinkLocalMulticast() && dst.AsSlice()[1] == 2 // flags and scope, both bits
	switch kind {
	case 17:
		if len(b) < 8 {
			return flowtable.ReasonMalformed
		}
		if bytes.Equal(b[2:4], []byte{2, 34}) {
			return flowtable.ReasonDHCPServer
		}
	case 58:
		if len(b) < 4 {
			return flowtable.ReasonMalformed
		}
		switch b[0] {
		case 134, 137:
			return flowtable.ReasonRouterAdvert
		case 141, 142:
			return flowtable.ReasonSourceND
		case 133, 135, 136:
			if fragments || !p.nd(b, src) {
				return flowtable.ReasonSourceND
			}
			if b[0] != 136 && before {
				return plainPass
			}
		case 131, 132, 143:
			if !fragments && before {
				return plainPass
			}
		}
	}
	return foreign
}

func (p *plainTenant) nd(b []byte, src netip.Addr) bool {
	head := map[byte]int{133: 8, 135: 24, 136: 24}[b[0]]
	if len(b) < head {
		return false
	}
	if head == 24 && (b[0] == 136 || src.IsUnspecified()) && !p.has(netip.AddrFrom16([16]byte(b[8:]))) {
		return false
	}
	for b = b[head:]; len(b) > 0; {
		if len(b) < 8 || b[1] == 0 || len(b) < 8*int(b[1]) {
			return false
		}
		link := b[0] == 1 || b[0] == 2
		if link && (src.IsUnspecified() || !bytes.Equal(b[1:8], slices.Concat([]byte{1}, p.mac))) {
			return false
		}
		b = b[8*int(b[1]):]
	}
	return true
}

// Whatever a guest sends, its judge agrees with the plain one, reads no further than it says, and does not panic.
func FuzzTenantFrames(f *testing.F) {
	for _, row := range tenantFrames() {
		f.Add(row.frame)
	}
	p := &port{PortConfig: PortConfig{Addr: Addr{MAC: tenantMAC}}}
	isTenant(&p.PortConfig)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 2000 {
			return
		}
		copy(frame[6:], tenantMAC[:])
		reach, why, refused := p.refusesSource(frame, true)
		if !refused {
			why = plainPass
		}
		plain := plainTenant{mac: tenantMAC[:], mine: tenantSources, frame: frame}
		if want := plain.judge(); why != want {
			t.Fatalf("%x: %s, the plain judge says %s", frame, why, want)
		}
		if refused {
			return
		}
		if reach < 14 || reach > len(frame) {
			t.Fatalf("%x: read to %d", frame, reach)
		}
		for i := reach; i < len(frame); i++ { // a checksum may come to stand there
			frame[i] ^= 0xff
		}
		if _, why, refused := p.refusesSource(frame, true); refused {
			t.Fatalf("%x: passed, and is refused for %s with other bytes behind %d", frame, why, reach)
		}
	})
}
