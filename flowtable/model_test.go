package flowtable_test

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// judge holds one output against what must be true of every output, whatever the rules decided. It knows the packets that
// went in and nothing of the table; lengths, checksums and segmentation are packettest's.
func (r *runner) judge(o *output) {
	bad := func(format string, args ...any) {
		r.tb.Errorf("%v: %s", o, fmt.Sprintf(format, args...))
	}
	if len(o.Refs) == 0 {
		bad("no packets")
		return
	}
	ins := make([]input, len(o.Refs))
	for i, ref := range o.Refs {
		if ref >= uint64(len(r.in)) || r.gone[ref] {
			bad("packet %d left twice", ref)
			return
		}
		r.gone[ref] = true
		ins[i] = r.in[ref]
		if ins[i].port != o.Port {
			bad("packet %d of port %d on port %d", ref, ins[i].port, o.Port)
		}
		r.inOrder(ref, &ins[i], bad)
	}
	if int(o.Reason) >= flowtable.NumReasons {
		bad("reason %d", o.Reason)
	}
	if o.DupAcks != 0 {
		bad("%d duplicate acknowledgements: Windows would switch RSC off", o.DupAcks)
	}
	cfg := r.cfg[o.Port]
	if held := o.at - ins[0].at; len(o.Refs) > 1 && o.Held != held {
		bad("held for %d ns, said %d", held, o.Held)
	}
	var err error
	if len(ins) == 1 && o.GSOType == 0 {
		err = judgeSingle(o, &ins[0], &cfg)
	} else {
		err = judgeMerged(o, ins, &cfg)
	}
	if err == nil {
		err = checkHeader(o, &cfg)
	}
	if err != nil {
		bad("%v\n%+v\n%x", err, o.Superframe, o.frame[:min(len(o.frame), 160)])
	}
}

// inOrder is property P8: no packet overtakes an older one of its flow.
func (r *runner) inOrder(ref uint64, in *input, bad func(string, ...any)) {
	k := flowOf(in)
	if k == "" {
		if pair := pairOf(in); pair != "" {
			if last := r.last[pair]; last > ref {
				bad("packet %d left after %d of the same addresses", ref, last)
			}
			r.last["without ports "+pair] = ref
		}
		return
	}
	pair := pairOf(in)
	if last, ok := r.last["without ports "+pair]; ok && last > ref {
		bad("packet %d left after %d of the same addresses, whose ports nobody knows", ref, last)
	}
	r.last[pair] = max(r.last[pair], ref)
	if last, ok := r.last[k]; ok && last > ref {
		bad("packet %d left after %d of the same flow", ref, last)
	}
	r.last[k] = ref
}

// flowOf names a packet's flow; empty if it has none that can be read.
func flowOf(in *input) string {
	i := &in.info
	if !i.Keyed {
		return ""
	}
	return pairOf(in) + fmt.Sprintf("%x", in.frame[i.L4:i.L4+4])
}

// pairOf begins the name of a flow: all but the ports. It is there where the ports are, and where a packet that is TCP's, or
// may be, keeps them out of reach.
func pairOf(in *input) string {
	i := &in.info
	if !i.Keyed && i.Verdict != packet.Fragment && i.Verdict != packet.ExtHeader {
		return ""
	}
	addrs := in.frame[i.L3+12 : i.L3+20]
	if i.Family == 6 {
		addrs = in.frame[i.L3+8 : i.L3+40]
	}
	vlan := -1
	if i.Tagged {
		vlan = int(i.TCI & 0xfff)
	}
	return fmt.Sprintf("%d %d %x ", in.port, vlan, addrs)
}

// judgeSingle: a packet that leaves alone is as it came.
func judgeSingle(o *output, in *input, cfg *flowtable.PortConfig) error {
	if !bytes.Equal(o.frame, in.frame) {
		return fmt.Errorf("a packet that left alone was changed:\n%x", in.frame)
	}
	segments := 1
	if in.info.Payload != 0 && in.info.PayloadLen == 0 {
		segments = 0
	}
	if o.Segments != segments {
		return fmt.Errorf("%d segments of %d", o.Segments, segments)
	}
	if o.Flags == 2 && in.gso {
		return fmt.Errorf("a partial checksum is called valid")
	}
	return nil
}

