package flowtable_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// udpTrains are trains of which the rules say "as Linux".
func udpTrains() []udpRule {
	lens := func(n ...int) func(pt.UDP) []pt.UDP {
		return func(b pt.UDP) (t []pt.UDP) {
			for _, size := range n {
				b.Len = size
				t = append(t, b)
				b = b.Next()
			}
			return t
		}
	}
	return []udpRule{
		{name: "a train", in: lens(100, 100, 100, 100, 100)},
		{name: "of 1,200 bytes", in: lens(1200, 1200, 1200, 1200, 300)},
		{name: "odd sizes", in: lens(101, 101, 99)},
		{name: "one byte each", in: lens(1, 1, 1, 1)},
		{name: "larger", in: lens(100, 100, 101, 101)},
		{name: "short in mid-train", in: lens(100, 50, 100, 100)},
		{name: "64 datagrams", in: func(b pt.UDP) []pt.UDP { b.Len = 40; return b.Train(64) }},
		{name: "zero checksum", in: udpOne(func(u *pt.UDP) { u.NoSum = true })},
		{name: "bad checksum", in: udpOne(func(u *pt.UDP) { u.BadUDP = true })},
		{name: "TOS", in: udpSince(func(u *pt.UDP) { u.IP.TOS = 0xb8 })},
		{name: "CE mark", in: udpSince(func(u *pt.UDP) { u.IP.TOS = 3 })},
		{name: "TTL", family: 4, in: udpSince(func(u *pt.UDP) { u.IP.TTL = 9 })},
		{name: "flow label", family: 6, in: udpSince(func(u *pt.UDP) { u.IP.FlowLabel = 9 })},
		{name: "ID jumps", family: 4, in: udpSince(func(u *pt.UDP) { u.IP.ID += 9 })},
		{name: "length lies", in: udpOne(func(u *pt.UDP) { u.LenDelta = 1 })},
		{name: "options", family: 4, in: udpOne(func(u *pt.UDP) { u.IP.IPOpts = []byte{1, 1, 1, 1} })},
	}
}

// table is what a table makes of a train.
func (c *udpRule) table(t *testing.T, v6 bool) *udpRun {
	t.Helper()
	cfg := datagrams()
	cfg.Hold = time.Second
	r := newUDPRun(t, cfg, flowtable.Config{Slots: 256})
	for _, u := range c.in(pt.UDP{V6: v6, IP: pt.TCP{ID: 7}, Len: 100}) {
		r.add(u.Frame())
	}
	r.close()
	return r
}

func (c *udpRule) families(t *testing.T, test func(t *testing.T, v6 bool)) {
	for _, v6 := range []bool{false, true} {
		if c.family == 4 && v6 || c.family == 6 && !v6 {
			continue
		}
		t.Run(fmt.Sprintf("%s ipv6=%v", c.name, v6), func(t *testing.T) { test(t, v6) })
	}
}

// The kernel's own segmentation makes the datagrams again that went into the table.
func TestKernelSegmentsSuperframesOfUDP(t *testing.T) {
	k := openKernelTap(t)
	for _, c := range udpTrains() {
		c.families(t, func(t *testing.T, v6 bool) {
			k := &kernelTap{t: t, tap: k.tap, sock: k.sock, buf: k.buf}
			for _, o := range c.table(t, v6).sfs {
				if o.GSOType == 0 {
					continue
				}
				k.send(&o)
				var want [][]byte
				for _, u := range c.in(pt.UDP{V6: v6, IP: pt.TCP{ID: 7}, Len: 100}) {
					want = append(want, u.Frame())
				}
				for i, f := range k.read(k.tap, len(o.Refs)) {
					if w := want[o.Refs[i]]; !bytes.Equal(f[vnetLen:], w) {
						t.Errorf("datagram %d: the kernel wrote\n%x\nit was\n%x", o.Refs[i], f[vnetLen:], w)
					}
				}
			}
		})
	}
}

// The kernel's own GRO, which merges UDP for forwarding where it is told to, makes the same frames of the same trains.
func TestKernelGROMergesTheSameUDP(t *testing.T) {
	k := openKernelTap(t)
	cmd := exec.Command("ethtool", "-K", tapName, "rx-udp-gro-forwarding", "on")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := k.ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("ethtool: %v: %s", err, &out)
	}
	describe := func(gsoSize int, f []byte) string {
		return fmt.Sprintf("%d bytes, gso_size %d: %x %x", len(f), gsoSize, f[:min(len(f), 70)], pt.Sum(f))
	}
	// The kernel lets the datagrams behind one that it does not merge overtake it. (In IPv4 the ID jumps there, which parts the train.)
	overtakes := []string{"zero checksum", "bad checksum", "length lies"}
	for _, c := range udpTrains() {
		c.families(t, func(t *testing.T, v6 bool) {
			if v6 && slices.Contains(overtakes, c.name) {
				t.Log("not compared: the table keeps their order")
				return
			}
			k := &kernelTap{t: t, tap: k.tap, sock: k.sock, buf: k.buf}
			r := c.table(t, v6)
			var want, got []string
			for i := range r.sfs {
				want = append(want, describe(int(r.sfs[i].GSOSize), r.sfs[i].frame))
			}
			slices.Sort(want)
			for range kernelTries {
				got = nil
				for _, f := range k.merge(r.in) {
					got = append(got, describe(int(binary.NativeEndian.Uint16(f[4:])), f[vnetLen:]))
				}
				slices.Sort(got)
				if slices.Equal(got, want) {
					return
				}
			}
			t.Errorf("the kernel has\n%s\nthe table has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		})
	}
}
