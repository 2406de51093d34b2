package flowtable_test

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// A port that excludes some port sees every packet go the long way through Add. Whatever bit of a packet in the middle of a train differs, with
// its checksums right or wrong, a port that excludes none must give out the same: the short way is a way, and has no rules.
func TestTheShortWayThroughAddChangesNothing(t *testing.T) {
	for name, opts := range map[string][]byte{"timestamps": pt.Timestamps(7, 8), "no options": nil, "other options": pt.SACK(1, 2)} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/v6=%t", name, v6), func(t *testing.T) {
				testShortWay(t, pt.TCP{V6: v6, Len: 100, Opts: opts, Seq: 1<<32 - 150, ID: 0xffff})
			})
		}
	}
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
	pseudo := func(f []byte) uint32 {
		if train.V6 {
			return checksum.Pseudo6(f[l3+8:l3+24], f[l3+24:l3+40], 6, uint32(len(f)-l4))
		}
		return checksum.Pseudo4(f[l3+12:l3+16], f[l3+16:l3+20], 6, uint32(len(f)-l4))
	}
	resum := func(f []byte) {
		if !train.V6 {
			f[l3+10], f[l3+11] = 0, 0
			binary.BigEndian.PutUint16(f[l3+10:], ^checksum.Sum(f[l3:l4], 0))
		}
		f[l4+16], f[l4+17] = 0, 0
		binary.BigEndian.PutUint16(f[l4+16:], ^checksum.Sum(f[l4:], pseudo(f)))
	}
	joined := 0
	same := func(what string, frames [][]byte) {
		t.Helper()
		for _, leave := range []bool{false, true} {
			for _, still := range []bool{false, true} {
				c := negotiated(flowtable.GRO)
				c.FixedID = still
				short, a := lateRun(t, c, leave, frames)
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
