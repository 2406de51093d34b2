package vring_test

import (
	"encoding/binary"
	"testing"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

func newDriver(t *testing.T, o vringtest.Options) (*vringtest.Guest, *vring.Driver) {
	t.Helper()
	g := vringtest.New(o)
	d, err := g.Driver()
	if err != nil {
		t.Fatal(err)
	}
	return g, d
}

func TestDriverRefusesWhatItCannotPost(t *testing.T) {
	one := vring.Buffer{Addr: 1, Len: 1}
	wr := vring.Buffer{Addr: 1, Len: 1, Writable: true}
	_, d := newDriver(t, vringtest.Options{Num: 4})
	for _, tt := range []struct {
		name string
		bufs []vring.Buffer
		want error
	}{
		{"no buffers", nil, vring.ErrBadBuffers},
		{"empty buffer", []vring.Buffer{{Addr: 1}}, vring.ErrBadBuffers},
		{"readable after writable", []vring.Buffer{wr, one}, vring.ErrBadBuffers},
		{"longer than the ring", []vring.Buffer{one, one, one, one, one}, vring.ErrBadBuffers},
		{"as long as the ring", []vring.Buffer{one, one, one, one}, nil},
		{"ring full", []vring.Buffer{one}, vring.ErrRingFull},
	} {
		if err := d.Add(tt.bufs, 0); err != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	g := vringtest.New(vringtest.Options{Num: 4})
	if _, err := vring.NewDriver(g.Layout, virtio.Mask(virtio.FIndirectDesc), vring.IndirectArea{Mem: make([]byte, 64), Entries: 2}); err != vring.ErrNoArea {
		t.Errorf("area too small: %v", err)
	}
}

func TestIndirectChainsTakeOneDescriptor(t *testing.T) {
	_, d := newDriver(t, vringtest.Options{Num: 4, Indirect: 3, Features: virtio.Mask(virtio.FIndirectDesc)})
	three := []vring.Buffer{{Addr: 1, Len: 1}, {Addr: 1, Len: 1}, {Addr: 1, Len: 1, Writable: true}}
	for i := range 4 {
		if err := d.Add(three, uint64(i)); err != nil || d.Free() != 3-i {
			t.Errorf("chain %d: %v, %d free", i, err, d.Free())
		}
	}
	if err := d.Add(append(three, three[2]), 9); err != vring.ErrBadBuffers {
		t.Errorf("chain longer than a table: %v", err)
	}
}

// A device that lies ends the ring with an error of its own.
func TestDriverNamesWhatTheDeviceBroke(t *testing.T) {
	tests := []struct {
		name  string
		idx   uint16
		id, n uint32
		want  error
	}{
		{"guard", 1, 0, 8, nil},
		{"used.idx beyond what is out", 3, 0, 8, vring.ErrUsedJump},
		{"used.idx behind", 0xffff, 0, 8, vring.ErrUsedJump},
		{"id beyond the ring", 1, 4, 8, vring.ErrUsedID},
		{"id of 32 bits", 1, 0xffffffff, 8, vring.ErrUsedID},
		{"id that is not out", 1, 3, 8, vring.ErrUsedID},
		{"more written than there is", 1, 0, 9, vring.ErrUsedLen},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g, d := newDriver(t, vringtest.Options{Num: 4})
			for i := range 2 {
				if err := d.Add([]vring.Buffer{{Addr: g.DataGPA, Len: 8, Writable: true}}, uint64(i)); err != nil {
					t.Fatal(err)
				}
			}
			d.Publish()
			binary.LittleEndian.PutUint32(g.Layout.Used[4:], tt.id)
			binary.LittleEndian.PutUint32(g.Layout.Used[8:], tt.n)
			binary.LittleEndian.PutUint16(g.Layout.Used[2:], tt.idx)
			_, n, ok := d.Used()
			if ok != (tt.want == nil) || d.Err() != tt.want {
				t.Fatalf("got %v, %v; want %v", ok, d.Err(), tt.want)
			}
			if ok {
				if n != 8 || d.Outstanding() != 1 {
					t.Errorf("%d bytes, %d out", n, d.Outstanding())
				}
				return
			}
			if _, _, again := d.Used(); again || d.Add([]vring.Buffer{{Addr: 1, Len: 1}}, 0) != tt.want {
				t.Error("the broken ring goes on")
			}
			if !d.EnableCalls() {
				t.Error("the caller is told to sleep on a broken ring")
			}
		})
	}
}

func TestAChainReturnedTwiceIsRefused(t *testing.T) {
	g, d := newDriver(t, vringtest.Options{Num: 4})
	for i := range 2 {
		if err := d.Add([]vring.Buffer{{Addr: g.DataGPA, Len: 8}}, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	d.Publish()
	binary.LittleEndian.PutUint16(g.Layout.Used[2:], 2) // both elements name descriptor 0
	if _, _, ok := d.Used(); !ok {
		t.Fatal(d.Err())
	}
	if _, _, ok := d.Used(); ok || d.Err() != vring.ErrUsedID {
		t.Errorf("got %v, %v", ok, d.Err())
	}
}

// A device that polls gets no kick, with EVENT_IDX neither: not for the first chain behind the wish for one.
func TestNoKickForADeviceThatPolls(t *testing.T) {
	for _, f := range []virtio.Features{0, virtio.Mask(virtio.FEventIdx)} {
		g, drv := newDriver(t, vringtest.Options{Num: 8, Features: f})
		one := []vring.Buffer{{Addr: g.DataGPA, Len: 1}}
		dev, err := vring.NewDevice(g.Table, g.Layout, f, vringtest.At(0))
		if err != nil {
			t.Fatal(err)
		}
		round := func(want bool) {
			t.Helper()
			if err := drv.Add(one, 0); err != nil {
				t.Fatal(err)
			}
			if kick := drv.Publish(); kick != want {
				t.Fatalf("features %x: kick %t, want %t", uint64(f), kick, want)
			}
			dev.Push([]vring.Used{{Head: take(t, dev, 1)[0]}})
			dev.Publish()
			for _, _, ok := drv.Used(); ok; _, _, ok = drv.Used() {
			}
		}
		for range 300 { // it sleeps, is woken, and polls
			if dev.EnableNotify() {
				t.Fatal("something is there")
			}
			dev.DisableNotify()
			round(false)
			if dev.EnableNotify() {
				t.Fatal("something is there")
			}
			round(true)
		}
	}
}

func TestKickFollowsTheDevicesWish(t *testing.T) {
	one := []vring.Buffer{{Addr: 1, Len: 1}}
	g, d := newDriver(t, vringtest.Options{Num: 8})
	_ = d.Add(one, 0)
	if !d.Publish() {
		t.Error("no kick although the flag is clear")
	}
	binary.LittleEndian.PutUint16(g.Layout.Used[0:], 1)
	_ = d.Add(one, 0)
	if d.Publish() {
		t.Error("a kick although the device asked for none")
	}
	binary.LittleEndian.PutUint16(g.Layout.Used[0:], 0)
	if d.Publish() {
		t.Error("a kick for nothing")
	}
	g, d = newDriver(t, vringtest.Options{Num: 8, Features: virtio.Mask(virtio.FEventIdx)})
	for i, tt := range []struct {
		event uint16
		want  bool
	}{{0, true}, {5, false}, {2, true}} {
		binary.LittleEndian.PutUint16(g.Layout.Used[4+8*8:], tt.event)
		_ = d.Add(one, 0)
		if got := d.Publish(); got != tt.want {
			t.Errorf("step %d: kick %v", i, got)
		}
	}
}
