package vhost_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// gso is a superframe of n bytes.
func gso(n int, seed byte) *virtio.Frame {
	b := makeFrame(n, seed)
	return &virtio.Frame{
		Hdr:   virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, HdrLen: 66, GSOSize: 1448, CsumStart: 34, CsumOffset: 16},
		Frags: cut(b, 1448), Len: n,
	}
}

// A frame of Linux has room for 17 page fragments; a superframe in more buffers becomes a list of frames.
func TestASuperframeTakesNoMoreBuffersThanTheGuestsBudget(t *testing.T) {
	for name, tt := range map[string]struct{ config, buffers, size int }{
		"Linux":        {vhost.LinuxBuffers, 17, 1536},
		"small":        {4, 4, 2048},
		"of large":     {vhost.LinuxBuffers, 17, 2176},
		"no bound":     {0, 43, 1536},
		"as the ring":  {64, 40, 1537},
		"single pages": {1, 1, 4096},
	} {
		t.Run(name, func(t *testing.T) {
			p, socket, _ := newPort(t, func(c *vhost.Config) { c.MaxBuffers = tt.config })
			g := newGuest(t, socket, func(c *user.FrontendConfig) { c.RingSize = 64 }).start()
			r, q := g.RX(0), p.RX(0)
			for range 64 {
				g.post(r, true, tt.size)
			}
			g.kick(r)
			want := gso(min(tt.buffers*tt.size-virtio.HdrSize, vhost.MaxFrame), 1)
			if tt.config > 0 && tt.config < 64 {
				err := put(t, q, gso(want.Len+1, 2))
				if c := q.Counters(); !errors.Is(err, vhost.ErrTooBig) || c.RxOverBudget != 1 || c.RxTooBig != 1 {
					t.Fatalf("one byte too many: %v, %+v", err, c)
				}
				if _, _, ok := g.recv(r); ok {
					t.Fatal("the guest sees something of a refused frame")
				}
				if n := q.MaxFrame(); n != want.Len {
					t.Errorf("MaxFrame %d, want %d", n, want.Len)
				}
			}
			if err := put(t, q, want); err != nil {
				t.Fatal(err)
			}
			h, got, ok := g.recv(r)
			if !ok || int(h.NumBuffers) != tt.buffers || !bytes.Equal(got, bytes.Join(want.Frags, nil)) {
				t.Fatalf("%d bytes in %d buffers", len(got), h.NumBuffers)
			}
		})
	}
}

// What cannot be cut is not bounded: a jumbo frame goes into as many buffers as it takes.
func TestTheBudgetIsForSuperframesOnly(t *testing.T) {
	p, socket, _ := newPort(t, func(c *vhost.Config) { c.MaxBuffers = vhost.LinuxBuffers })
	g := newGuest(t, socket, nil).start()
	for range 64 {
		g.post(g.RX(0), true, 256)
	}
	g.kick(g.RX(0))
	want := makeFrame(9014, 1)
	if err := put(t, p.RX(0), plain(want)); err != nil {
		t.Fatal(err)
	}
	if h, got, _ := g.recv(g.RX(0)); h.NumBuffers != 36 || !bytes.Equal(got, want) {
		t.Errorf("%d bytes in %d buffers", len(got), h.NumBuffers)
	}
}

func TestMaxFrameFollowsTheBuffers(t *testing.T) {
	for name, tt := range map[string]struct {
		features virtio.Features
		want     func(size int) int
	}{
		"mergeable":     {all, func(size int) int { return min(17*size-12, vhost.MaxFrame) }},
		"not mergeable": {without(all, virtio.FMrgRxbuf), func(size int) int { return min(size-12, vhost.MaxFrame) }},
		"legacy":        {without(all, virtio.FMrgRxbuf, virtio.FVersion1), func(size int) int { return min(size-10, vhost.MaxFrame) }},
	} {
		t.Run(name, func(t *testing.T) {
			p, socket, _ := newPort(t, func(c *vhost.Config) { c.MaxBuffers = vhost.LinuxBuffers })
			g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features = tt.features }).start()
			r, q := g.RX(0), p.RX(0)
			if n := q.MaxFrame(); n != 0 {
				t.Errorf("before any buffer: %d", n)
			}
			for _, size := range []int{1536, 4096, 3136, 100000, 100} {
				g.post(r, true, size)
				g.kick(r)
				if err := put(t, q, plain(makeFrame(60, 1))); err != nil {
					t.Fatal(err)
				}
				if _, _, ok := g.recv(r); !ok {
					t.Fatal("no frame")
				}
				if n := q.MaxFrame(); n != tt.want(size) {
					t.Errorf("after a buffer of %d: %d, want %d", size, n, tt.want(size))
				}
			}
			// The smallest of a frame's buffers counts.
			if tt.features.Has(virtio.FMrgRxbuf) {
				g.post(r, true, 4000)
				g.post(r, true, 2000)
				g.post(r, true, 3000)
				g.kick(r)
				if err := put(t, q, plain(makeFrame(7000, 1))); err != nil || q.MaxFrame() != 17*2000-12 {
					t.Errorf("%v, %d", err, q.MaxFrame())
				}
			}
			if _, err := g.Stop(); err != nil {
				t.Fatal(err)
			}
			g.start()
			if n := q.MaxFrame(); n != 0 {
				t.Errorf("after a new start: %d", n)
			}
		})
	}
}
