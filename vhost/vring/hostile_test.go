package vring_test

import (
	"errors"
	"testing"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

const (
	next     = vring.DescNext
	write    = vring.DescWrite
	indirect = vring.DescIndirect
)

// Each row is one way to lie; the rows without an error are the legal neighbours of the lies beside them.
func TestDeviceNamesWhatTheDriverBroke(t *testing.T) {
	type guest = vringtest.Guest
	type desc = vringtest.Desc
	tests := []struct {
		name        string
		post        func(g *guest)
		want, class error
		pieces      int // of the chain when there is no error
	}{
		{"a plain chain", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 12, Flags: next, Next: 7})
			g.Set(7, desc{Addr: g.DataGPA + 64, Len: 100, Flags: write})
			g.Post(0)
		}, nil, nil, 2},
		{"avail.idx exactly the ring's size ahead", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 1})
			g.SetAvail(0, 16)
		}, nil, nil, 1},
		{"avail.idx one more than the ring's size ahead", func(g *guest) { g.SetAvail(0, 17) }, vring.ErrAvailJump, vring.ErrBadIndex, 0},
		{"avail.idx behind", func(g *guest) { g.SetAvail(0, 0xffff) }, vring.ErrAvailJump, vring.ErrBadIndex, 0},
		{"head is the last descriptor", func(g *guest) {
			g.Set(15, desc{Addr: g.DataGPA, Len: 1})
			g.Post(15)
		}, nil, nil, 1},
		{"head beyond the table", func(g *guest) { g.Post(16) }, vring.ErrHeadRange, vring.ErrBadIndex, 0},
		{"next beyond the table", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 16})
			g.Post(0)
		}, vring.ErrNextRange, vring.ErrBadIndex, 0},
		{"next beyond the indirect table, inside the ring", func(g *guest) {
			a, n := g.Indirect(desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 2}, desc{Addr: g.DataGPA, Len: 1})
			g.Set(0, desc{Addr: a, Len: n, Flags: indirect})
			g.Post(0)
		}, vring.ErrNextRange, vring.ErrBadIndex, 0},
		{"a chain as long as the ring", func(g *guest) {
			for i := range 16 {
				g.Set(i, desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: uint16(i + 1)})
			}
			g.Set(15, desc{Addr: g.DataGPA, Len: 1})
			g.Post(0)
		}, nil, nil, 16},
		{"a chain that points at itself", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 0})
			g.Post(0)
		}, vring.ErrLoop, vring.ErrBadChain, 0},
		{"a chain that returns to its middle", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 1})
			g.Set(1, desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 2})
			g.Set(2, desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 1})
			g.Post(0)
		}, vring.ErrLoop, vring.ErrBadChain, 0},
		{"a loop inside an indirect table", func(g *guest) {
			a, n := g.Indirect(desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 1}, desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 0})
			g.Set(0, desc{Addr: a, Len: n, Flags: indirect})
			g.Post(0)
		}, vring.ErrLoop, vring.ErrBadChain, 0},
		{"an indirect table that is longer than the ring", func(g *guest) {
			ds := make([]desc, 40)
			for i := range ds {
				ds[i] = desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: uint16(i + 1)}
			}
			ds[39].Flags = 0
			a, n := g.Indirect(ds...)
			g.Set(0, desc{Addr: a, Len: n, Flags: indirect})
			g.Post(0)
		}, nil, nil, 40},
		{"an indirect table behind plain descriptors", func(g *guest) {
			a, n := g.Indirect(desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 1}, desc{Addr: g.DataGPA, Len: 1, Flags: write})
			g.Set(0, desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 1})
			g.Set(1, desc{Addr: a, Len: n, Flags: indirect})
			g.Post(0)
		}, nil, nil, 3},
		{"WRITE on an indirect descriptor means nothing", func(g *guest) {
			a, n := g.Indirect(desc{Addr: g.DataGPA, Len: 1})
			g.Set(0, desc{Addr: a, Len: n, Flags: indirect | write})
			g.Post(0)
		}, nil, nil, 1},
		{"indirect length is not a multiple of 16", func(g *guest) {
			a, n := g.Indirect(desc{Addr: g.DataGPA, Len: 1})
			g.Set(0, desc{Addr: a, Len: n + 1, Flags: indirect})
			g.Post(0)
		}, vring.ErrIndirectLength, vring.ErrBadChain, 0},
		{"indirect length 0", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 0, Flags: indirect})
			g.Post(0)
		}, vring.ErrIndirectLength, vring.ErrBadChain, 0},
		{"indirect table of 1025 entries", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 1025 * 16, Flags: indirect})
			g.Post(0)
		}, vring.ErrIndirectTooLong, vring.ErrBadChain, 0},
		{"indirect table of 4 GiB", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 0xfffffff0, Flags: indirect})
			g.Post(0)
		}, vring.ErrIndirectTooLong, vring.ErrBadChain, 0},
		{"indirect in indirect", func(g *guest) {
			a, n := g.Indirect(desc{Addr: g.DataGPA, Len: 1})
			a, n = g.Indirect(desc{Addr: a, Len: n, Flags: indirect})
			g.Set(0, desc{Addr: a, Len: n, Flags: indirect})
			g.Post(0)
		}, vring.ErrIndirectNested, vring.ErrBadChain, 0},
		{"indirect table that contains itself", func(g *guest) {
			a, n := g.Indirect(desc{Addr: g.DataGPA, Len: 16, Flags: indirect})
			g.Set(0, desc{Addr: a, Len: n, Flags: indirect})
			g.Post(0)
		}, vring.ErrIndirectNested, vring.ErrBadChain, 0},
		{"indirect and NEXT", func(g *guest) {
			a, n := g.Indirect(desc{Addr: g.DataGPA, Len: 1})
			g.Set(0, desc{Addr: a, Len: n, Flags: indirect | next, Next: 1})
			g.Post(0)
		}, vring.ErrIndirectNext, vring.ErrBadChain, 0},
		{"indirect table outside of memory", func(g *guest) {
			g.Set(0, desc{Addr: g.DataEnd - 8, Len: 16, Flags: indirect})
			g.Post(0)
		}, vring.ErrOutOfRegion, vring.ErrOutOfRegion, 0},
		{"readable after writable", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 1, Flags: write | next, Next: 1})
			g.Set(1, desc{Addr: g.DataGPA, Len: 1})
			g.Post(0)
		}, vring.ErrOrder, vring.ErrBadChain, 0},
		{"lengths that sum up to more than 32 bits", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 100, Flags: next, Next: 1})
			g.Set(1, desc{Addr: g.DataGPA, Len: 0xffffffff})
			g.Post(0)
		}, vring.ErrChainTooLong, vring.ErrBadChain, 0},
		{"length 0", func(g *guest) {
			g.Set(0, desc{Addr: g.DataGPA, Len: 0})
			g.Post(0)
		}, vring.ErrZeroLength, vring.ErrBadChain, 0},
		{"length 0 in an indirect table", func(g *guest) {
			a, n := g.Indirect(desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: 1}, desc{Addr: g.DataGPA, Len: 0})
			g.Set(0, desc{Addr: a, Len: n, Flags: indirect})
			g.Post(0)
		}, vring.ErrZeroLength, vring.ErrBadChain, 0},
		{"buffer up to the end of memory", func(g *guest) {
			g.Set(0, desc{Addr: g.DataEnd - 8, Len: 8})
			g.Post(0)
		}, nil, nil, 1},
		{"buffer one byte beyond memory", func(g *guest) {
			g.Set(0, desc{Addr: g.DataEnd - 8, Len: 9})
			g.Post(0)
		}, vring.ErrOutOfRegion, vring.ErrOutOfRegion, 0},
		{"buffer before memory", func(g *guest) {
			g.Set(0, desc{Addr: vringtest.DefaultGPA - 1, Len: 2})
			g.Post(0)
		}, vring.ErrOutOfRegion, vring.ErrOutOfRegion, 0},
		{"buffer at an address of the front-end", func(g *guest) {
			g.Set(0, desc{Addr: vringtest.DefaultUVA, Len: 2})
			g.Post(0)
		}, vring.ErrOutOfRegion, vring.ErrOutOfRegion, 0},
		{"buffer that wraps around the address space", func(g *guest) {
			g.Set(0, desc{Addr: ^uint64(0) - 3, Len: 0x00200000})
			g.Post(0)
		}, vring.ErrOutOfRegion, vring.ErrOutOfRegion, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := vringtest.New(vringtest.Options{Num: 16, Features: virtio.Mask(virtio.FIndirectDesc), Data: 1 << 16})
			d, err := g.Device()
			if err != nil {
				t.Fatal(err)
			}
			tt.post(g)
			var c vring.Chain
			ok, err := d.Next(&c)
			if !errors.Is(err, tt.want) || !errors.Is(err, tt.class) || ok != (tt.want == nil) {
				t.Fatalf("got %v, %v; want %v", ok, err, tt.want)
			}
			if err == nil {
				if n := len(c.Readable) + len(c.Writable); n != tt.pieces {
					t.Errorf("%d pieces, want %d", n, tt.pieces)
				}
				return
			}
			if len(c.Readable)+len(c.Writable)+c.ReadLen+c.WriteLen != 0 {
				t.Error("the chain holds something in spite of the error")
			}
			// A broken ring stays broken, takes nothing and asks the caller not to sleep on it.
			g.SetAvail(0, 1)
			g.Set(0, vringtest.Desc{Addr: g.DataGPA, Len: 1})
			g.SetHead(0, 0)
			if ok, again := d.Next(&c); ok || again != err {
				t.Errorf("afterwards: %v, %v", ok, again)
			}
			if d.Base() != vringtest.At(0) || d.Err() != err || !d.Available(d.Base()) || !d.EnableNotify() {
				t.Error("the broken ring goes on")
			}
		})
	}
}

