package tap_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// uplink is a socket of that kind on the rig's tap, which may be an uplink's device as well as any.
func (r *rig) uplink() *tap.Uplink {
	r.t.Helper()
	var u *tap.Uplink
	r.do(func() (err error) {
		u, err = tap.OpenUplink(r.link.Attrs().Index)
		return err
	})
	r.t.Cleanup(func() { _ = u.Close() })
	return u
}

// all wants all frames to be sent with one call.
func (r *rig) all(u *tap.Uplink, frames ...*virtio.Frame) {
	r.t.Helper()
	for _, f := range frames {
		if !u.Add(f) {
			r.t.Fatal("no room for a frame")
		}
	}
	if n, err := u.Send(); n != len(frames) || err != nil {
		r.t.Fatalf("sent %d of %d: %v", n, len(frames), err)
	}
}

func TestFramesLeaveByAnUplinkInOrderOnBothWays(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	u := r.uplink()
	s := stream{segments: 45, size: 1448}
	for _, direct := range []bool{true, false} {
		if err := u.SetDirect(direct); err != nil || u.Direct() != direct {
			t.Fatalf("direct: %v, %v", u.Direct(), err)
		}
		a, b := s.frame(nil), stream{v6: true, segments: 3, size: 1000}.frame(nil)
		r.all(u, a, b)
		r.expect(a)
		r.expect(b)
		r.empty()
	}
	if !u.Empty() {
		t.Error("something is on its way")
	}
}

// A full queue is told: the socket goes by the discipline first, and then says that the frame was lost. Nothing of the batch is left behind.
func TestAFullUplinkIsTold(t *testing.T) {
	const length = 4
	r := newRig(t, tapvm.AllOffloads)
	r.noqueue(length)
	u := r.uplink()
	if err := u.SetDirect(true); err != nil {
		t.Fatal(err)
	}
	for i := range length + 3 {
		if !u.Add((stream{segments: 2, size: 100, seq: uint32(i)}).frame(nil)) {
			t.Fatal("no room")
		}
	}
	if n, err := u.Send(); n != length || !errors.Is(err, tap.ErrLost) || u.Direct() {
		t.Fatalf("sent %d, %v, direct %v; want %d and ErrLost", n, err, u.Direct(), length)
	}
	if n, err := u.Send(); n != 0 || err != nil {
		t.Errorf("an empty batch: %d, %v", n, err)
	}
	for i := range length {
		r.expect((stream{segments: 2, size: 100, seq: uint32(i)}).frame(nil))
	}
	r.empty()
}

// A batch has an end, in frames and in pieces.
func TestAnUplinksBatchIsBounded(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	u := r.uplink()
	f := (stream{segments: 2, size: 100}).frame(nil)
	n := 0
	for ; n < 1000 && u.Add(f); n++ {
	}
	if n != tap.MaxBatch {
		t.Errorf("%d frames", n)
	}
	if sent, err := u.Send(); sent != n || err != nil {
		t.Fatal(sent, err)
	}
	long := *f
	long.Frags = nil
	for range 1000 {
		long.Frags = append(long.Frags, make([]byte, 1))
	}
	for n = 0; n < 1000 && u.Add(&long); n++ {
	}
	if n == 0 || n > 4 {
		t.Errorf("%d frames of 1000 pieces", n)
	}
}

// Memory that is not there costs its own frame, and those before it have left.
func TestMemoryThatVanishedCostsOneFrame(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	u := r.uplink()
	hole, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(hole)
	good, bad := (stream{segments: 2, size: 1000}).frame(nil), (stream{segments: 2, size: 1000}).frame(nil)
	bad.Frags = [][]byte{bad.Frags[0], hole[:2000]}
	u.Add(good)
	u.Add(bad)
	u.Add(good)
	if n, err := u.Send(); n != 1 || !errors.Is(err, tap.ErrRefused) {
		t.Fatalf("sent %d, %v; want 1 and ErrRefused", n, err)
	}
	r.all(u, good)
	r.expect(good)
	r.expect(good)
	r.empty()
}

// An heir goes on with the socket and with the way that it was on.
func TestAnUplinkIsHandedOver(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	u := r.uplink()
	if err := u.SetDirect(true); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(u.FD())
	if err != nil {
		t.Fatal(err)
	}
	heir, err := tap.AdoptUplink(fd, r.link.Attrs().Index)
	if err != nil || !heir.Direct() {
		t.Fatal(heir, err)
	}
	defer heir.Close()
	if err := u.SetDirect(false); err != nil { // as long as it is not the heir's
		t.Fatal(err)
	}
	if err := heir.Begin(); err != nil || heir.Direct() {
		t.Errorf("direct %v, %v: the last owner has chosen the other way", heir.Direct(), err)
	}
	f := (stream{segments: 2, size: 100}).frame(nil)
	r.all(heir, f)
	r.expect(f)
	if _, err := tap.AdoptUplink(-1, r.link.Attrs().Index); !errors.Is(err, tap.ErrSocket) {
		t.Errorf("no descriptor: %v", err)
	}
}
