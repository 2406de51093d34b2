package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/test/netnstest"
)

// A place of somebody else's map is taken only where no other socket is, is left only by who has it, and is free when its socket is closed.
func TestPlacesOfASocketMapAreTakenAndLeft(t *testing.T) {
	netnstest.Need(t, netnstest.BPF, netnstest.AFXDP)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		netnstest.Skip(t, "mounting a BPF filesystem: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	n := netnstest.Pair(t, netnstest.Options{Queues: 2, NoIPv6: true})
	var socks [2]*xsk.Socket
	for i := range socks {
		n.B.Do(t, func() (err error) {
			socks[i], err = xsk.Open(xsk.Config{Ifindex: n.B.Index, Queue: i, Chunks: 64, ChunkSize: 2048, RxSize: 32, TxSize: 16, FillSize: 32, CompSize: 16})
			return err
		})
		t.Cleanup(func() { socks[i].Close() })
	}
	ours, theirs := socks[0].FD(), socks[1].FD()
	path := filepath.Join(dir, "xsks")
	pinned := func(kind ebpf.MapType) {
		t.Helper()
		_ = os.Remove(path)
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: 4, ValueSize: 4, MaxEntries: 2})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Pin(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenSocketMap(path); !errors.Is(err, ErrNoMap) {
		t.Errorf("nothing pinned: %v", err)
	}
	pinned(ebpf.Array)
	if _, err := OpenSocketMap(path); !errors.Is(err, ErrNoMap) {
		t.Errorf("another type: %v", err)
	}
	pinned(ebpf.XSKMap)
	m, err := OpenSocketMap(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Places() != 2 || m.ID() == 0 {
		t.Errorf("%d places, id %d", m.Places(), m.ID())
	}
	for _, step := range []struct {
		what string
		do   error
		want error
	}{
		{"take a free place", m.Take(0, ours), nil},
		{"take it again", m.Take(0, ours), nil},
		{"take another's", m.Take(0, theirs), ErrPlaceTaken},
		{"leave another's", m.Leave(0, theirs), nil},
		{"which is still there", m.Take(0, theirs), ErrPlaceTaken},
		{"leave it", m.Leave(0, ours), nil},
		{"which is free then", m.Take(0, theirs), nil},
		{"beyond the end", m.Take(2, ours), ErrNoDevice},
		{"the other end", m.Take(-1, ours), ErrNoDevice},
	} {
		if !errors.Is(step.do, step.want) || step.want == nil && step.do != nil {
			t.Errorf("%s: %v, want %v", step.what, step.do, step.want)
		}
	}
	if err := socks[1].Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Take(0, ours); err != nil {
		t.Errorf("the place of a socket that was closed: %v", err)
	}

	fd, err := unix.Dup(m.FD())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	again, err := AdoptSocketMap(fd)
	if err != nil {
		t.Fatal(err)
	}
	if again.ID() != m.ID() {
		t.Errorf("adopted map %d, not %d", again.ID(), m.ID())
	}
	if err := errors.Join(again.Close(), again.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
}

// A queue without shares never hangs, and can be begun and closed.
func TestNoSharesAreNone(t *testing.T) {
	var s *Shares
	s.Begin()
	if h := s.Hangs(); h != (Hangs{}) || s.Close() != nil {
		t.Errorf("%+v", h)
	}
}