func TestIndirectNeedsItsFeature(t *testing.T) {
	g := vringtest.New(vringtest.Options{Num: 16})
	d, _ := g.Device()
	a, n := g.Indirect(vringtest.Desc{Addr: g.DataGPA, Len: 1})
	g.Set(0, vringtest.Desc{Addr: a, Len: n, Flags: indirect})
	g.Post(0)
	if _, err := d.Next(new(vring.Chain)); err != vring.ErrIndirectOff {
		t.Errorf("got %v", err)
	}
}

// The limit counts pieces, not descriptors: a buffer over many tiny regions is as much work as many buffers.
func TestAChainHasAtMost1024Pieces(t *testing.T) {
	post := func(num, count int) error {
		g := vringtest.New(vringtest.Options{Num: num})
		for i := range count {
			g.Set(i, vringtest.Desc{Addr: g.DataGPA, Len: 1, Flags: next, Next: uint16(i + 1)})
		}
		g.Set(count-1, vringtest.Desc{Addr: g.DataGPA, Len: 1})
		g.Post(0)
		d, _ := g.Device()
		_, err := d.Next(new(vring.Chain))
		return err
	}
	if err := post(2048, 1024); err != nil {
		t.Errorf("1024 descriptors: %v", err)
	}
	if err := post(2048, 1025); err != vring.ErrTooManySegments {
		t.Errorf("1025 descriptors: %v", err)
	}
	g := vringtest.New(vringtest.Options{Num: 4, Data: 400 * 64, Split: 64})
	d, _ := g.Device()
	for i := range 3 {
		g.Set(i, vringtest.Desc{Addr: g.DataGPA, Len: 400 * 64, Flags: next, Next: uint16(i + 1)})
	}
	g.Set(2, vringtest.Desc{Addr: g.DataGPA, Len: 400 * 64})
	g.Post(0)
	if _, err := d.Next(new(vring.Chain)); err != vring.ErrTooManySegments {
		t.Errorf("3 buffers over 400 regions each: %v", err)
	}
}

