package flowtable_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"reflect"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// A port that excludes some port sees every packet go the long way through Add. Whatever bit of a packet in the middle of a train differs, with
// its checksums right or wrong, a port that excludes none must give out the same: the short way is a way, and has no rules.
func TestTheShortWayThroughAddChangesNothing(t *testing.T) {
	for name, opts := range map[string][]byte{"timestamps": pt.Timestamps(7, 8), "no options": nil, "other options": pt.SACK(1, 2)} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/v6=%t", name, v6), func(t *testing.T) {
				testShortWay(t, pt.TCP{V6: v6, Len: 100, Opts: opts, Seq: 1<<32 - 150, ID: 0xffff, TOS: 0x48, Urgent: 9})
			})
		}
	}
}

// Follow takes its caller's word that a packet is sound, but sees for itself what would make a wrong frame: where the headers say anything else, or the
// frame ends too early, it takes nothing that Add would not merge.
func TestFollowTakesNothingOnTrust(t *testing.T) {
	for _, opts := range [][]byte{pt.Timestamps(7, 8), nil} {
		train := pt.TCP{Len: 100, Opts: opts, Seq: 1000, ID: 7}
		payload := 54 + len(opts)
		next := train
		next.Seq, next.ID = next.Seq+100, next.ID+1
		good := next.Frame()
		taken := 0
		try := func(what string, f []byte) {
			t.Helper()
			first := train.Frame()
			table, err := flowtable.New(flowtable.Config{Slots: 8, Ports: 1}, &lateOutput{t: t, chunks: [][]byte{first, f}})
			if err == nil {
				err = table.SetPort(0, negotiated(flowtable.GRO), 0)
			}
			if err != nil {
				t.Fatal(err)
			}
			table.LeaveSums(0, true)
			p := flowtable.Packet{Data: first}
			packet.Parse(p.Data, &p.Info)
			table.Add(&p, 0)
			if !table.Follow(0, f, 1) {
				return
			}
			taken++
			_, want := lateRun(t, negotiated(flowtable.GRO), true, [][]byte{train.Frame(), f})
			if want.Decided.Packets != 2 {
				t.Errorf("%s: Follow merges what Add does not", what)
			}
		}
		try("the next packet", good)
		for bit := range 8 * payload {
			f := bytes.Clone(good)
			f[bit/8] ^= 1 << (bit % 8)
			try(fmt.Sprintf("bit %d of byte %d", bit%8, bit/8), f)
			resum(f, false)
			try(fmt.Sprintf("bit %d of byte %d, under right checksums", bit%8, bit/8), f)
		}
		for n := range good {
			try(fmt.Sprintf("%d bytes", n), good[:n:n])
		}
		if taken < 2 { // PSH may be there
			t.Errorf("%d packets followed", taken)
		}
	}
}

// pseudoSum is the pseudo header's sum of an untagged TCP frame without padding.
func pseudoSum(f []byte, v6 bool) uint32 {
	if v6 {
		return checksum.Pseudo6(f[22:38], f[38:54], 6, uint32(len(f)-54))
	}
	return checksum.Pseudo4(f[26:30], f[30:34], 6, uint32(len(f)-34))
}

// resum makes the checksums of such a frame right, if of IPv4 with a header of 20 bytes.
func resum(f []byte, v6 bool) {
	l4 := 54
	if !v6 {
		l4 = 34
		f[24], f[25] = 0, 0
		binary.BigEndian.PutUint16(f[24:], ^checksum.Sum(f[14:l4], 0))
	}
	f[l4+16], f[l4+17] = 0, 0
	binary.BigEndian.PutUint16(f[l4+16:], ^checksum.Sum(f[l4:], pseudoSum(f, v6)))
}

