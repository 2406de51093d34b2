package flowtable_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// A later fragment has no ports: it may belong to any flow between its addresses, so it overtakes none of them. Flows between
// other addresses, of other VLANs and other ports are left alone.
func TestLaterFragmentSealsTheFlowsOfItsAddresses(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, hold := range []time.Duration{0, time.Millisecond} {
			c := negotiated(flowtable.GRO)
			c.Hold = hold
			r := newRunner(t, flowtable.Config{}, c, c)
			flow := func(port uint16, more change) pt.TCP {
				p := pt.TCP{V6: v6, Len: 100, SrcPort: port}
				if more != nil {
					more(&p)
				}
				return p
			}
			for _, p := range []pt.TCP{
				flow(1, nil),
				flow(2, func(p *pt.TCP) { p.Src4, p.Src6 = [4]byte{198, 51, 100, 9}, [16]byte{0x20, 1, 15: 99} }),
				flow(3, nil),
				flow(4, func(p *pt.TCP) { p.Tags = []uint16{7} }),
			} {
				r.add(0, p.Frame(), false)
			}
			r.add(1, flow(1, nil).Frame(), false)
			fragment := flow(9, func(p *pt.TCP) { p.FragOffset = 3 })
			if v6 {
				fragment = flow(9, func(p *pt.TCP) { p.Ext = []pt.Ext{pt.FragmentHeader(3, true, 1)} })
			}
			r.add(0, fragment.Frame(), false)
			want := "0 fragment, 2 fragment, 5 fragment"
			if hold == 0 { // only what nothing older is in front of
				want = "0 fragment"
			}
			if got := r.result(); got != want {
				t.Errorf("IPv6 %v, hold %v: %s, want %s", v6, hold, got, want)
			}
			r.close()
			want += ", 1 stop, 3 stop, 4 stop"
			if hold == 0 {
				want = "0 fragment, 1 stop, 2 fragment, 3 stop, 5 fragment, 4 stop"
			}
			if got := r.result(); got != want {
				// ports are cleared in no order
				if hold != 0 && got == "0 fragment, 2 fragment, 5 fragment, 4 stop, 1 stop, 3 stop" ||
					hold == 0 && got == "0 fragment, 4 stop, 1 stop, 2 fragment, 3 stop, 5 fragment" {
					continue
				}
				t.Errorf("IPv6 %v, hold %v: %s, want %s", v6, hold, got, want)
			}
		}
	}
}

// The lists of pairs hold what is open and nothing else, however slots come and go: in the end a fragment finds nothing.
func TestPairsForgetWhatHasLeft(t *testing.T) {
	r := newRunner(t, flowtable.Config{Slots: 8}, negotiated(flowtable.GRO))
	seq := uint32(1)
	for i := range 400 {
		for port := range uint16(12) {
			r.add(0, pt.TCP{Len: 100, Seq: seq, SrcPort: 1 + port*uint16(1+i%5)}.Frame(), false)
		}
		seq += 100
		if i%3 == 0 {
			before := len(r.out)
			open := r.tab.Open()
			r.add(0, pt.TCP{Len: 100, FragOffset: 9}.Frame(), false)
			if got := len(r.out) - before; got != open+1 || r.tab.Open() != 0 {
				t.Fatalf("round %d: %d frames left of %d flows and a fragment, %d slots are open", i, got, open, r.tab.Open())
			}
		}
	}
	r.close()
}

// Pairs that share a list are told apart.
func TestLaterFragmentLeavesOtherPairsOfItsListAlone(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := newRunner(t, flowtable.Config{Slots: 64}, negotiated(flowtable.GRO))
		from := func(i int) pt.TCP {
			return pt.TCP{V6: v6, Len: 100, Src4: [4]byte{192, 0, 2, byte(i)}, Src6: [16]byte{0x20, 1, 15: byte(i)}}
		}
		const pairs = 60
		for i := range pairs {
			r.add(0, from(1+i).Frame(), false)
		}
		for i := range pairs {
			p := from(1 + i)
			p.FragOffset = 3
			if v6 {
				p.FragOffset, p.Ext = 0, []pt.Ext{pt.FragmentHeader(3, true, 1)}
			}
			r.add(0, p.Frame(), false)
			if got, want := r.out[len(r.out)-2].Refs[0], uint64(i); len(r.out) != 2*(i+1) || got != want {
				t.Fatalf("IPv6 %v: a fragment of pair %d let flow %d go, %d frames have left", v6, i, got, len(r.out))
			}
		}
		r.close()
	}
}

