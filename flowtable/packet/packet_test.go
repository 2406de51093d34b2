package packet_test

import (
	"fmt"
	"testing"

	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// row is one frame and what Parse has to say of it.
type row struct {
	name    string
	frame   []byte
	verdict packet.Verdict
	keyed   bool
}

// set writes bytes into a frame.
func set(f []byte, at int, v ...byte) []byte {
	copy(f[at:], v)
	return f
}

// cut shortens a frame.
func cut(f []byte, n int) []byte { return f[:n:n] }

// rows has one row for every line of the package comment, in its order; where a row shows a limit, the row behind it shows
// the nearest frame on the other side.
func rows() []row {
	v4 := pt.TCP{Len: 100}
	v6 := pt.TCP{V6: true, Len: 100}
	ext := func(e ...pt.Ext) []byte { return pt.TCP{V6: true, Len: 100, Ext: e}.Frame() }
	many := func(n int) (e []pt.Ext) {
		for i := range n {
			e = append(e, pt.DstOpts(uint32(i)))
		}
		return e
	}
	frag := pt.FragmentHeader
	return []row{
		{"no bytes", nil, packet.Truncated, false},
		{"13 bytes", cut(v4.Frame(), 13), packet.Truncated, false},
		{"14 bytes of an unknown type", pt.Ethernet(0x88b5), packet.NotIP, false},
		{"tag cut after 3 bytes", cut(pt.TCP{Tags: []uint16{5}}.Frame(), 17), packet.Truncated, false},
		{"tag and nothing else", cut(pt.TCP{Tags: []uint16{5}}.Frame(), 18), packet.Truncated, false},
		{"tag and an unknown type", set(pt.TCP{Tags: []uint16{5}}.Frame(), 16, 0x88, 0xb5), packet.NotIP, false},
		{"two 802.1Q tags", pt.TCP{Tags: []uint16{5, 6}, Len: 100}.Frame(), packet.VLANStack, false},
		{"802.1ad tag", pt.TCP{Tags: []uint16{5}, TPID: 0x88a8, Len: 100}.Frame(), packet.VLANStack, false},
		{"802.1ad tag behind an 802.1Q tag", set(pt.TCP{Tags: []uint16{5, 6}}.Frame(), 16, 0x88, 0xa8), packet.VLANStack, false},
		{"802.1ad type and no more", pt.Ethernet(0x88a8), packet.VLANStack, false},
		{"one tag", pt.TCP{Tags: []uint16{5}, Len: 100}.Frame(), packet.OK, true},
		{"one tag, IPv6", pt.TCP{Tags: []uint16{5}, V6: true, Len: 100}.Frame(), packet.OK, true},
		{"ARP", pt.ARP(), packet.NotIP, false},
		{"802.3 length", pt.Ethernet(100, make([]byte, 100)...), packet.NotIP, false},
		{"PPPoE", pt.Ethernet(0x8864, v4.Frame()[14:]...), packet.NotIP, false},

		{"IPv4 header cut", cut(v4.Frame(), 33), packet.Truncated, false},
		{"IPv4 without a byte", pt.Ethernet(0x0800), packet.Truncated, false},
		{"IPv4 version 6", pt.TCP{Len: 100, Version: 6}.Frame(), packet.Malformed, false},
		{"IPv4 version 0", pt.TCP{Len: 100, Version: 16}.Frame(), packet.Malformed, false},
		{"IHL 4", pt.TCP{Len: 100, IHL: 4}.Frame(), packet.Malformed, false},
		{"IHL 0", set(pt.TCP{Len: 100}.Frame(), 14, 0x40), packet.Malformed, false},
		{"total length 19", pt.TCP{Len: 100, IPLenDelta: 19 - 140}.Frame(), packet.Malformed, false},
		{"total length 0", pt.TCP{Len: 100, ZeroIPLength: true}.Frame(), packet.Malformed, false},
		{"total length below the options' end", pt.TCP{IPOpts: []byte{1, 1, 1, 1}, IPLenDelta: 23 - 44}.Frame(), packet.Malformed, false},
		{"total length beyond the frame", pt.TCP{Len: 100, IPLenDelta: 1}.Frame(), packet.Malformed, false},
		{"total length at the frame's end", v4.Frame(), packet.OK, true},
		{"UDP", pt.UDP{Len: 100}.Frame(), packet.NotTCP, false},
		{"ICMP", pt.ICMP(false, 50), packet.NotTCP, false},
		{"UDP fragment", set(pt.UDP{Len: 100}.Frame(), 20, 0x20, 0), packet.NotTCP, false},
		{"DF and offset", pt.TCP{Len: 100, FragOffset: 1}.Frame(), packet.Fragment, false},
		{"largest offset", pt.TCP{Len: 100, NoDF: true, FragOffset: 0x1fff}.Frame(), packet.Fragment, false},
		{"MF and offset", pt.TCP{Len: 100, MF: true, FragOffset: 1}.Frame(), packet.Fragment, false},
		{"DF and MF", pt.TCP{Len: 100, MF: true}.Frame(), packet.Fragment, true},
		{"MF and options", pt.TCP{Len: 100, MF: true, IPOpts: []byte{1, 1, 1, 1}}.Frame(), packet.Fragment, true},
		{"options", pt.TCP{Len: 100, IPOpts: []byte{1, 1, 1, 1}}.Frame(), packet.IPOptions, true},
		{"40 bytes of options", pt.TCP{Len: 100, IPOpts: make([]byte, 40)}.Frame(), packet.IPOptions, true},
		{"options and reserved flag", pt.TCP{Len: 100, Reserved: true, IPOpts: []byte{1, 1, 1, 1}}.Frame(), packet.IPOptions, true},
		{"IHL beyond the total length", pt.TCP{IHL: 15, IPLenDelta: -1}.Frame(), packet.Malformed, false},
		{"reserved flag", pt.TCP{Len: 100, Reserved: true}.Frame(), packet.ReservedFlag, true},
		{"neither DF nor anything", pt.TCP{Len: 100, NoDF: true}.Frame(), packet.OK, true},

		{"IPv6 header cut", cut(v6.Frame(), 53), packet.Truncated, false},
		{"IPv6 without a byte", pt.Ethernet(0x86dd), packet.Truncated, false},
		{"IPv6 version 4", pt.TCP{V6: true, Len: 100, Version: 4}.Frame(), packet.Malformed, false},
		{"payload length beyond the frame", pt.TCP{V6: true, Len: 100, IPLenDelta: 1}.Frame(), packet.Malformed, false},
		{"payload length at the frame's end", v6.Frame(), packet.OK, true},
		{"UDP in IPv6", pt.UDP{V6: true, Len: 100}.Frame(), packet.NotTCP, false},
		{"ICMPv6", pt.ICMP(true, 50), packet.NotTCP, false},
		{"hop-by-hop", ext(pt.HopByHop()), packet.ExtHeader, true},
		{"routing", ext(pt.Routing()), packet.ExtHeader, true},
		{"destination options", ext(pt.DstOpts(1)), packet.ExtHeader, true},
		{"all three", ext(pt.HopByHop(), pt.Routing(), pt.DstOpts(1)), packet.ExtHeader, true},
		{"8 headers", ext(many(8)...), packet.ExtHeader, true},
		{"9 headers", ext(many(9)...), packet.ExtHeader, false},
		{"9 headers, then UDP", set(ext(many(9)...), 14+40+8*8, 17), packet.ExtHeader, false},
		{"8 headers, then UDP", set(ext(many(8)...), 14+40+7*8, 17), packet.NotTCP, false},
		{"first fragment, then 8 headers", ext(append([]pt.Ext{frag(0, true, 7)}, many(8)...)...), packet.Fragment, false},
		{"authentication header", ext(pt.Ext{Type: 51, Body: make([]byte, 15)}), packet.NotTCP, false},
		{"no next header", set(v6.Frame(), 20, 59), packet.NotTCP, false},
		{"extension header beyond the packet", set(ext(pt.HopByHop()), 55, 200), packet.NotTCP, false},
		{"extension headers, then UDP", set(ext(pt.HopByHop()), 54, 17), packet.NotTCP, false},
		{"extension header without room", pt.TCP{V6: true, Ext: []pt.Ext{pt.HopByHop()}, IPLenDelta: -21}.Frame(), packet.NotTCP, false},
		{"atomic fragment", ext(frag(0, false, 7)), packet.ExtHeader, true},
		{"first fragment", ext(frag(0, true, 7)), packet.Fragment, true},
		{"later fragment", ext(frag(1, true, 7)), packet.Fragment, false},
		{"last fragment", ext(frag(1, false, 7)), packet.Fragment, false},
		{"reserved bits of a fragment header", ext(pt.Ext{Type: 44, Body: []byte{0, 0, 6, 0, 0, 0, 7}}), packet.ExtHeader, true},
		{"first fragment behind hop-by-hop", ext(pt.HopByHop(), frag(0, true, 7)), packet.Fragment, true},
		{"first fragment of something else", set(ext(frag(0, true, 7)), 54, 17), packet.NotTCP, false},

		{"3 bytes of TCP", pt.TCP{IPLenDelta: -17}.Frame(), packet.Malformed, false},
		{"4 bytes of TCP", pt.TCP{IPLenDelta: -16}.Frame(), packet.Malformed, true},
		{"19 bytes of TCP", pt.TCP{IPLenDelta: -1}.Frame(), packet.Malformed, true},
		{"20 bytes of TCP", pt.TCP{}.Frame(), packet.OK, true},
		{"3 bytes of TCP in IPv6", pt.TCP{V6: true, IPLenDelta: -17}.Frame(), packet.Malformed, false},
		{"19 bytes of TCP in IPv6", pt.TCP{V6: true, IPLenDelta: -1}.Frame(), packet.Malformed, true},
		{"IPv6 payload length 0", pt.TCP{V6: true, ZeroIPLength: true}.Frame(), packet.Malformed, false},
		{"data offset 4", pt.TCP{Len: 100, Doff: 4}.Frame(), packet.Malformed, true},
		{"data offset 0", pt.TCP{Len: 100, Doff: -1}.Frame(), packet.Malformed, true},
		{"data offset beyond the packet", pt.TCP{Len: 3, Doff: 6}.Frame(), packet.Malformed, true},
		{"data offset at the packet's end", pt.TCP{Len: 4, Doff: 6}.Frame(), packet.OK, true},
		{"data offset 15", pt.TCP{Opts: make([]byte, 40), Len: 1}.Frame(), packet.OK, true},
		{"options of IP before a bad TCP header", pt.TCP{IPOpts: []byte{1, 1, 1, 1}, Doff: 4}.Frame(), packet.IPOptions, true},
		{"SYN", pt.TCP{Flags: pt.SYN, Opts: []byte{2, 4, 5, 180}}.Frame(), packet.OK, true},

		{"padded to 60", pt.TCP{Len: 1, Pad: true}.Frame(), packet.OK, true},
		{"padded to 61", pt.TCP{Len: 1, Pad: true, Trailer: []byte{0}}.Frame(), packet.Trailer, true},
		{"padded to 64 with a tag", pt.TCP{Len: 1, Tags: []uint16{5}, Pad: true}.Frame(), packet.OK, true},
		{"padded to 65 with a tag", pt.TCP{Len: 1, Tags: []uint16{5}, Pad: true, Trailer: []byte{0}}.Frame(), packet.Trailer, true},
		{"long trailer", pt.TCP{Len: 1, Trailer: make([]byte, 1400)}.Frame(), packet.Trailer, true},
		{"one byte behind a full packet", pt.TCP{Len: 1460, Trailer: []byte{0}}.Frame(), packet.Trailer, true},
		{"trailer of 1 byte within 60 in IPv6 is impossible", pt.TCP{V6: true, Trailer: []byte{0}}.Frame(), packet.Trailer, true},
		{"malformed and a trailer", pt.TCP{Doff: 4, Trailer: make([]byte, 100)}.Frame(), packet.Malformed, true},
	}
}

func TestFirstFailingCheckDecides(t *testing.T) {
	for _, r := range rows() {
		var got packet.Info
		packet.Parse(r.frame, &got)
		if got.Verdict != r.verdict || got.Keyed != r.keyed {
			t.Errorf("%s: %v, keyed %v; want %v, keyed %v", r.name, got.Verdict, got.Keyed, r.verdict, r.keyed)
		}
	}
}

func TestOffsetsAndFlags(t *testing.T) {
	type info = packet.Info
	for _, c := range []struct {
		name string
		p    pt.TCP
		want info
	}{
		{"IPv4", pt.TCP{Len: 100}, info{L3: 14, L4: 34, Payload: 54, PayloadLen: 100, Family: 4, TCPFlags: packet.ACK}},
		{"IPv6", pt.TCP{V6: true, Len: 100}, info{L3: 14, L4: 54, Payload: 74, PayloadLen: 100, Family: 6, TCPFlags: packet.ACK}},
		{"tag", pt.TCP{Tags: []uint16{0xa005}, Len: 1}, info{L3: 18, L4: 38, Payload: 58, PayloadLen: 1, TCI: 0xa005, Tagged: true, Family: 4, TCPFlags: packet.ACK}},
		{"tag 0", pt.TCP{Tags: []uint16{0}, Len: 1, V6: true}, info{L3: 18, L4: 58, Payload: 78, PayloadLen: 1, Tagged: true, Family: 6, TCPFlags: packet.ACK}},
		{"options", pt.TCP{Opts: pt.Timestamps(1, 2), Len: 1448}, info{L3: 14, L4: 34, Payload: 66, PayloadLen: 1448, Family: 4, TCPFlags: packet.ACK}},
		{"padding is not payload", pt.TCP{Len: 1, Pad: true}, info{L3: 14, L4: 34, Payload: 54, PayloadLen: 1, Family: 4, TCPFlags: packet.ACK}},
		{"no payload", pt.TCP{Pad: true}, info{L3: 14, L4: 34, Payload: 54, Family: 4, TCPFlags: packet.ACK}},
		{"every flag of byte 13 and none of byte 12", pt.TCP{Len: 1, Flags: 0xfff}, info{L3: 14, L4: 34, Payload: 54, PayloadLen: 1, Family: 4, TCPFlags: 0xff}},
	} {
		c.want.Keyed = true
		got := info{L3: 99, TCI: 99, Verdict: packet.Trailer} // nothing of it may stay
		if packet.Parse(c.p.Frame(), &got); got != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, got, c.want)
		}
	}
}

