package flowtable_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// linux is the running kernel's version as major*1000 + minor.
func linux(t *testing.T) int {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatalf("kernel version: %v", err)
	}
	return major*1000 + minor
}

// kernelDiffers tells why a case has another result with a kernel of this version, or nothing (coalescing rules, 3 and 5).
func kernelDiffers(name string, v6 bool, version int) string {
	switch {
	case name == "capacity":
		return "the kernel's table is smaller, and where the flows fall is random"
	case name == "pppoe_sid":
		return "PPPoE is not ours"
	case strings.Contains(name, "padded"):
		return "a padded packet does not merge in the kernel"
	case name == "ip_v6ext_same":
		return "the kernel merges equal extension headers"
	case name == "flags_cwr" && version <= 6014:
		return "up to 6.14 a packet behind CWR may join it"
	case name == "flags_cwr" && version >= 7000:
		return "from 7.0 on equal CWR merges"
	case name == "ip_id_df0_fixed" && version >= 6018:
		return "from 6.18 on a fixed ID merges without DF"
	case (name == "ip_ttl" || name == "TTL and hop limit") && v6 && version < 6010:
		return "before 6.10 the hop limit may differ"
	}
	return ""
}

// kernelTrains are more trains of which the rules say "as Linux": what must merge, and what must not by one field.
func kernelTrains() []selfCase {
	var list []selfCase
	add := func(name string, family int, in func(pt.TCP) []any) {
		list = append(list, selfCase{name: name, family: family, in: func(b pt.TCP) []any { b.Len = 100; return in(b) }})
	}
	add("a train", 0, steady)
	add("PSH in mid-train", 0, one(flags(pt.ACK|pt.PSH)))
	add("FIN in mid-train", 0, one(flags(pt.ACK|pt.FIN)))
	add("PSH first", 0, func(b pt.TCP) []any { t := b.Train(3); t[0].Flags = pt.ACK | pt.PSH; return packets(t...) })
	add("ECE on all", 0, always(flags(pt.ACK|pt.ECE)))
	add("ECE in mid-train", 0, since(flags(pt.ACK|pt.ECE)))
	add("ECT on all", 0, always(func(p *pt.TCP) { p.TOS = 2 }))
	add("CE mark", 0, since(func(p *pt.TCP) { p.TOS = 3 }))
	add("DSCP", 0, since(func(p *pt.TCP) { p.TOS = 0xb8 }))
	add("window", 0, since(func(p *pt.TCP) { p.Win = 9 }))
	add("ACK advance", 0, since(func(p *pt.TCP) { p.Ack += 9 }))
	add("older ACK", 0, since(func(p *pt.TCP) { p.Ack-- }))
	add("gap", 0, since(func(p *pt.TCP) { p.Seq++ }))
	add("overlap", 0, since(func(p *pt.TCP) { p.Seq-- }))
	add("short in mid-train", 0, lens(100, 100, 50, 100))
	add("larger in mid-train", 0, lens(100, 100, 101, 101))
	add("sequence wrap", 0, func(b pt.TCP) []any { b.Seq = 0xffffff00; return steady(b) })
	add("duplicate ACK between", 0, between(func(p *pt.TCP) {}))
	add("window update between", 0, between(func(p *pt.TCP) { p.Win = 9 }))
	add("timestamps on all", 0, always(func(p *pt.TCP) { p.Opts = pt.Timestamps(1, 2) }))
	add("timestamps appear", 0, since(func(p *pt.TCP) { p.Opts = pt.Timestamps(1, 2) }))
	add("SACK on all", 0, always(func(p *pt.TCP) { p.Opts = pt.SACK(1, 2) }))
	add("40 bytes of options", 0, always(func(p *pt.TCP) { p.Opts = make([]byte, 40) }))
	add("DF changes", 4, since(func(p *pt.TCP) { p.NoDF = true }))
	add("no DF on all", 4, always(func(p *pt.TCP) { p.NoDF = true }))
	add("ID wraps", 4, func(b pt.TCP) []any { b.ID = 0xfffe; return steady(b) })
	add("ID jumps", 4, since(func(p *pt.TCP) { p.ID += 5 }))
	add("TTL", 4, since(func(p *pt.TCP) { p.TTL = 9 }))
	add("TTL and hop limit", 6, since(func(p *pt.TCP) { p.TTL = 9 }))
	add("flow label", 6, since(func(p *pt.TCP) { p.FlowLabel = 9 }))
	add("flow label on all", 6, always(func(p *pt.TCP) { p.FlowLabel = 0xfffff }))
	add("source MAC", 0, since(func(p *pt.TCP) { p.SrcMAC = [6]byte{2, 0, 0, 0, 0, 9} }))
	add("reserved IP flag", 4, one(func(p *pt.TCP) { p.Reserved = true }))
	add("first fragment", 4, one(func(p *pt.TCP) { p.MF = true }))
	add("later fragment", 4, one(func(p *pt.TCP) { p.FragOffset = 3 }))
	add("first fragment, IPv6", 6, one(func(p *pt.TCP) { p.Ext = []pt.Ext{pt.FragmentHeader(0, true, 9)} }))
	add("IP options", 4, one(func(p *pt.TCP) { p.IPOpts = []byte{1, 1, 1, 1} }))
	add("hop-by-hop", 6, one(func(p *pt.TCP) { p.Ext = []pt.Ext{pt.HopByHop()} }))
	add("bad IP checksum", 4, one(func(p *pt.TCP) { p.BadIP = true }))
	add("bad TCP checksum", 0, one(func(p *pt.TCP) { p.BadTCP = true }))
	add("data offset below 5", 0, one(func(p *pt.TCP) { p.Doff = 4 }))
	add("data offset beyond the packet", 0, one(func(p *pt.TCP) { p.Len, p.Doff = 3, 15 }))
	add("IP length beyond the frame", 0, one(func(p *pt.TCP) { p.IPLenDelta = 1 }))
	add("trailer", 0, one(func(p *pt.TCP) { p.Trailer = make([]byte, 9) }))
	add("SYN with data", 0, one(flags(pt.ACK|pt.SYN)))
	add("RST with data", 0, one(flags(pt.ACK|pt.RST)))
	add("URG with data", 0, one(flags(pt.ACK|pt.URG)))
	add("FIN without data", 0, between(flags(pt.ACK|pt.FIN)))
	add("FIN with data behind a hole", 0, func(b pt.TCP) []any {
		t := b.Train(3)
		t[2].Seq++
		t[2].Flags = pt.ACK | pt.FIN
		return packets(t...)
	})
	add("PSH on all", 0, always(flags(pt.ACK|pt.PSH)))
	add("PSH behind a hole", 0, func(b pt.TCP) []any {
		t := b.Train(4)
		t[2].Seq, t[3].Seq = t[2].Seq+1, t[3].Seq+1
		t[2].Flags = pt.ACK | pt.PSH
		return packets(t...)
	})
	add("NS on all", 0, always(flags(pt.ACK|pt.NS)))
	add("NS from the third", 0, since(flags(pt.ACK|pt.NS)))
	add("reserved TCP bit on all", 0, always(flags(pt.ACK|pt.Reserved)))
	add("reserved TCP bit from the third", 0, since(flags(pt.ACK|pt.Reserved)))
	add("ECE ends", 0, func(b pt.TCP) []any { b.Flags = pt.ACK | pt.ECE; return since(flags(pt.ACK))(b) })
	add("no ACK flag on one", 0, one(flags(pt.NoFlags)))
	add("urgent pointer on all", 0, always(func(p *pt.TCP) { p.Urgent = 5 }))
	add("pure ACK between", 0, between(func(p *pt.TCP) { p.Ack++ }))
	add("older ACK between", 0, between(func(p *pt.TCP) { p.Ack-- }))
	add("SACK on an empty segment", 0, between(func(p *pt.TCP) { p.Opts = pt.SACK(1, 2) }))
	add("keepalive of 0 bytes", 0, between(func(p *pt.TCP) { p.Seq-- }))
	add("keepalive of 1 byte", 0, func(b pt.TCP) []any {
		t := b.Train(2)
		k := t[1].Next()
		k.Len, k.Seq, k.Opts = 1, k.Seq-1, pt.Timestamps(1, 2) // with options it needs no padding
		t[0].Opts, t[1].Opts = k.Opts, k.Opts
		return packets(t[0], t[1], k)
	})
	add("retransmission", 0, func(b pt.TCP) []any { t := b.Train(2); return packets(t[0], t[1], t[1]) })
	add("out of order", 0, func(b pt.TCP) []any { t := b.Train(4); return packets(t[0], t[2], t[1], t[3]) })
	add("data after a pure ACK", 0, func(b pt.TCP) []any {
		e := b
		e.Len = 0
		return packets(append([]pt.TCP{e}, b.Train(2)...)...)
	})
	add("TSval changes", 0, func(b pt.TCP) []any {
		b.Opts = pt.Timestamps(7, 8)
		return since(func(p *pt.TCP) { p.Opts = pt.Timestamps(8, 8) })(b)
	})
	add("TSecr changes", 0, func(b pt.TCP) []any {
		b.Opts = pt.Timestamps(7, 8)
		return since(func(p *pt.TCP) { p.Opts = pt.Timestamps(7, 9) })(b)
	})
	add("timestamps disappear", 0, func(b pt.TCP) []any {
		b.Opts = pt.Timestamps(7, 8)
		return since(func(p *pt.TCP) { p.Opts = nil })(b)
	})
	add("other layout of the timestamps on all", 0, always(func(p *pt.TCP) { p.Opts = pt.TimestampsLast(1, 2) }))
	add("window scale on all", 0, always(func(p *pt.TCP) { p.Opts = pt.WindowScale(3) }))
	add("the last of 40 bytes of options", 0, func(b pt.TCP) []any {
		b.Opts = make([]byte, 40)
		return since(func(p *pt.TCP) { p.Opts = append(make([]byte, 39), 1) })(b)
	})
	add("ID fixed, then counting", 4, func(b pt.TCP) []any {
		t := b.Train(4)
		t[1].ID, t[2].ID, t[3].ID = t[0].ID, t[0].ID, t[0].ID+1
		return packets(t...)
	})
	add("two flows in turn", 0, func(b pt.TCP) []any {
		x, y := b.Train(3), b.With(func(p *pt.TCP) { p.SrcPort = 9 }).Train(3)
		return packets(x[0], y[0], x[1], y[1], y[2], x[2])
	})
	add("segments of 1448", 0, func(b pt.TCP) []any { b.Opts = pt.Timestamps(1, 2); return lens(1448, 1448, 1448, 1448, 700)(b) })
	return list
}

