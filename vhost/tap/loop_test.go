package tap

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// newLoop is a Net whose device is ours instead of the kernel's, so that what the ring holds can be read everywhere.
func newLoop(t testing.TB, c NetConfig) (*Net, vring.Device) {
	t.Helper()
	c.Backend = &Packet{fd: 0, mtu: 1500}
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	n := &Net{cfg: c, dev: &device{fd: -1}}
	l, err := n.lay()
	if err != nil {
		t.Fatal(err)
	}
	events := [3]int{}
	for i := range events {
		if events[i], err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			t.Fatal(err)
		}
	}
	n.ring = &ring{dev: n.dev, index: txQueue, kick: events[0], call: events[1], err: events[2]}
	parts := []guestmem.Part{{GPA: address(n.mem.mem), UVA: address(n.mem.mem), Mem: n.mem.mem}}
	if len(c.Umem) > 0 {
		parts = append(parts, guestmem.Part{GPA: address(c.Umem), UVA: address(c.Umem), Mem: c.Umem})
	}
	table, err := guestmem.FromParts(parts...)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := vring.NewDevice(table, l, features, vring.Position{})
	if err != nil {
		t.Fatal(err)
	}
	return n, dev
}

// pages is memory outside of the Go heap, as a UMEM is.
func pages(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	return b
}