// consistent tells what is wrong with an Info that some frame gave.
func consistent(frame []byte, in *packet.Info) error {
	n := uint64(len(frame))
	end := uint64(in.Payload) + uint64(in.PayloadLen)
	switch {
	case int(in.Verdict) >= packet.NumVerdicts:
		return fmt.Errorf("verdict %d", in.Verdict)
	case uint64(in.L3) > n || uint64(in.L4) > n || end > n:
		return fmt.Errorf("offsets %d, %d, %d beyond %d bytes", in.L3, in.L4, end, n)
	case in.Keyed && (in.L4 == 0 || uint64(in.L4)+4 > n || in.Family != 4 && in.Family != 6):
		return fmt.Errorf("keyed without ports: %+v", *in)
	case in.Payload != 0 && in.Payload < in.L4+20:
		return fmt.Errorf("TCP header of %d bytes", in.Payload-in.L4)
	case in.Verdict == packet.OK && (!in.Keyed || in.Payload == 0):
		return fmt.Errorf("ok, and not whole: %+v", *in)
	case in.Verdict == packet.OK && in.Payload-in.L3 > 40+60:
		return fmt.Errorf("ok with %d bytes of headers", in.Payload-in.L3)
	}
	return nil
}

// Whatever a frame lost at its end, it is not TCP to be merged any more, unless all that was lost is padding.
func TestFrameCutAtEveryByte(t *testing.T) {
	for _, r := range rows() {
		var whole packet.Info
		packet.Parse(r.frame, &whole)
		for n := range r.frame {
			var got packet.Info
			packet.Parse(cut(r.frame, n), &got)
			if err := consistent(cut(r.frame, n), &got); err != nil {
				t.Errorf("%s, %d of %d bytes: %v", r.name, n, len(r.frame), err)
			}
			if got.Verdict == packet.OK && (whole.Payload != got.Payload || whole.PayloadLen != got.PayloadLen) {
				t.Errorf("%s, %d of %d bytes: ok with another payload than the whole frame", r.name, n, len(r.frame))
			}
		}
	}
}