func testShortWay(t *testing.T, train pt.TCP) {
	const l3 = 14
	l4 := 34
	if train.V6 {
		l4 = 54
	}
	payload := l4 + 20 + len(train.Opts)
	next := func(p pt.TCP, by uint32) pt.TCP {
		p.Seq, p.ID = p.Seq+by*100, p.ID+uint16(by)
		return p
	}
	pseudo := func(f []byte) uint32 { return pseudoSum(f, train.V6) }
	resum := func(f []byte) { resum(f, train.V6) }
	joined := 0
	same := func(what string, frames [][]byte) {
		t.Helper()
		for _, leave := range []bool{false, true} {
			for _, still := range []bool{false, true} {
				c := negotiated(flowtable.GRO)
				c.FixedID = still
				short, a := lateRun(t, c, leave, frames)
				if asked, b := lateRunAsked(t, c, leave, true, frames); !reflect.DeepEqual(short.frames, asked.frames) || !reflect.DeepEqual(*a, *b) {
					t.Fatalf("%s, late %v: asked before it gives %+v\nnot asked %+v", what, leave, *b, *a)
				}
				c.ExcludePorts = []uint16{9}
				long, b := lateRun(t, c, leave, frames)
				if !reflect.DeepEqual(short.frames, long.frames) || !reflect.DeepEqual(short.good, long.good) || !reflect.DeepEqual(*a, *b) {
					t.Fatalf("%s, late %v: the short way gives %+v\nthe long one %+v", what, leave, *a, *b)
				}
				for i := range short.sf {
					if got, want := short.sf[i], long.sf[i]; got.Entry != want.Entry || got.Flags != want.Flags || got.GSOType != want.GSOType ||
						got.GSOSize != want.GSOSize || got.HdrLen != want.HdrLen || got.CsumStart != want.CsumStart || got.FixedID != want.FixedID {
						t.Fatalf("%s, late %v: the short way gives %+v\nthe long one %+v", what, leave, got, want)
					}
				}
				joined += int(a.Decided.Packets)
			}
		}
	}
	frames := func(middle []byte) [][]byte {
		return [][]byte{train.Frame(), middle, next(train, 2).Frame(), next(train, 3).Frame()}
	}
	for bit := range 8 * payload {
		f := next(train, 1).Frame()
		f[bit/8] ^= 1 << (bit % 8)
		same("a flipped bit", frames(f))
		resum(f)
		same("a flipped bit under right checksums", frames(f))
	}
	f := next(train, 1).Frame()
	f[payload+50] ^= 1
	same("a damaged payload", frames(f))
	for name, middle := range map[string]pt.TCP{
		"shorter": {Len: 60}, "longer": {Len: 140}, "empty": {Len: 0}, "padded": {Len: 100, Pad: true}, "pushed": {Len: 100, Flags: pt.ACK | pt.PSH},
	} {
		p := next(train, 1)
		p.Len, p.Pad, p.Flags = middle.Len, middle.Pad, p.Flags|middle.Flags
		same(name, frames(p.Frame()))
	}
	stand := next(train, 1)
	stand.ID = train.ID
	same("an ID that stands still", frames(stand.Frame()))
	f = next(train, 1).Frame()
	binary.BigEndian.PutUint16(f[l4+16:], checksum.Sum(nil, pseudo(f)))
	same("a partial checksum", frames(f))
	// Both zeroes of ones' complement: a word of the payload, or the train's ID, that brings the sum there.
	for v := range 1 << 16 {
		f := next(train, 1).Frame()
		binary.BigEndian.PutUint16(f[payload:], uint16(v))
		if resum(f); f[l4+16] == 0 && f[l4+17] == 0 {
			same("a TCP checksum of 0", frames(f))
			f[l4+16], f[l4+17] = 0xff, 0xff
			same("a TCP checksum of 0xffff", frames(f))
		}
	}
	for v := range 1 << 16 {
		if train.ID = uint16(v); train.V6 { // which has neither
			break
		}
		if f := next(train, 1).Frame(); f[l3+10] == 0 && f[l3+11] == 0 {
			same("an IP checksum of 0", frames(f))
			f[l3+10], f[l3+11] = 0xff, 0xff
			same("an IP checksum of 0xffff", frames(f))
		}
	}
	if joined == 0 {
		t.Error("nothing was merged")
	}
}