// Whatever a frame's pieces and wherever they lie, the chain is the 10-byte header and the frame; each ref comes back once, when
// its chain was used and not before, also when the device uses chains in another order than they came, over more frames than the
// ring's index counts.
func TestAChainIsTheHeaderAndTheFrame(t *testing.T) {
	umem := pages(t, 1<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range umem {
		umem[i] = byte(rnd.Uint32())
	}
	heap := bytes.Clone(umem)
	n, dev := newLoop(t, NetConfig{Umem: umem, RingSize: 8, MaxFrags: 6, MaxCopy: 600})
	want := map[uint64][]byte{} // by ref: what its chain must hold
	var inDevice []vring.Head
	var out, next uint64
	refOf := map[vring.Head]uint64{}
	free := func(ref uint64) {
		if _, ok := want[ref]; !ok {
			t.Fatalf("ref %d comes back twice, or was never out", ref)
		}
		delete(want, ref)
		out++
	}
	var c vring.Chain
	const frames = 70000
	for next < frames || len(want) > 0 {
		for next < frames && n.Room() > 0 && rnd.IntN(4) > 0 {
			f := randomFrame(rnd, umem, heap)
			copied := 0
			for _, b := range f.Frags {
				if !inside(b, umem) {
					copied += len(b)
				}
			}
			err := n.Post(f, []uint64{next})
			if copied > 600 {
				if !errors.Is(err, ErrCopy) {
					t.Fatalf("%d bytes to copy: %v", copied, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			var hdr [virtio.HdrSize]byte
			f.Hdr.Encode(hdr[:])
			want[next] = append(hdr[:virtio.HdrSizeLegacy:virtio.HdrSizeLegacy], bytes.Join(f.Frags, nil)...)
			next++
		}
		if n.Pending() != len(want) || n.Chunks() != len(want) {
			t.Fatalf("pending %d, chunks %d, want %d", n.Pending(), n.Chunks(), len(want))
		}
		if err := n.Kick(); err != nil {
			t.Fatal(err)
		}
		for ok, err := dev.Next(&c); ok || err != nil; ok, err = dev.Next(&c) {
			if err != nil {
				t.Fatal(err)
			}
			ref := uint64(0)
			got := bytes.Join(c.Readable, nil)
			found := false
			for r, w := range want {
				if bytes.Equal(w, got) {
					ref, found = r, true
				}
			}
			if !found || len(c.Writable) > 0 {
				t.Fatalf("chain of %d bytes is no frame", len(got))
			}
			refOf[c.Head] = ref
			inDevice = append(inDevice, c.Head)
		}
		for len(inDevice) > 0 && (next == frames || rnd.IntN(3) > 0) {
			i := rnd.IntN(len(inDevice))
			dev.Push([]vring.Used{{Head: inDevice[i]}})
			inDevice = append(inDevice[:i], inDevice[i+1:]...)
			dev.Publish()
			before := out
			if got := n.Reap(free); got != 1 || out != before+1 {
				t.Fatalf("reaped %d frames and %d refs, want 1 and 1", got, out-before)
			}
		}
	}
	if out != frames {
		t.Errorf("%d refs of %d came back", out, frames)
	}
	_ = n.Close(free) // there is no device to stop
}

// randomFrame is a frame of 14 to some hundred bytes in up to 6 pieces, some of the UMEM and some of elsewhere. Its header is
// unlike any other's.
func randomFrame(rnd *rand.Rand, umem, heap []byte) *virtio.Frame {
	f := &virtio.Frame{}
	for i := range 1 + rnd.IntN(6) {
		n := rnd.IntN(200)
		if i == 0 {
			n += ethLen
		}
		from := umem
		if rnd.IntN(2) == 0 {
			from = heap
		}
		at := rnd.IntN(len(from) - n)
		f.Frags = append(f.Frags, from[at:at+n])
		f.Len += n
	}
	f.Hdr = virtio.NetHdr{Flags: virtio.HdrDataValid, GSOSize: uint16(rnd.Uint32()), CsumStart: uint16(rnd.Uint32()), CsumOffset: uint16(rnd.Uint32())}
	return f
}

// A fragment that begins or ends outside of the UMEM is not inside.
func TestInsideIsWholly(t *testing.T) {
	b := make([]byte, 100)
	mem := b[10:90]
	for _, tt := range []struct {
		from, to int
		want     bool
	}{{10, 90, true}, {10, 11, true}, {89, 90, true}, {9, 20, false}, {80, 91, false}, {0, 10, false}, {90, 100, false}, {0, 100, false}} {
		if got := inside(b[tt.from:tt.to], mem); got != tt.want {
			t.Errorf("%d to %d: %v", tt.from, tt.to, got)
		}
	}
	if inside(b[:1], nil) {
		t.Error("inside nothing")
	}
}

// Even a device that cannot be stopped keeps no chunk, and one that lies about what it used breaks the ring instead of us.
func TestCloseGivesBackWhateverTheDeviceDoes(t *testing.T) {
	n, dev := newLoop(t, NetConfig{RingSize: 4})
	f := &virtio.Frame{Frags: [][]byte{make([]byte, 60)}, Len: 60}
	for ref := range uint64(3) {
		if err := n.Post(f, []uint64{ref, 10 + ref}); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Kick(); err != nil {
		t.Fatal(err)
	}
	dev.Push([]vring.Used{{Head: 3}}) // a chain that it was never given
	dev.Publish()
	back := map[uint64]int{}
	free := func(ref uint64) { back[ref]++ }
	if got := n.Reap(free); got != 0 || !errors.Is(n.Err(), ErrRing) || !errors.Is(n.Kick(), ErrRing) || !errors.Is(n.Post(f, nil), ErrRing) {
		t.Errorf("reaped %d; ring: %v", got, n.Err())
	}
	if err := n.Close(free); !errors.Is(err, unix.EBADF) {
		t.Errorf("close: %v", err)
	}
	if len(back) != 6 {
		t.Errorf("%d refs of 6 came back", len(back))
	}
	for ref, times := range back {
		if times != 1 {
			t.Errorf("ref %d came back %d times", ref, times)
		}
	}
}

// Posting a superframe of 45 segments and taking its chunks back, without the kernel.
func BenchmarkPost(b *testing.B) {
	const segments = 45
	umem := pages(b, (segments+1)*2048)
	n, dev := newLoop(b, NetConfig{Umem: umem})
	f := &virtio.Frame{Hdr: virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, HdrLen: 66, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}}
	var refs []uint64
	for i := range segments + 1 {
		size := 1448
		if i == 0 {
			size = 66
		}
		f.Frags = append(f.Frags, umem[i*2048:][:size])
		f.Len += size
		refs = append(refs, uint64(i))
	}
	back := 0
	free := func(uint64) { back++ }
	dev.DisableNotify()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var start, end unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &start)
	b.ReportAllocs()
	for b.Loop() {
		for range 16 {
			if err := n.Post(f, refs); err != nil {
				b.Fatal(err)
			}
		}
		if err := n.Kick(); err != nil {
			b.Fatal(err)
		}
		for head := range vring.Head(16) { // the free list gives the last used first
			dev.Push([]vring.Used{{Head: head}})
		}
		dev.Publish()
		if n.Reap(free) != 16 {
			b.Fatal(n.Err())
		}
	}
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &end)
	b.ReportMetric(float64(end.Nano()-start.Nano())/float64(b.N)/16, "cpu-ns/frame")
	_ = n.Close(free)
}
