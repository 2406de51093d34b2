package datapath

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// tagTypes are the EtherTypes that some switch takes for a tag.
var tagTypes = []uint16{0x8100, 0x88a8, 0x88e7, 0x9100, 0x9200, 0x9300, 0x893f, 0x8926, 0x8903, 0x8909, 0xdada}

func TestTagsOfAGuestAreRefused(t *testing.T) {
	for _, edits := range [][]func(*PortConfig){nil, {inLAN(7)}, {maySpoof}} {
		l := newLAN(t, 64)
		g := l.vm(edits...)
		l.vm(edits...)
		for _, dst := range [][6]byte{everybody, lanStation, l.vms[1].mac} {
			for _, tag := range tagTypes {
				l.refused(t, flowtable.ReasonVLANForeign, g,
					lanFrame(dst, g.mac, tag, 7, 0x0800),
					lanFrame(dst, g.mac, 0x8100, 0, tag, 7, 0x0800),      // behind a priority tag
					lanFrame(dst, g.mac, 0x8100, 0xe000, tag, 0, 0x0800), // a stack of them
					lanFrame(dst, g.mac, 60, 0xaaaa, 0x0300, 0, tag, 7),  // behind a SNAP header
					lanFrame(dst, g.mac, 0x8100, 0, 60, 0xaaaa, 0x0300, 0, tag, 7))
			}
			l.refused(t, flowtable.ReasonVLANForeign, g, lanFrame(dst, g.mac, 0x8100, 1, 0x0800), lanFrame(dst, g.mac, 0x8100, 0xefff, 0x0800))
		}
		short := lanFrame(lanStation, g.mac, 0x8100, 0)
		l.refused(t, flowtable.ReasonVLANForeign, g, short[:14], short[:17])
	}
}

// An access port takes one tag off. What a VM then saw would be a tag that somebody else has chosen.
func TestATagBehindATagReachesNoVM(t *testing.T) {
	l := newLAN(t, 64)
	plain, seven := l.vm(), l.vm(inLAN(7))
	for _, tag := range tagTypes {
		for _, behind := range [][]uint16{{tag, 7, 0x0800}, {tag, 0, 0x0800}, {60, 0xaaaa, 0x0300, 0, tag, 7}} {
			hidden := lanFrame(everybody, lanStation, behind...)
			for _, f := range []lanGroupFrame{
				{data: hidden}, {data: hidden, tagged: true}, {data: hidden, tci: 0xe000, tagged: true}, {data: hidden, tci: 7, tagged: true},
			} {
				hears, not := plain, seven
				if f.tci == 7 {
					hears, not = seven, plain
				}
				l.receiveGroup(f)
				sameFrames(t, "at the VM", hears.heard())
				dropsAre(t, "at the VM", l.rxDropped(hears), lanReasons{flowtable.ReasonVLANForeign: 1})
				dropsAre(t, "in another VLAN", l.rxDropped(not), lanReasons{})
			}
		}
		l.nic.rx = append(l.nic.rx, lanFrame(seven.mac, lanStation, 0x8100, 7, tag, 9, 0x0800))
		if tag != 0x8100 && tag != 0x88a8 { // XDP leaves those to the host
			l.nic.rx = append(l.nic.rx, lanFrame(plain.mac, lanStation, tag, 9, 0x0800))
		}
		l.w.step()
		sameFrames(t, "unicast", append(seven.heard(), plain.heard()...))
		dropsAre(t, "unicast", l.rxDropped(seven), lanReasons{flowtable.ReasonVLANForeign: 1})
		l.rxDropped(plain)
	}
	// What bears no tag of its own passes, LLC too.
	for _, behind := range [][]uint16{{privateType}, {60, 0x4242, 0x0300}, {60, 0xaaaa, 0x0300, 0, 0x809b}} {
		f := lanFrame(everybody, lanStation, behind...)
		l.receiveGroup(lanGroupFrame{data: f, tci: 0x6007, tagged: true})
		sameFrames(t, "in the VLAN", seven.heard(), f)
		l.nic.rx = append(l.nic.rx, lanFrame(seven.mac, lanStation, append([]uint16{0x8100, 0x6007}, behind...)...))
		l.w.step()
		sameFrames(t, "unicast in the VLAN", seven.heard(), lanFrame(seven.mac, lanStation, behind...))
	}
}