// judgeMerged: the frame is what the packets add up to by the rules of 2.4 and 7.2, and in profile gro cutting it gives
// back the packets.
func judgeMerged(o *output, ins []input, cfg *flowtable.PortConfig) error {
	want, err := combine(ins)
	if err != nil {
		return err
	}
	if o.Segments != want.segments || int(o.GSOSize) != want.gsoSize {
		return fmt.Errorf("%d segments of %d bytes, want %d of %d", o.Segments, o.GSOSize, want.segments, want.gsoSize)
	}
	if frame := want.packet.Frame(); !bytes.Equal(o.frame, frame) {
		return fmt.Errorf("want\n%x", frame[:min(len(frame), 160)])
	}
	if cfg.Profile == flowtable.RSC && cfg.RSCExt {
		return nil
	}
	got, err := cut(o)
	if err != nil {
		return err
	}
	if err := segmented(o, got); err != nil {
		return err
	}
	if len(got) != len(ins) {
		return fmt.Errorf("%d packets became %d", len(ins), len(got))
	}
	for i := range got {
		if want := ipPacket(&ins[i]); !bytes.Equal(got[i][:len(got[i])], want) {
			return fmt.Errorf("packet %d: cutting gives\n%x\nit was\n%x", o.Refs[i], got[i], want)
		}
	}
	return nil
}

// ipPacket is a frame without padding.
func ipPacket(in *input) []byte {
	return in.frame[:in.info.Payload+in.info.PayloadLen]
}

// sum is what packets add up to.
type sum struct {
	packet   pt.TCP
	segments int // with data
	gsoSize  int // 0: one segment, a plain packet
}

// combine is the reference model of a superframe.
func combine(ins []input) (sum, error) {
	var s sum
	var payload []byte
	for i := range ins {
		p, err := pt.Read(ins[i].frame)
		switch {
		case err != nil:
			return s, err
		case !sound(&ins[i]):
			return s, fmt.Errorf("packet with a bad checksum in a superframe: %+v", p)
		case i == 0:
			s.packet = p
			s.packet.Flags &^= pt.NoFlags
		case p.Seq != s.packet.Seq+uint32(len(payload)):
			return s, fmt.Errorf("sequence number %d of a packet that continues at %d", p.Seq, s.packet.Seq+uint32(len(payload)))
		}
		payload = append(payload, p.Payload...)
		s.packet.Flags |= p.Flags & (pt.PSH | pt.FIN)
		s.packet.Ack, s.packet.Win = p.Ack, p.Win
		s.packet.TTL = min(s.packet.TTL, p.TTL)
		if len(p.Payload) > 0 {
			s.segments++
			s.gsoSize = max(s.gsoSize, len(p.Payload))
		}
	}
	s.packet.Payload, s.packet.Partial, s.packet.BadTCP, s.packet.BadIP, s.packet.Pad = payload, true, false, false, false
	if s.segments == 1 { // data and window updates: a plain packet
		s.gsoSize, s.packet.Partial = 0, false
	}
	return s, nil
}

// sound tells whether both checksums are right, in either form of 0; pt.Read knows only the usual one.
func sound(in *input) bool {
	f := ipPacket(in)
	right := func(field, want uint16) bool { return field == want || field == 0xffff && want == 0 }
	ip := f[in.info.L3:]
	l4 := int(in.info.L4 - in.info.L3)
	if in.info.Family == 4 && !right(binary.BigEndian.Uint16(ip[10:]), pt.HeaderCheck(ip[:l4])) {
		return false
	}
	return right(binary.BigEndian.Uint16(ip[l4+16:]), pt.TCPCheck(ip, l4))
}

// cut segments a superframe by what its header says (3.4, virtio 5.1.6.2): the test's own TSO.
func cut(o *output) ([][]byte, error) {
	p, err := pt.Read(o.frame)
	if err != nil {
		return nil, err
	}
	if len(p.Trailer) != 0 || p.Pad {
		return nil, fmt.Errorf("bytes behind the superframe")
	}
	p.Partial, p.BadTCP, p.BadIP = false, false, false
	payload := p.Payload
	first, last := p.Flags&pt.CWR, p.Flags&(pt.FIN|pt.PSH)
	p.Flags &^= pt.CWR | pt.FIN | pt.PSH
	var all [][]byte
	for done := 0; done < len(payload); {
		n := min(int(o.GSOSize), len(payload)-done)
		if n == 0 {
			return nil, fmt.Errorf("gso_size 0")
		}
		q := p
		q.Payload = payload[done : done+n]
		q.Seq += uint32(done)
		if done == 0 {
			q.Flags |= first
		}
		if done += n; done == len(payload) {
			q.Flags |= last
		}
		if !o.FixedID {
			q.ID += uint16(len(all))
		}
		all = append(all, q.Frame())
	}
	return all, nil
}

// segmented runs the product's Segmenter over a superframe; it has to agree with cut.
func segmented(o *output, want [][]byte) error {
	var s flowtable.Segmenter
	// The headers are split too.
	n := min(len(o.frame), 1+int(o.Refs[0])%70)
	if err := s.Init([][]byte{o.frame[:n], o.frame[n:]}, flowtable.GSO{Type: o.GSOType, Size: o.GSOSize, FixedID: o.FixedID}); err != nil {
		return err
	}
	dst := make([]byte, int(o.HdrLen)+int(o.GSOSize))
	for i := 0; ; i++ {
		n, ok, err := s.Next(dst)
		switch {
		case err != nil:
			return err
		case ok != (i < len(want)):
			return fmt.Errorf("Segmenter: packet %d of %d: %v", i, len(want), ok)
		case !ok:
			return nil
		case !bytes.Equal(dst[:n], want[i]):
			return fmt.Errorf("Segmenter: packet %d\n%x\nwant\n%x", i, dst[:n], want[i])
		}
	}
}