// Every value of every length field: a lie never reaches beyond the frame.
func TestLyingLengths(t *testing.T) {
	frames := map[string][]byte{
		"IPv4": pt.TCP{Len: 20, Opts: pt.Timestamps(1, 1)}.Frame(), "IPv6": pt.TCP{V6: true, Len: 20}.Frame(),
		"options": pt.TCP{IPOpts: make([]byte, 8), Len: 20}.Frame(),
		"headers": pt.TCP{V6: true, Ext: []pt.Ext{pt.HopByHop(), pt.DstOpts(1)}, Len: 20}.Frame(),
	}
	for name, f := range frames {
		for at := 14; at < len(f); at++ {
			old := f[at]
			for v := range 256 {
				f[at] = byte(v)
				var got packet.Info
				packet.Parse(f, &got)
				if err := consistent(f, &got); err != nil {
					t.Errorf("%s, byte %d = %d: %v", name, at, v, err)
				}
			}
			f[at] = old
		}
		field := 16
		if f[12] == 0x86 {
			field = 18
		}
		for v := range 65536 {
			f[field], f[field+1] = byte(v>>8), byte(v)
			var got packet.Info
			packet.Parse(f, &got)
			if err := consistent(f, &got); err != nil {
				t.Errorf("%s, length %d: %v", name, v, err)
			}
		}
	}
}

