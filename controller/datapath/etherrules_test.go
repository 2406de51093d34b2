package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

const privateType = 0x88b5 // local experimental EtherType (IEEE 802)

// lanFrame is a frame of 80 bytes and more, so that nothing pads it: what follows the addresses, then a pattern.
func lanFrame(dst, src [6]byte, behind ...uint16) []byte {
	f := append(dst[:], src[:]...)
	for _, v := range behind {
		f = binary.BigEndian.AppendUint16(f, v)
	}
	for i := range byte(80) {
		f = append(f, i)
	}
	return f
}

// sameFrames compares frames with those wanted, in order.
func sameFrames(t *testing.T, what string, got [][]byte, want ...[]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d frames, want %d: %x", what, len(got), len(want), got)
		return
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("%s: frame %d:\n got %x\nwant %x", what, i, got[i], want[i])
		}
	}
}

func dropsAre(t *testing.T, what string, got, want lanReasons) {
	t.Helper()
	if !maps.Equal(got, want) {
		named := func(r lanReasons) string {
			s := ""
			for k, n := range r {
				s += fmt.Sprintf(" %s %d", k, n)
			}
			return s
		}
		t.Errorf("%s: dropped{%s }, want{%s }", what, named(got), named(want))
	}
}

// refused sends frames that must reach nobody, and be counted.
func (l *lan) refused(t *testing.T, why flowtable.Reason, from *lanVM, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		l.send(from, bytes.Clone(f))
		what := fmt.Sprintf("%x", f[:min(len(f), 24)])
		dropsAre(t, what, l.txDropped(from), lanReasons{why: 1})
		sameFrames(t, what+" on the wire", l.sent())
		for _, g := range l.vms {
			sameFrames(t, what+" at a VM", g.heard())
		}
	}
}

// switchAddresses are the group addresses by which switches speak to each other and to stations.
func switchAddresses() (a [][6]byte) {
	for last := range byte(16) { // IEEE 802.1Q, table 8-1
		a = append(a, [6]byte{1, 0x80, 0xc2, 0, 0, last}, [6]byte{1, 0x80, 0xc2, 0, 0, 0x20 + last}) // and MRP, table 10-1
	}
	return append(a, [6]byte{1, 0, 0x0c, 0xcc, 0xcc, 0xcc}, [6]byte{1, 0, 0x0c, 0xcc, 0xcc, 0xcd}, // CDP, VTP, DTP; PVST+
		[6]byte{1, 0, 0x0c, 0, 0, 0}, [6]byte{3, 0, 0x0c, 0, 0, 0}) // ISL
}

// groupAddresses are group addresses that are anybody's.
var groupAddresses = [][6]byte{everybody, {1, 0, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 1}, {1, 0x80, 0xc2, 0, 0, 0x14}, {1, 0x1b, 0x19, 0, 0, 0}}

func TestSwitchProtocolsOfAGuestGoNowhere(t *testing.T) {
	l := newLAN(t, 64)
	g := l.vm()
	l.vm()
	for _, a := range switchAddresses() {
		l.refused(t, flowtable.ReasonControlFrame, g, lanFrame(a, g.mac, privateType), lanFrame(a, g.mac, 0x8100, 0xe000, privateType))
	}
	// PAUSE to a switch's or a station's own address.
	l.refused(t, flowtable.ReasonControlFrame, g, lanFrame(lanStation, g.mac, 0x8808, 1), lanFrame(l.vms[1].mac, g.mac, 0x8808, 1))
	for _, a := range groupAddresses {
		l.send(g, lanFrame(a, g.mac, privateType))
		sameFrames(t, "on the wire", l.sent(), lanFrame(a, g.mac, privateType))
		sameFrames(t, "at the neighbour", l.vms[1].heard(), lanFrame(a, g.mac, privateType))
	}
}

func TestSwitchProtocolsOfTheWireReachNoVM(t *testing.T) {
	l := newLAN(t, 64)
	g, other := l.vm(), l.vm(inLAN(7))
	for _, a := range switchAddresses() {
		l.receiveGroup(lanGroupFrame{data: lanFrame(a, lanStation, privateType)})
		sameFrames(t, "at the VM", g.heard())
		dropsAre(t, "at the VM", l.rxDropped(g), lanReasons{flowtable.ReasonControlFrame: 1})
		dropsAre(t, "in another VLAN", l.rxDropped(other), lanReasons{})
	}
	for _, a := range groupAddresses {
		l.receiveGroup(lanGroupFrame{data: lanFrame(a, lanStation, privateType)})
		sameFrames(t, "at the VM", g.heard(), lanFrame(a, lanStation, privateType))
	}
}

