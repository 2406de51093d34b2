package datapath

import (
	"bytes"
	"testing"

	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// wireFrame is a frame as the kernel got it.
type wireFrame struct {
	hdr  virtio.NetHdr
	data []byte
}

// fakeWire is a Wire over plain memory, which copies at Send, as the kernel does.
type fakeWire struct {
	tb     testing.TB
	room   int   // frames until full; negative: no end
	full   error // what Send says then
	busy   bool  // something is on its way
	direct bool
	refuse func(virtio.NetHdr, int) bool // what this kernel does not take: header, bytes of the frame
	pieces [][][]byte
	hdrs   []virtio.NetHdr
	got    []wireFrame
	sends  int
	asked  int
}

func (f *fakeWire) Add(v *virtio.Frame) bool {
	if len(f.pieces) == maxWireBatch {
		return false
	}
	f.pieces = append(f.pieces, append([][]byte(nil), v.Frags...))
	f.hdrs = append(f.hdrs, v.Hdr)
	return true
}

func (f *fakeWire) Send() (n int, err error) {
	f.sends++
	for i, p := range f.pieces {
		if f.room == 0 {
			err = f.full
			break
		}
		if f.refuse != nil && f.refuse(f.hdrs[i], len(bytes.Join(p, nil))) {
			err = tap.ErrKernelRefused
			break
		}
		f.room--
		f.got = append(f.got, wireFrame{f.hdrs[i], bytes.Join(p, nil)})
		n++
	}
	f.pieces, f.hdrs = nil, nil
	return n, err
}

func (f *fakeWire) Empty() bool             { f.asked++; return !f.busy }
func (f *fakeWire) Direct() bool            { return f.direct }
func (f *fakeWire) SetDirect(on bool) error { f.direct = on; return nil }
func (f *fakeWire) SetDatagrams(bool)       {}

// packets are those that the kernel makes of what it got.
func (f *fakeWire) packets() (all [][]byte) {
	f.tb.Helper()
	for _, w := range f.got {
		all = append(all, kernelOf(f.tb, w.data, w.hdr)...)
	}
	f.got = nil
	return all
}

// newWireRig is a rig whose worker has a way by the kernel.
func newWireRig(tb testing.TB, edits ...func(*Config)) (*rig, *fakeWire) {
	tb.Helper()
	f := &fakeWire{tb: tb, room: -1, full: tap.ErrFull}
	return newRig(tb, append([]func(*Config){func(c *Config) { c.Wire = f }}, edits...)...), f
}

// kernelCuts is the header of a guest that does not know how long its headers are.
func kernelCuts(kind uint8, size uint16) virtio.NetHdr {
	return virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: kind, GSOSize: size, CsumStart: 34, CsumOffset: 16}
}

func same(tb testing.TB, what string, got, want [][]byte) {
	tb.Helper()
	if len(got) != len(want) {
		tb.Fatalf("%s: %d frames, want %d", what, len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			tb.Fatalf("%s: frame %d:\n got %x\nwant %x", what, i, head(got[i]), head(want[i]))
		}
	}
}