func TestAPriorityTagIsTheGuestsAndItsVLANIsOurs(t *testing.T) {
	const pcp, dei = 5 << 13, 1 << 12
	for _, c := range []struct {
		name      string
		vlan, tci uint16
		wire      []uint16 // what stands there before the EtherType
	}{
		{"access port", 7, pcp | dei, []uint16{0x8100, pcp | dei | 7}},
		{"access port, priority 0", 7, 0, []uint16{0x8100, 7}},
		{"untagged port", 0, pcp | dei, []uint16{0x8100, pcp | dei}},
		{"untagged port, priority 0", 0, 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLAN(t, 256)
			g, near, other := l.vm(inLAN(c.vlan)), l.vm(inLAN(c.vlan)), l.vm(inLAN(c.vlan+1))
			frame := func(dst [6]byte, behind ...uint16) []byte {
				return lanFrame(dst, g.mac, append(behind, privateType)...)
			}
			l.send(g, frame(lanStation, 0x8100, c.tci))
			sameFrames(t, "on the wire", l.sent(), frame(lanStation, c.wire...))
			l.send(g, frame(near.mac, 0x8100, c.tci))
			sameFrames(t, "at the neighbour", near.heard(), frame(near.mac))
			l.send(g, frame(everybody, 0x8100, c.tci))
			sameFrames(t, "to all, on the wire", l.sent(), frame(everybody, c.wire...))
			sameFrames(t, "to all, at the neighbour", near.heard(), frame(everybody))
			sameFrames(t, "to all, in another VLAN", other.heard())

			// As long as the wire takes: the tag is not part of it.
			long := append(frame(lanStation, 0x8100, c.tci), make([]byte, 1500)...)[:1518]
			l.send(g, bytes.Clone(long))
			if s := l.sent(); len(s) != 1 || len(s[0]) != 1514+2*len(c.wire) {
				t.Errorf("MTU: %d frames", len(s))
			}
			l.refused(t, flowtable.ReasonBadLength, g, append(long, 0))

			// A partial checksum moves with the tag, and a TSO frame's packets all bear it.
			p := pt.TCP{DstMAC: lanStation, SrcMAC: g.mac, Len: 2500, Tags: []uint16{c.tci}}
			want := p.With(func(p *pt.TCP) { p.Tags, p.Len = nil, 1000 })
			if len(c.wire) > 0 {
				want.Tags = c.wire[1:]
			}
			one := p.With(func(p *pt.TCP) { p.Partial, p.Len = true, 1000 })
			l.sendHdr(g, virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 38, CsumOffset: 16}, one.Frame())
			sameFrames(t, "partial checksum", l.sent(), want.Frame())
			l.sendHdr(g, virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: 1000, CsumStart: 38, CsumOffset: 16}, p.Frame())
			sameFrames(t, "TSO", l.sent(), pt.Frames(want, want.Next(), want.Next().Next().With(func(p *pt.TCP) { p.Len = 500 }))...)
			dropsAre(t, "all of it", l.txDropped(g), lanReasons{})
		})
	}
}

// The guest says where a checksum goes, and by the rest of the frame what it is.
func TestAChecksumCannotChangeWhatWasJudged(t *testing.T) {
	l := newLAN(t, 64)
	g := l.vm(inLAN(7))
	l.vm(inLAN(7))
	for at := 14; at < 40; at++ {
		for _, behind := range [][]uint16{{privateType}, {0x8100, 0, privateType}, {0x8100, 0, 60, 0xaaaa, 0x0300, 0, 0x0800}} {
			f := lanFrame(everybody, g.mac, behind...)
			h := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 14, CsumOffset: uint16(at - 14)}
			l.sendHdr(g, h, bytes.Clone(f))
			judged := 22
			if behind[0] == 0x8100 {
				judged += 4
				f = append(f[:12], f[16:]...)
			}
			want := lanFrame(everybody, g.mac, 0x8100, 7)[:16]
			want = append(want, f[12:22]...)
			for _, s := range append(l.sent(), l.vms[1].heard()...) {
				if at < judged {
					t.Errorf("checksum at %d: sent", at)
				}
				if len(s) == len(f) {
					s = insertedTag(s, 7)
				}
				if !bytes.Equal(s[:len(want)], want) {
					t.Errorf("checksum at %d: %x", at, s[:len(want)])
				}
			}
		}
	}
	l.txDropped(g)
	l.sendHdr(g, virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 14, CsumOffset: 0}, lanFrame(everybody, g.mac, 0x8100, 0, privateType))
	dropsAre(t, "a checksum on a tag", l.txDropped(g), lanReasons{flowtable.ReasonMalformed: 1})
}

func insertedTag(f []byte, tci uint16) []byte {
	tag := binary.BigEndian.AppendUint16([]byte{0x81, 0}, tci)
	return append(append(bytes.Clone(f[:12]), tag...), f[12:]...)
}