// kernelTries is how often a train is sent until the kernel merges it like the table. Time alone can part what belongs together,
// and the clock that tells of ticks may lag behind the one that GRO looks at; nothing but rules parts a train every time.
const kernelTries = 5

// TestKernelGROMergesTheSame sends the cases of the self-test, and more, through the kernel's GRO: what comes out is what
// the table makes of them, byte for byte, in whatever order. (The kernel delivers a packet that it cannot merge before what
// it holds of the flow; the table does not.)
func TestKernelGROMergesTheSame(t *testing.T) {
	k := openKernelTap(t)
	version := linux(t)
	for _, c := range append(selfCases(), kernelTrains()...) {
		for _, v6 := range []bool{false, true} {
			if c.family == 4 && v6 || c.family == 6 && !v6 || c.set != nil {
				continue
			}
			t.Run(fmt.Sprintf("%s ipv6=%v", c.name, v6), func(t *testing.T) {
				if why := kernelDiffers(c.name, v6, version); why != "" {
					t.Logf("not compared: %s", why)
					return
				}
				k := &kernelTap{t: t, tap: k.tap, sock: k.sock, buf: k.buf}
				b := pt.TCP{V6: v6, Seq: 100, Ack: 100, TTL: 8}
				cfg := negotiated(flowtable.GRO)
				cfg.Hold = selfHold
				r := newRunner(t, flowtable.Config{}, cfg)
				steps := c.in(b)
				r.do(steps)
				r.close()
				var want []string
				for i := range r.out {
					want = append(want, describe(int(r.out[i].GSOSize), r.out[i].frame))
				}
				slices.Sort(want)
				var got []string
				for range kernelTries {
					got = nil
					for _, train := range trains(steps) {
						for _, f := range k.merge(train) {
							got = append(got, describe(int(binary.NativeEndian.Uint16(f[4:])), f[vnetLen:]))
						}
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
}

// trains are the frames of a scenario, cut where time passes.
func trains(steps []any) [][][]byte {
	all := [][][]byte{nil}
	for _, s := range steps {
		switch s := s.(type) {
		case pt.TCP:
			all[len(all)-1] = append(all[len(all)-1], s.Frame())
		case wait:
			all = append(all, nil)
		}
	}
	return all
}

// describe writes a frame so that differences can be read.
func describe(gsoSize int, f []byte) string {
	end := len(f)
	if p, err := pt.Read(f); err == nil {
		end -= len(p.Trailer)
		return fmt.Sprintf("seq %d, %d bytes, gso_size %d: %x %x", p.Seq, len(p.Payload), gsoSize, f[:end-len(p.Payload)], pt.Sum(p.Payload))
	}
	return fmt.Sprintf("other, gso_size %d: %x", gsoSize, f[:end])
}
