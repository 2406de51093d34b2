package flowtable_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// lateOutput keeps what a table leaves to be verified: frames, copied, and whether each payload is right.
type lateOutput struct {
	t      *testing.T
	chunks [][]byte // by Ref
	frames [][]byte
	good   [][]bool // of each frame's payloads that have a sum
	sf     []flowtable.Superframe
}

func (o *lateOutput) Deliver(sf *flowtable.Superframe) {
	var good []bool
	if len(sf.Sums) > 0 && len(sf.Sums) != len(sf.Frags)-1 {
		o.t.Errorf("%d sums of %d fragments", len(sf.Sums), len(sf.Frags))
	}
	for i, sum := range sf.Sums {
		frag := sf.Frags[i+1]
		if sum != 0 {
			good = append(good, checksum.Sum(frag, uint32(sum)) == 0xffff)
		}
		if sf.Merged { // the packet as it came is where the contract says
			whole := o.chunks[sf.Refs[i]]
			if n := len(sf.Frags[0]); len(whole) != n+cap(frag) || !bytes.Equal(whole[n:n+len(frag)], frag) {
				o.t.Errorf("packet %d of %d: its chunk has %d bytes, the fragment says %d", i, sf.Packets, len(whole), len(sf.Frags[0])+cap(frag))
			}
		}
	}
	o.frames, o.good, o.sf = append(o.frames, slices.Concat(sf.Frags...)), append(o.good, good), append(o.sf, *sf)
	sf.Frags, sf.Refs, sf.Sums = nil, nil, nil // it keeps the lists
}

// lateRun gives packets to a table, in one burst, and returns what it gave out. Their memory is not written to.
func lateRun(t *testing.T, c flowtable.PortConfig, leave bool, frames [][]byte) (*lateOutput, *flowtable.Ledger) {
	t.Helper()
	return lateRunAsked(t, c, leave, false, frames)
}

// lateRunAsked is lateRun of packets for which Follow has been asked, or not.
func lateRunAsked(t *testing.T, c flowtable.PortConfig, leave, asked bool, frames [][]byte) (*lateOutput, *flowtable.Ledger) {
	t.Helper()
	o := &lateOutput{t: t}
	for _, f := range frames {
		o.chunks = append(o.chunks, slices.Clone(f))
	}
	table, err := flowtable.New(flowtable.Config{Slots: 8, Ports: 1}, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.SetPort(0, c, 0); err != nil {
		t.Fatal(err)
	}
	table.LeaveSums(0, leave)
	for i, f := range o.chunks {
		p := flowtable.Packet{Data: f, Ref: uint64(i), Asked: asked}
		packet.Parse(f, &p.Info)
		table.Add(&p, 0)
	}
	table.Close(flowtable.ReasonStop, 0)
	for i := range frames {
		if leave && !bytes.Equal(frames[i], o.chunks[i]) && len(o.sf) == 1 {
			t.Errorf("packet %d was written to", i)
		}
	}
	return o, table.Ledger(0)
}

// With LeaveSums the frames are those that they would have been, bit for bit, and each payload has the sum that tells whether it is
// right; whatever says by itself that it is not is verified at once.
func TestPayloadsMayBeVerifiedByTheOutput(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, hold := range []time.Duration{0, time.Second} {
			for _, padded := range []bool{false, true} {
				c := negotiated(flowtable.GRO)
				c.Hold = hold
				p := pt.TCP{V6: v6, Len: 700, Opts: pt.Timestamps(1, 2)}
				if padded && !v6 {
					p = pt.TCP{Len: 3, Pad: true}
				}
				frames := pt.Frames(p.Train(6)...)
				before, bl := lateRun(t, c, false, frames)
				late, ll := lateRun(t, c, true, frames)
				if len(late.frames) != 1 || !bytes.Equal(late.frames[0], before.frames[0]) || *bl != *ll {
					t.Fatalf("v6 %v, hold %v, padded %v: %d frames:\n%x\n%x", v6, hold, padded, len(late.frames), late.frames, before.frames)
				}
				if want := fmt.Sprint([]bool{true, true, true, true, true, true}); fmt.Sprint(late.good[0]) != want {
					t.Errorf("payloads that are right: %v", late.good[0])
				}
				for i := range frames {
					bad := slices.Clone(frames)
					bad[i] = slices.Clone(bad[i])
					if padded && !v6 {
						bad[i][54] ^= 2
					} else {
						bad[i][len(frames[i])-len(frames[i])/8-i] ^= 2
					}
					o, l := lateRun(t, c, true, bad)
					if len(o.frames) != 1 || o.good[0][i] || l.Unexplained() != int64(l.In) {
						t.Errorf("packet %d is damaged: %d frames, right are %v", i, len(o.frames), o.good[0])
					}
					e := o.sf[0].Entry
					if l.TakeBack(&e, int(o.sf[0].HdrLen)); l.Decided != (flowtable.Decided{}) {
						t.Errorf("taken back, and left are %+v", l.Decided)
					}
				}
			}
		}
	}
}