func TestParseReadsNothingBehindTheFrame(t *testing.T) {
	for _, r := range rows() {
		var a packet.Info
		packet.Parse(r.frame, &a)
		// Nor does anything of an earlier packet stay.
		b := packet.Info{L3: 99, L4: 99, Payload: 99, PayloadLen: 99, TCI: 99, Tagged: true, Family: 99, TCPFlags: 99, Keyed: true, Verdict: 99}
		longer := append(append([]byte(nil), r.frame...), make([]byte, 64)...)
		for i := len(r.frame); i < len(longer); i++ {
			longer[i] = 0xff
		}
		packet.Parse(longer[:len(r.frame)], &b)
		if a != b {
			t.Errorf("%s: what stands behind the frame, or stood in the Info, changes the result", r.name)
		}
	}
}

// headAgrees compares what the first n bytes of a frame say with what all of it says: the same, or that it is truncated.
func headAgrees(frame []byte, n int) error {
	var whole, head packet.Info
	packet.Parse(frame, &whole)
	packet.ParseHead(frame[:n:n], len(frame), &head)
	switch {
	case head == whole:
		return nil
	case n == len(frame), whole.Payload != 0 && n >= int(whole.Payload):
		return fmt.Errorf("all headers are in %d bytes, but they say %+v, the frame %+v", n, head, whole)
	case head.Verdict == packet.Truncated || head.Verdict == whole.Verdict && head.Payload == 0:
	default:
		return fmt.Errorf("%d bytes say %+v, the frame %+v", n, head, whole)
	}
	if head.Keyed && (!whole.Keyed || head.L4 != whole.L4 || int(head.L4)+4 > n) {
		return fmt.Errorf("%d bytes have a key that the frame has not: %+v, %+v", n, head, whole)
	}
	return nil
}