func TestRuntsArePaddedWithZeros(t *testing.T) {
	l := newLAN(t, 64)
	g, near := l.vm(), l.vm()
	tagged := l.vm(inLAN(7))
	for n := 14; n <= 61; n++ {
		padded := func(f []byte, n, least int) []byte {
			return append(bytes.Clone(f[:n]), make([]byte, max(0, least-n))...)
		}
		far := lanFrame(lanStation, g.mac, privateType)
		l.send(g, far[:n])
		sameFrames(t, "on the wire", l.sent(), padded(far, n, 60))
		beside := lanFrame(near.mac, g.mac, privateType)
		l.send(g, beside[:n])
		sameFrames(t, "at the neighbour", near.heard(), padded(beside, n, 60))
		all := lanFrame(everybody, g.mac, privateType)
		l.send(g, all[:n])
		sameFrames(t, "to all, on the wire", l.sent(), padded(all, n, 60))
		sameFrames(t, "to all, at the neighbour", near.heard(), padded(all, n, 60))
		l.send(tagged, lanFrame(lanStation, tagged.mac, privateType)[:n])
		sameFrames(t, "with a tag", l.sent(), padded(lanFrame(lanStation, tagged.mac, 0x8100, 7, privateType), n+4, 64))
	}
}

func TestAFrameDoesNotComeBackToItsVM(t *testing.T) {
	l := newLAN(t, 64)
	g, near, spoofer := l.vm(), l.vm(), l.vm(maySpoof)
	l.refused(t, flowtable.ReasonHairpin, g, lanFrame(g.mac, g.mac, privateType))
	l.refused(t, flowtable.ReasonHairpin, spoofer, lanFrame(spoofer.mac, lanStation, privateType))
	all := lanFrame(everybody, g.mac, privateType)
	l.send(g, bytes.Clone(all))
	sameFrames(t, "its own broadcast", g.heard())
	// A switch or a second member of a bond sends it back.
	near.heard()
	l.receiveGroup(lanGroupFrame{data: all})
	sameFrames(t, "its own broadcast, from the wire", g.heard())
	dropsAre(t, "its own broadcast, from the wire", l.rxDropped(g), lanReasons{flowtable.ReasonHairpin: 1})
	sameFrames(t, "the neighbour", near.heard(), all)
}

func TestSourceAddresses(t *testing.T) {
	for _, c := range []struct {
		name     string
		src      [6]byte
		bare, ok bool // passes without --allow-spoof, with it
	}{
		{"its own", [6]byte{2, 0, 0, 0, 1, 0}, true, true},
		{"a foreign one", [6]byte{2, 0, 0, 0, 5, 5}, false, true},
		{"a VM's of another VLAN", [6]byte{2, 0, 0, 0, 1, 2}, false, true},
		{"another VM's", [6]byte{2, 0, 0, 0, 1, 1}, false, false},
		{"that of a VM on a tap", [6]byte{2, 0, 0, 0, 1, 3}, false, false},
		{"the host's", lanHost, false, false},
		{"none", [6]byte{}, false, false},
		{"a group", [6]byte{3, 0, 0, 0, 1, 0}, false, false},
		{"everybody's", everybody, false, false},
	} {
		for _, spoof := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, spoof %v", c.name, spoof), func(t *testing.T) {
				l := newLAN(t, 64)
				g, near := l.vm(func(p *PortConfig) { p.AllowSpoof = spoof }), l.vm()
				l.vm(inLAN(7))
				l.vm(func(p *PortConfig) { p.Bridged = true })
				tso := pt.TCP{DstMAC: near.mac, SrcMAC: c.src, Len: 2000}
				h := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: 1000, CsumStart: 34, CsumOffset: 16}
				l.send(g, lanFrame(everybody, c.src, privateType))
				frame := tso.Frame()
				copy(frame[6:], c.src[:])
				l.sendHdr(g, h, frame)
				if spoof && c.ok || c.bare {
					sameFrames(t, "on the wire", l.sent(), lanFrame(everybody, c.src, privateType))
					if n := len(near.heard()); n < 2 { // the packets of the TSO frame may be merged again
						t.Errorf("%d frames at the neighbour", n)
					}
					dropsAre(t, "legal", l.txDropped(g), lanReasons{})
					return
				}
				sameFrames(t, "on the wire", l.sent())
				sameFrames(t, "at the neighbour", near.heard())
				dropsAre(t, "illegal", l.txDropped(g), lanReasons{flowtable.ReasonSourceMAC: 2})
			})
		}
	}
}