// What the header says is wrong, what leaves alone for its flags, and what rsc merges are verified by the table.
func TestWhatIsNotLeftToTheOutput(t *testing.T) {
	base := pt.TCP{Len: 100}
	for name, p := range map[string]pt.TCP{
		"partial": base.With(func(p *pt.TCP) { p.Partial = true }), "bad IP": base.With(func(p *pt.TCP) { p.BadIP = true }),
		"not canonical": base.With(func(p *pt.TCP) { p.Noncanonical = true }), "SYN": base.With(func(p *pt.TCP) { p.Flags = pt.SYN }),
		"no payload": base.With(func(p *pt.TCP) { p.Len = 0 }), "CWR": base.With(func(p *pt.TCP) { p.Flags = pt.ACK | pt.CWR }),
	} {
		frames := [][]byte{p.Frame()}
		before, bl := lateRun(t, negotiated(flowtable.GRO), false, frames)
		late, ll := lateRun(t, negotiated(flowtable.GRO), true, frames)
		if len(late.sf[0].Sums) != 0 || *bl != *ll || late.sf[0].Flags != before.sf[0].Flags {
			t.Errorf("%s: sums %v, flags %d and %d", name, late.sf[0].Sums, late.sf[0].Flags, before.sf[0].Flags)
		}
	}
	frames := pt.Frames(base.Train(4)...)
	frames[2][80] ^= 1
	late, l := lateRun(t, negotiated(flowtable.RSC), true, frames)
	if len(late.sf) != 3 || l.Decided.Frames[flowtable.ReasonBadTCPChecksum] != 2 {
		t.Errorf("rsc: %d frames, %d for the damage", len(late.sf), l.Decided.Frames[flowtable.ReasonBadTCPChecksum])
	}
}

// A listener comes and goes: packets that were verified and packets that were not are in one superframe only if it is known of each.
func TestBothWaysToVerifyInOneTrain(t *testing.T) {
	frames := pt.Frames(pt.TCP{Len: 100}.Train(6)...)
	for _, bad := range []int{-1, 1, 2, 3, 4} {
		for _, first := range []bool{false, true} {
			o := &lateOutput{t: t}
			for _, f := range frames {
				o.chunks = append(o.chunks, slices.Clone(f))
			}
			if bad >= 0 {
				o.chunks[bad][70] ^= 8
			}
			table, err := flowtable.New(flowtable.Config{Slots: 8, Ports: 1}, o)
			if err != nil {
				t.Fatal(err)
			}
			if err := table.SetPort(0, negotiated(flowtable.GRO), 0); err != nil {
				t.Fatal(err)
			}
			for i, f := range o.chunks {
				table.LeaveSums(0, first == (i%4 < 2))
				p := flowtable.Packet{Data: f, Ref: uint64(i)}
				packet.Parse(f, &p.Info)
				table.Add(&p, 0)
			}
			table.Close(flowtable.ReasonStop, 0)
			for i, sf := range o.sf {
				if slices.Contains(o.good[i], false) || !sf.Merged {
					continue // its Output finds it, or it is alone
				}
				if bad >= 0 && bytes.Contains(o.frames[i], o.chunks[bad][54:]) {
					t.Errorf("first %v: packet %d is damaged, and in a superframe that nobody suspects", first, bad)
				}
			}
		}
	}
}