func TestHeadSaysWhatTheFrameSays(t *testing.T) {
	for _, r := range rows() {
		for n := range len(r.frame) + 1 {
			if err := headAgrees(r.frame, n); err != nil {
				t.Errorf("%s: %v", r.name, err)
			}
		}
	}
}

func TestVerdictNames(t *testing.T) {
	want := []string{"ok", "not_ip", "not_tcp", "vlan_stack", "malformed", "truncated", "trailer", "fragment", "ip_options", "ext_header", "reserved_flag"}
	if len(want) != packet.NumVerdicts {
		t.Fatalf("%d verdicts", packet.NumVerdicts)
	}
	for i, w := range want { // the numbers are an interface: bpf/abi.h
		if got := packet.Verdict(i).String(); got != w {
			t.Errorf("verdict %d is %q, want %q", i, got, w)
		}
	}
	if got := packet.Verdict(200).String(); got != "unknown" {
		t.Errorf("verdict 200 is %q", got)
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	all := rows()
	var info packet.Info
	if n := testing.AllocsPerRun(10, func() {
		for i := range all {
			packet.Parse(all[i].frame, &info)
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d frames", n, len(all))
	}
}

func FuzzParse(f *testing.F) {
	for _, r := range rows() {
		f.Add(r.frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		var got packet.Info
		packet.Parse(frame, &got)
		if err := consistent(frame, &got); err != nil {
			t.Fatal(err)
		}
		for n := 0; n <= len(frame); n += 1 + n/64 {
			if err := headAgrees(frame, n); err != nil {
				t.Fatal(err)
			}
		}
		if got.Verdict != packet.OK {
			return
		}
		// What is OK is what an independent reading finds too.
		want, err := pt.Read(frame)
		if err != nil {
			t.Fatalf("ok, but %v", err)
		}
		if want.DataLen() != int(got.PayloadLen) || uint8(want.Flags) != got.TCPFlags || want.V6 != (got.Family == 6) || len(want.Tags) > 1 {
			t.Fatalf("%+v, but the frame is %+v", got, want)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for name, f := range map[string][]byte{"ipv4": pt.TCP{Len: 1448, Opts: pt.Timestamps(1, 1)}.Frame(), "ipv6": pt.TCP{V6: true, Len: 1428, Opts: pt.Timestamps(1, 1)}.Frame()} {
		b.Run(name, func(b *testing.B) {
			var info packet.Info
			for b.Loop() {
				packet.Parse(f, &info)
			}
		})
	}
}