// Flags and types of virtio_net_hdr, by virtio 1.2, 5.1.6.
const (
	needsCsum, dataValid, rscInfo = 1, 2, 4
	tcpv4, tcpv6, udpL4, ecnBit   = 1, 4, 5, 0x80
)

// checkHeader is rules V1 to V8 of 4.3, written down a second time.
func checkHeader(o *output, c *flowtable.PortConfig) error {
	fail := func(rule, format string, args ...any) error {
		return fmt.Errorf("%s: %s", rule, fmt.Sprintf(format, args...))
	}
	if !c.GuestCsum && o.Flags != 0 {
		return fail("V1", "flags %d without GUEST_CSUM", o.Flags)
	}
	if o.Flags&^(needsCsum|dataValid|rscInfo) != 0 || o.Flags&needsCsum != 0 && o.Flags&dataValid != 0 {
		return fail("flags", "%d", o.Flags)
	}
	if o.GSOType == 0 {
		if o.Flags&^dataValid != 0 || o.GSOSize != 0 || o.HdrLen != 0 || o.CsumStart != 0 || o.CsumOffset != 0 {
			return fail("single", "fields that mean nothing are not 0")
		}
		if o.Flags == dataValid && !checksumsRight(o.frame) {
			return fail("V7", "DATA_VALID on a wrong checksum")
		}
		return nil
	}
	p, err := pt.Read(o.frame)
	if err != nil {
		return err
	}
	kind, tso := uint8(tcpv4), c.TSO4
	l4 := 14 + 4*len(p.Tags) + 20
	if p.V6 {
		kind, tso, l4 = tcpv6, c.TSO6, l4+20
	}
	ipLen := len(o.frame) - 14 - 4*len(p.Tags)
	switch {
	case o.GSOType&^ecnBit != kind || !tso:
		return fail("V2", "gso_type %#x", o.GSOType)
	case o.Flags&needsCsum == 0 || o.GSOSize == 0 || o.GSOSize == 0xffff:
		return fail("V3", "flags %d, gso_size %d", o.Flags, o.GSOSize)
	case c.RSCExt && (o.Flags != needsCsum|rscInfo || int(o.CsumStart) != o.Segments || o.CsumOffset != 0):
		return fail("V4", "flags %d, segments %d, duplicates %d", o.Flags, o.CsumStart, o.CsumOffset)
	case !c.RSCExt && o.Flags != needsCsum:
		return fail("V5", "flags %d", o.Flags)
	case !c.RSCExt && (int(o.CsumStart) != l4 || o.CsumOffset != 16):
		return fail("V6", "checksum at %d+%d", o.CsumStart, o.CsumOffset)
	case binary.BigEndian.Uint16(o.frame[l4+16:]) != pt.PseudoSum(o.frame[l4-headerLen(p.V6):], headerLen(p.V6)):
		return fail("V6", "TCP checksum field is not the pseudo header's sum")
	case p.BadIP:
		return fail("header", "IPv4 checksum")
	case (o.GSOType&ecnBit != 0) != (p.Flags&pt.CWR != 0) || o.GSOType&ecnBit != 0 && !c.ECN:
		return fail("V8", "gso_type %#x, flags %#x, GUEST_ECN %v", o.GSOType, p.Flags, c.ECN)
	case int(o.HdrLen) != len(o.frame)-len(p.Payload):
		return fail("hdr_len", "%d", o.HdrLen)
	case len(p.Payload) <= int(o.GSOSize):
		return fail("gso_size", "%d of %d bytes of payload", o.GSOSize, len(p.Payload))
	case ipLen > flowtable.MaxIPLength || len(p.Tags) > 0 && ipLen > flowtable.MaxTaggedIPLength || c.MaxBytes > 0 && ipLen > c.MaxBytes:
		return fail("P6", "IP length %d", ipLen)
	case c.MaxFrame > 0 && len(o.frame) > c.MaxFrame:
		return fail("P6", "frame of %d bytes", len(o.frame))
	case c.MaxSegments > 0 && o.Segments > c.MaxSegments:
		return fail("max_segments", "%d", o.Segments)
	case p.Flags&(pt.SYN|pt.RST|pt.URG) != 0:
		return fail("flags", "TCP flags %#x", p.Flags)
	}
	return nil
}

func headerLen(v6 bool) int {
	if v6 {
		return 40
	}
	return 20
}

// checksumsRight is a receiver's view.
func checksumsRight(frame []byte) bool {
	in := input{frame: frame}
	packet.Parse(frame, &in.info)
	return in.info.Payload != 0 && sound(&in)
}