// The VMs' addresses are known from attach, so nothing is learned, and nothing is flooded because it is not known.
func TestUnknownAndHostAddressesAreTheWiresAlone(t *testing.T) {
	l := newLAN(t, 64)
	g, near := l.vm(), l.vm()
	seven := l.vm(inLAN(7))
	bridged := l.vm(func(p *PortConfig) { p.Bridged = true })
	for _, dst := range [][6]byte{lanStation, lanHost, seven.mac, bridged.mac, {}} {
		l.send(g, lanFrame(dst, g.mac, privateType))
		sameFrames(t, "on the wire", l.sent(), lanFrame(dst, g.mac, privateType))
		for _, v := range []*lanVM{near, seven, bridged} {
			sameFrames(t, "at a VM", v.heard())
		}
	}
}

func TestGroupFramesStayInTheirVLAN(t *testing.T) {
	l := newLAN(t, 64)
	vms := map[uint16][2]*lanVM{}
	for _, vlan := range []uint16{0, 7, 8} {
		vms[vlan] = [2]*lanVM{l.vm(inLAN(vlan)), l.vm(inLAN(vlan))}
	}
	bridged := l.vm(func(p *PortConfig) { p.Bridged = true })
	quiet := func(not uint16) {
		t.Helper()
		for vlan, two := range vms {
			if vlan != not {
				sameFrames(t, fmt.Sprintf("in VLAN %d", vlan), append(two[0].heard(), two[1].heard()...))
			}
		}
		sameFrames(t, "on a tap", bridged.heard())
	}
	for vlan, two := range vms {
		for _, dst := range groupAddresses {
			f := lanFrame(dst, two[0].mac, privateType)
			l.send(two[0], bytes.Clone(f))
			sameFrames(t, "the neighbour", two[1].heard(), f)
			sameFrames(t, "itself", two[0].heard())
			quiet(vlan)
			f = lanFrame(dst, lanStation, privateType)
			l.receiveGroup(lanGroupFrame{data: f, tci: vlan, tagged: vlan != 0})
			sameFrames(t, "from the wire", append(two[0].heard(), two[1].heard()...), f, f)
			quiet(vlan)
		}
	}
}

func TestAFrameThatTheWireDoesNotTakeIsRefused(t *testing.T) {
	for _, vlan := range []uint16{0, 7} {
		l := newLAN(t, 64)
		g := l.vm(inLAN(vlan))
		fits := append(lanFrame(lanStation, g.mac, privateType), make([]byte, 1500)...)[:1514]
		l.send(g, bytes.Clone(fits))
		if s := l.sent(); len(s) != 1 {
			t.Errorf("%d frames of 1514 bytes", len(s))
		}
		l.refused(t, flowtable.ReasonBadLength, g, append(fits, 0))
		p := pt.TCP{DstMAC: lanStation, SrcMAC: g.mac, Len: 3000}
		h := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: 1461, CsumStart: 34, CsumOffset: 16}
		l.sendHdr(g, h, p.Frame())
		sameFrames(t, "TSO", l.sent())
		dropsAre(t, "TSO", l.txDropped(g), lanReasons{flowtable.ReasonBadLength: 1})
	}
}

// A line of the table in docs/architecture.md that no test holds is a claim.
func TestTheTableOfRulesNamesTestsThatExist(t *testing.T) {
	doc, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(doc), "\n## What the kernel's path enforces\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var tests []byte
	for _, dir := range []string{".", "../../bpf", "../../vhost", "../../test/e2e"} {
		files, _ := filepath.Glob(filepath.Join(dir, "*_test.go"))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			tests = append(tests, b...)
		}
	}
	names := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(section, -1)
	if len(names) < 10 {
		t.Fatalf("%d names in the table", len(names))
	}
	for _, n := range names {
		if !bytes.Contains(tests, []byte("func "+n[1]+"(")) {
			t.Errorf("there is no %s", n[1])
		}
	}
}

// The rules are asked for every frame of a guest.
func TestTheRulesAllocateNothing(t *testing.T) {
	l := newLAN(t, 64)
	g := l.vm()
	f := vhost.TxFrame{Data: lanFrame(lanStation, g.mac, 0x0800)}
	p := l.w.port(0)
	if n := testing.AllocsPerRun(100, func() {
		var o outgoing
		if _, refused := l.w.judge(p, &f, &o); refused {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkJudge(b *testing.B) {
	l := newLAN(b, 64)
	g := l.vm()
	p := l.w.port(0)
	for name, frame := range map[string][]byte{
		"unicast": lanFrame(lanStation, g.mac, 0x0800), "broadcast": lanFrame(everybody, g.mac, 0x0806), "other": lanFrame(lanStation, g.mac, privateType),
	} {
		b.Run(name, func(b *testing.B) {
			f := vhost.TxFrame{Data: frame}
			for b.Loop() {
				var o outgoing
				if _, refused := l.w.judge(p, &f, &o); refused {
					b.Fatal("refused")
				}
			}
		})
	}
}
