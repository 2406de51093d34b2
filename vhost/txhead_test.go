package vhost_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

const testHead = 100

func withHead(c *vhost.Config) { c.TxHead = testHead }

// The first bytes are private, the others lie where the guest has them; together they are the frame, however it was cut.
func TestAFrameComesAsItsHeadAndTheRest(t *testing.T) {
	p, socket, _ := newPort(t, withHead)
	g := newGuest(t, socket, nil).start()
	for _, n := range []int{60, testHead - 1, testHead, testHead + 1, 5000} {
		for _, sizes := range [][]int{nil, {12}, {40, 1}, {12 + testHead}, {12 + testHead - 1, 2}} {
			want := makeFrame(n, byte(n))
			if sum(sizes) > n {
				continue
			}
			g.send(g.TX(0), virtio.NetHdr{}, want, sizes...)
			g.kick(g.TX(0))
			got, _, err := p.TX(0).Poll(1, func(f *vhost.TxFrame) vhost.Next {
				if len(f.Data) != min(n, testHead) || f.Len() != n {
					t.Errorf("%d bytes cut at %v: %d private, %d in all", n, sizes, len(f.Data), f.Len())
				}
				if b := append(slices.Clone(f.Data), bytes.Join(f.Rest, nil)...); !bytes.Equal(b, want) {
					t.Errorf("%d bytes cut at %v: not the frame", n, sizes)
				}
				if !f.Whole() || len(f.Rest) != 0 || !bytes.Equal(f.Data, want) {
					t.Errorf("%d bytes cut at %v: whole it is not the frame", n, sizes)
				}
				return vhost.TakeOn
			}, nil)
			if got != 1 || err != nil {
				t.Fatal(got, err)
			}
		}
	}
}

func sum(n []int) (s int) {
	for _, v := range n {
		s += v
	}
	return s
}

// A guest that writes to its frame once it was looked at changes what lies behind the head, and nothing of the head.
func TestAGuestCannotChangeTheHead(t *testing.T) {
	p, socket, _ := newPort(t, withHead)
	g := newGuest(t, socket, nil).start()
	want := makeFrame(1000, 3)
	b := append(make([]byte, virtio.HdrSize), want...)
	pieces := g.post(g.TX(0), false, len(b))
	copy(pieces[0].mem, b)
	g.kick(g.TX(0))
	_, _, err := p.TX(0).Poll(1, func(f *vhost.TxFrame) vhost.Next {
		for i := range pieces[0].mem {
			pieces[0].mem[i] ^= 0xff
		}
		if f.Whole(); !bytes.Equal(f.Data[:testHead], want[:testHead]) || f.Data[testHead] != want[testHead]^0xff {
			t.Error("the head is not what was looked at, or the rest was copied before")
		}
		return vhost.TakeOn
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// Frames that could not leave after all come again, in their order, and count once.
func TestFramesGivenBackComeAgain(t *testing.T) {
	p, socket, _ := newPort(t, withHead)
	g := newGuest(t, socket, nil).start()
	for i := range 6 {
		if i == 4 {
			g.send(g.TX(0), virtio.NetHdr{}, makeFrame(5, 1)) // no frame at all
			continue
		}
		g.send(g.TX(0), virtio.NetHdr{}, makeFrame(60+i, byte(i)))
	}
	g.kick(g.TX(0))
	var seen []int
	take := func(f *vhost.TxFrame) vhost.Next { seen = append(seen, f.Len()); return vhost.TakeOn }
	for _, c := range []struct{ back, n int }{{5, 0}, {4, 1}, {2, 2}, {1, 2}, {0, 1}, {0, 0}} {
		n, _, err := p.TX(0).Poll(64, take, func() int { return c.back })
		if n != c.n || err != nil {
			t.Fatalf("%d back: %d taken, %v; want %d; seen %v", c.back, n, err, c.n, seen)
		}
		if tokens := reap(t, g.TX(0)); len(tokens) != c.n {
			t.Errorf("%d back: %d completed", c.back, len(tokens))
		}
	}
	if want := []int{60, 61, 62, 63, 65, 60, 61, 62, 63, 65, 61, 62, 63, 65, 63, 65, 65}; !slices.Equal(seen, want) {
		t.Errorf("seen %v, want %v", seen, want)
	}
	if c := p.TX(0).Counters(); c.TxFrames != 5 || c.TxBytes != 60+61+62+63+65 || c.TxDropped["too_short"] != 1 {
		t.Errorf("counters %+v", c)
	}
}
