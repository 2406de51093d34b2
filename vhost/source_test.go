package vhost_test

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// A frame may lie in another guest's memory, and that may vanish while it is copied. Then this guest loses nothing: it sees none of the
// frame, its buffers are used for the next one, and its port runs on.
func TestAFramesOwnMemoryThatVanishesIsNotTheReceiversFault(t *testing.T) {
	for _, keep := range []int{0, 1, 3} { // pages of the frame that stay
		fd, err := unix.MemfdCreate("rscctl-source", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, 64<<10); err != nil {
			t.Fatal(err)
		}
		mem, err := unix.Mmap(fd, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		copy(mem, makeFrame(60000, 9))
		p, socket, log := newPort(t, nil)
		g := newGuest(t, socket, nil).start()
		for range 20 {
			g.post(g.RX(0), true, 4096)
		}
		g.kick(g.RX(0))
		first, last := makeFrame(3000, 1), makeFrame(60000, 2)
		if err := unix.Ftruncate(fd, int64(keep)*4096); err != nil {
			t.Fatal(err)
		}
		q := p.RX(0)
		if !q.Begin() {
			t.Fatal("not running")
		}
		if err := q.Put(plain(first)); err != nil {
			t.Fatal(err)
		}
		gone := &virtio.Frame{Frags: [][]byte{makeFrame(100, 3), mem[:30000], mem[30000:59900]}, Len: 60000}
		if err := q.Put(gone); !errors.Is(err, vhost.ErrSource) {
			t.Fatalf("%d pages stay: %v", keep, err)
		}
		if err := q.Put(plain(last)); err != nil {
			t.Fatal(err)
		}
		if err := q.Commit(); err != nil {
			t.Fatal(err)
		}
		for _, want := range [][]byte{first, last} {
			if _, got, ok := g.recv(g.RX(0)); !ok || !bytes.Equal(got, want) {
				t.Fatalf("a frame of %d bytes, not of %d", len(got), len(want))
			}
		}
		if _, _, ok := g.recv(g.RX(0)); ok {
			t.Error("some of the frame without memory arrived")
		}
		if s := p.State(); s.Name != vhost.StateRunning {
			t.Errorf("state %s: %s", s.Name, s.Reason)
		}
		if c := p.Counters(); c.RxFrames != 2 || c.RxBytes != 63000 {
			t.Errorf("counters %+v", c)
		}
		checkAlternating(t, log.all())
		_, _ = unix.Munmap(mem), unix.Close(fd)
	}
}
