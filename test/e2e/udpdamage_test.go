package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Trains of datagrams with damage and lies among them reach a guest merged, and its sockets get exactly what they would get of the wire: what is
// right once, in order and as it was sent, and nothing of what the guest's stack has to refuse.
func TestDatagramTrainsWithDamageArriveAsTheyWere(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA, "--hold", "10ms"), MAC: mac(t, macA)}, "10.77.0.10/24", "fd77::10/64")
	if !g.Features().Has(virtio.FGuestUSO4) {
		t.Skip("allowed: this kernel's tap takes no UDP superframes (before Linux 6.2): the guests are shown them where it does")
	}
	for _, v6 := range []bool{false, true} {
		for _, gro := range []int{0, 1} {
			t.Run(fmt.Sprintf("IPv6 %t, UDP_GRO %d", v6, gro), func(t *testing.T) {
				before := r.statsOf("vm0")
				in, _ := datagramsInto(t, g.side, v6, gro)
				defer unix.Close(in)
				frames, want := damaged(r.net.A, g.side, v6)
				out := r.net.A.Injector(t)
				for _, f := range frames {
					if err := out.Send(f); err != nil {
						t.Fatal(err)
					}
				}
				got := readDatagrams(t, in, len(want))
				for i := range min(len(got), len(want)) {
					if !bytes.Equal(got[i], want[i]) {
						t.Fatalf("datagram %d is not the one that was sent: %d bytes, %d were sent", i, len(got[i]), len(want[i]))
					}
				}
				if len(got) != len(want) {
					t.Errorf("%d datagrams came, %d are right", len(got), len(want))
				}
				after := r.statsOf("vm0")
				if super := after.Superframes - before.Superframes; super < damagedRounds {
					t.Errorf("%d superframes: next to nothing was merged", super)
				}
				for _, reason := range []string{"bad_udp_checksum", "zero_checksum"} {
					if after.Passed[reason]-before.Passed[reason] < damagedRounds {
						t.Errorf("%s: %d, then %d", reason, before.Passed[reason], after.Passed[reason])
					}
				}
			})
		}
	}
	var st api.Stats
	r.json(&st, "stats")
	explain(t, st)
}

const damagedRounds = 20

// damaged are frames of one flow from one side to another, most of them right, and what a socket gets of them.
func damaged(from, to *netnstest.Side, v6 bool) (frames, want [][]byte) {
	u := pt.UDP{V6: v6, SrcMAC: [6]byte(from.MAC), DstMAC: [6]byte(to.MAC), SrcPort: 4433, DstPort: quicPort, Len: 1200}
	u.Src4, u.Dst4 = from.IPv4.Addr().As4(), to.IPv4.Addr().As4()
	u.IP.Src6, u.IP.Dst6 = from.IPv6.Addr().As16(), to.IPv6.Addr().As16()
	for range damagedRounds {
		for _, c := range []struct {
			arrives bool
			change  func(u *pt.UDP)
		}{
			{false, func(u *pt.UDP) { u.BadUDP = true }},
			{!v6, func(u *pt.UDP) { u.NoSum = true }}, // IPv6 takes none without
			{false, func(u *pt.UDP) { u.LenDelta = 8 }},
			{false, func(u *pt.UDP) { u.LenDelta = -8 }},
			{v6, func(u *pt.UDP) { u.LenDelta = -1208 }}, // 0, which in IPv6 is as long as there is (RFC 2675)
			{false, func(u *pt.UDP) { u.IP.IPLenDelta = -40 }},
			{false, func(u *pt.UDP) { u.IP.IPLenDelta = 40 }},
			{true, func(u *pt.UDP) { u.IP.TOS = 3 }},
			{true, func(u *pt.UDP) { u.IP.TTL = 7 }},
			{true, func(u *pt.UDP) { u.Len = 1199 }},
			{true, func(u *pt.UDP) { u.Len = 1201 }},
		} {
			for i := range 8 {
				d, arrives := u, true
				if i == 4 {
					c.change(&d)
					arrives = c.arrives
				}
				f := d.Frame()
				if frames = append(frames, f); arrives {
					want = append(want, f[len(f)-d.Len:])
				}
				u = u.Next()
			}
		}
	}
	return frames, want
}

// readDatagrams reads n datagrams, and then what comes on top of them, until nothing comes.
func readDatagrams(t *testing.T, fd, n int) (got [][]byte) {
	t.Helper()
	buf, oob := make([]byte, 1<<16), make([]byte, 64)
	for end := time.Now().Add(netnstest.Patience(10 * time.Second)); time.Now().Before(end); {
		m, o, _, _, err := unix.Recvmsg(fd, buf, oob, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // nothing for as long as the socket waits
			return got
		}
		size := max(1, m)
		if msgs, err := unix.ParseSocketControlMessage(oob[:o]); err == nil {
			for _, c := range msgs {
				if c.Header.Level == unix.IPPROTO_UDP && c.Header.Type == unix.UDP_GRO {
					size = int(binary.NativeEndian.Uint32(c.Data))
				}
			}
		}
		for at := 0; at < m; at += size {
			got = append(got, bytes.Clone(buf[at:min(m, at+size)]))
		}
	}
	t.Errorf("datagrams come without an end: %d, %d were sent", len(got), n)
	return got
}
