package tap_test

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

const chunkSize = 2048

// netRig is a Net on a rig's tap, with a UMEM that counts its chunks.
type netRig struct {
	*rig
	net   *tap.Net
	umem  []byte
	held  map[uint64]bool // chunks that a frame refers to
	spare []uint64
}

func newNetRig(t testing.TB, o tapvm.Offload, chunks int, c tap.NetConfig) *netRig {
	t.Helper()
	netnstest.Need(t, netnstest.Vhost)
	n := &netRig{rig: newRig(t, o), held: map[uint64]bool{}}
	var err error
	if n.umem, err = unix.Mmap(-1, 0, chunks*chunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE); err != nil {
		t.Fatal(err)
	}
	for i := range chunks {
		n.spare = append(n.spare, uint64(i))
	}
	c.Umem, c.Backend = n.umem, n.feed
	if n.net, err = tap.OpenNet(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.net.Close(n.free); err != nil && !errors.Is(err, tap.ErrClosed) {
			t.Errorf("close: %v", err)
		}
		if len(n.held) != 0 || len(n.spare) != chunks {
			t.Errorf("%d chunks never came back", len(n.held))
		}
		if err := unix.Munmap(n.umem); err != nil {
			t.Error(err)
		}
	})
	return n
}

// free takes a chunk back, and spoils it: whoever still reads it gets the wrong bytes.
func (n *netRig) free(ref uint64) {
	n.t.Helper()
	if !n.held[ref] {
		n.t.Errorf("chunk %d comes back and was not out", ref)
	}
	delete(n.held, ref)
	clear(n.umem[ref*chunkSize:][:chunkSize])
	n.spare = append(n.spare, ref)
}

// build makes a superframe in chunks of the UMEM, one for the headers and one for each segment. ok is false if too few are left.
func (n *netRig) build(s stream) (f *virtio.Frame, refs []uint64, ok bool) {
	if len(n.spare) < s.segments+1 {
		return nil, nil, false
	}
	f = s.frame(nil)
	for i, b := range f.Frags {
		ref := n.spare[len(n.spare)-1]
		n.spare = n.spare[:len(n.spare)-1]
		at := n.umem[ref*chunkSize:][256 : 256+len(b)] // as AF_XDP has it: behind headroom
		copy(at, b)
		f.Frags[i] = at
		refs = append(refs, ref)
	}
	return f, refs, true
}

// post posts a frame, whose chunks are then the ring's.
func (n *netRig) post(f *virtio.Frame, refs []uint64) {
	n.t.Helper()
	for _, r := range refs {
		n.held[r] = true
	}
	if err := n.net.Post(f, refs); err != nil {
		n.t.Fatal(err)
	}
}

func (n *netRig) kick() {
	n.t.Helper()
	if err := n.net.Kick(); err != nil {
		n.t.Fatal(err)
	}
}

// drain waits until everything is used.
func (n *netRig) drain() {
	n.t.Helper()
	for start := time.Now(); n.net.Pending() > 0; {
		if n.net.Reap(n.free) == 0 {
			time.Sleep(time.Millisecond)
		}
		if time.Since(start) > 20*time.Second {
			n.t.Fatalf("%d frames are not used; ring: %v", n.net.Pending(), n.net.Err())
		}
	}
	if n.net.Chunks() != 0 {
		n.t.Errorf("%d chunks held without a frame", n.net.Chunks())
	}
}

// wantFrame wants the superframe s, in one piece.
func (n *netRig) wantFrame(s stream, h virtio.NetHdr, b []byte) {
	n.t.Helper()
	want := s.frame(nil)
	if h != want.Hdr {
		n.t.Fatalf("header %+v, want %+v", h, want.Hdr)
	}
	at := 0
	for i, frag := range want.Frags {
		if len(b) < at+len(frag) || string(b[at:at+len(frag)]) != string(frag) {
			n.t.Fatalf("frame at sequence number %d: fragment %d differs", s.seq, i)
		}
		at += len(frag)
	}
	if len(b) != at {
		n.t.Fatalf("%d bytes, want %d", len(b), at)
	}
}
