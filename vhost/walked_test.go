package vhost_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

func pieces(n, size int) (sizes []int) {
	for range n {
		sizes = append(sizes, size)
	}
	return sizes
}

// Whatever a guest sends, what it costs to take is reported: the worker charges by it.
func TestWhatAPollCostsIsReported(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.RingSize, c.Indirect = 64, 64 }).start()
	r := g.TX(0)
	poll := func() (n, walked int) {
		t.Helper()
		g.kick(r)
		n, walked, err := p.TX(0).Poll(64, func(*vhost.TxFrame) vhost.Next { return vhost.TakeOn }, nil)
		if err != nil {
			t.Fatal(err)
		}
		reap(t, r)
		return n, walked
	}
	g.send(r, virtio.NetHdr{}, makeFrame(1000, 1), pieces(39, 20)...)
	if n, walked := poll(); n != 1 || walked != 40+40/8 {
		t.Errorf("%d frames for %d", n, walked)
	}
	// A chain behind one with a table has none.
	g.send(r, virtio.NetHdr{}, makeFrame(1000, 1), pieces(39, 20)...)
	g.send(r, virtio.NetHdr{}, makeFrame(1000, 1))
	if n, walked := poll(); n != 2 || walked != 40+40/8+1 {
		t.Errorf("%d frames for %d", n, walked)
	}
	// A frame that is dropped before anybody sees it: its copy of 60,000 bytes takes as long as 900 descriptors.
	noSize := tso
	noSize.GSOSize = 0
	for range 64 {
		g.send(r, noSize, makeFrame(60000, 5))
	}
	total := 0
	for {
		n, walked := poll()
		if n == 0 {
			break
		}
		if n > 3 {
			t.Errorf("%d of them in one poll, for %d", n, walked)
		}
		total += n
	}
	if total != 64 {
		t.Errorf("%d frames", total)
	}
}

// A superframe that would be in pieces without number is given up early; its packets, each by itself, are delivered.
func TestASuperframeIsNotSpreadOverPiecesWithoutNumber(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.RingSize, c.Indirect, c.Memory = 32, vring.MaxSegments, 64<<20 }).start()
	r, q := g.RX(0), p.RX(0)
	for range 32 {
		g.post(r, true, pieces(vring.MaxSegments, 3)...)
	}
	g.kick(r)
	if !q.Begin() {
		t.Fatal("not running")
	}
	err := q.Put(gso(40_000, 1))
	walked := q.Walked()
	one := plain(makeFrame(1514, 2))
	again := q.Put(one)
	least := q.Walked()
	q.Commit()
	if !errors.Is(err, vhost.ErrTooBig) || walked > vring.MaxSegments*9/8 {
		t.Errorf("%v after %d descriptors", err, walked)
	}
	if again != nil || least != vring.MaxSegments*9/8 {
		t.Errorf("a packet: %v after %d descriptors", again, least)
	}
	if _, got, ok := g.recv(r); !ok || !bytes.Equal(got, one.Frags[0]) {
		t.Errorf("%d bytes", len(got))
	}
}