// A descriptor that changes between two reads would let a checked length differ from the used one.
func TestADescriptorThatChangesUnderneathStaysConsistent(t *testing.T) {
	g := vringtest.New(vringtest.Options{Num: 4, Features: virtio.Mask(virtio.FIndirectDesc)})
	d, _ := g.Device()
	good := vringtest.Desc{Addr: g.DataGPA, Len: 8, Flags: write}
	bad := vringtest.Desc{Addr: g.DataGPA + 64, Len: 0x40, Flags: 0}
	a, n := g.Indirect(good)
	g.Set(0, vringtest.Desc{Addr: a, Len: n, Flags: indirect})
	g.Set(1, good)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		vringtest.Flip(stop, g.Layout.Desc[16:32], good, bad)
	}()
	var c vring.Chain
	rounds := 20000
	if testing.Short() {
		rounds = 1000
	}
	for range rounds {
		m := d.Mark()
		g.SetHead(0, 1)
		g.SetAvail(0, 1)
		ok, err := d.Next(&c)
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		total := 0
		for _, p := range append(c.Readable, c.Writable...) {
			total += len(p)
		}
		if total != c.ReadLen+c.WriteLen || total != 8 && total != 0x40 {
			t.Fatalf("%d bytes in pieces, %d+%d counted", total, c.ReadLen, c.WriteLen)
		}
		d.Rewind(m)
	}
	close(stop)
	<-done
}

func TestFailBreaksTheRing(t *testing.T) {
	g := vringtest.New(vringtest.Options{Num: 4})
	d, _ := g.Device()
	g.Set(0, vringtest.Desc{Addr: g.DataGPA, Len: 8})
	g.Post(0)
	d.Fail(vring.ErrReadable)
	d.Fail(vring.ErrWritable)
	if ok, err := d.Next(new(vring.Chain)); ok || err != vring.ErrReadable || !errors.Is(err, vring.ErrBadChain) {
		t.Errorf("got %v, %v", ok, err)
	}
}