// The newest flow of a list leaves first, then the one that had stood behind it.
func TestPairsForgetTheNewestFirst(t *testing.T) {
	r := newRunner(t, flowtable.Config{}, negotiated(flowtable.GRO))
	a, b, c := pt.TCP{Len: 100, SrcPort: 1}, pt.TCP{Len: 100, SrcPort: 2}, pt.TCP{Len: 100, SrcPort: 3}
	// From here on the lists are kept.
	r.add(0, c.Frame(), false)
	r.add(0, pt.TCP{Len: 100, FragOffset: 3}.Frame(), false)
	for _, p := range []pt.TCP{a, b} {
		r.add(0, p.Frame(), false)
	}
	for _, p := range []pt.TCP{b, a} {
		p = p.Next()
		p.Flags = pt.ACK | pt.PSH
		r.add(0, p.Frame(), false)
	}
	r.add(0, c.Frame(), false)
	r.add(0, pt.TCP{Len: 100, FragOffset: 3}.Frame(), false)
	r.close()
	if got := r.result(); got != "0 fragment, 1 fragment, 3+4 psh, 2+5 psh, 6 fragment, 7 fragment" {
		t.Error(got)
	}
}

// The lists are not kept for ever, and are right again when they are needed again.
func TestPairsAreMadeAnew(t *testing.T) {
	c := negotiated(flowtable.GRO)
	c.Hold = time.Second
	for _, pause := range []time.Duration{time.Microsecond, 9 * time.Millisecond, 10 * time.Millisecond, time.Minute} {
		r := newRunner(t, flowtable.Config{}, c, c)
		flow := func(port uint16) []byte { return pt.TCP{Len: 100, SrcPort: port}.Frame() }
		fragment := pt.TCP{Len: 100, FragOffset: 9}.Frame()
		r.add(1, flow(1), false)
		r.add(0, flow(1), false)
		r.add(0, fragment, false) // 1, 2 leave
		r.add(0, flow(2), false)
		r.now += int64(pause)
		r.add(0, flow(3), false)
		r.add(1, flow(3), false)
		r.add(0, fragment, false) // with hold not over, 3 and 4
		want := "1 fragment, 2 fragment, 3 fragment, 4 fragment, 6 fragment"
		if got := r.result(); got != want {
			t.Errorf("pause %v: %s, want %s", pause, got, want)
		}
		r.cfg[0].Hold, r.cfg[1].Hold = time.Hour, time.Hour // nobody called Expire
		r.close()
	}
}

// With hold 0 what is closed and waits for its turn is in no list.
func TestPairsHoldNothingThatWaits(t *testing.T) {
	c := negotiated(flowtable.GRO)
	c.Hold = 0
	r := newRunner(t, flowtable.Config{Slots: 8}, c)
	for i := range 20 {
		flow := pt.TCP{Len: 100}
		other := pt.TCP{Len: 100, Src4: [4]byte{198, 51, 100, 9}}
		end := flow.Next()
		end.Flags = pt.ACK | pt.PSH
		from := len(r.out)
		for _, p := range []pt.TCP{other, flow, end, {Len: 100, FragOffset: 3}, flow} {
			r.add(0, p.Frame(), false)
		}
		if len(r.out) != from {
			t.Fatalf("left before their turn: %s", r.result())
		}
		r.tab.EndBurst(r.now)
		n := uint64(len(r.in) - 5)
		want := fmt.Sprintf("%d burst_end, %d+%d psh, %d fragment, %d burst_end", n, n+1, n+2, n+3, n+4)
		if got := r.result(); !strings.HasSuffix(got, want) {
			t.Fatalf("%s, want %s", got, want)
		}
		if i%4 == 3 {
			r.now += int64(11 * time.Millisecond) // the lists are made anew
		}
	}
	r.close()
}
