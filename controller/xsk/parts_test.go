package xsk

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
)

// dup returns descriptors of the same files, as a parcel carries them.
func (p Parts) dup(t testing.TB) Parts {
	t.Helper()
	for _, fd := range []*int{&p.Socket, &p.Umem, &p.Owners} {
		n, err := unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		*fd = n
	}
	return p
}

var remap = netnstest.Kernel(6, 4) // it maps the rings of a bound socket

func TestAdoptGoesOnWhereTheOwnerStopped(t *testing.T) {
	netnstest.Need(t, remap)
	modes(t, func(t *testing.T, native bool) {
		r := newRig(t, 1, native, netnstest.Options{})
		old := r.socks[0]
		fill(old)
		in, capture := r.net.A.Injector(t), r.net.A.Capture(t)
		const frames = 20
		for i := range frames {
			if err := in.Send(segment(i, 100)); err != nil {
				t.Fatal(err)
			}
		}
		if !wait(func() bool { return old.rx.ready(frames) == frames }) {
			t.Fatalf("%d of %d frames arrived", old.rx.ready(frames), frames)
		}
		var d [frames / 2]Desc
		if n := old.Recv(d[:]); n != len(d) {
			t.Fatalf("took %d", n)
		}
		send := func(s *Socket, i int) {
			buf, d, ok := s.AllocTx()
			if !ok || !s.Send(d, copy(buf, segment(i, 200))) {
				t.Fatal("no room")
			}
		}
		send(old, 1)
		send(old, 2)
		old.Publish()
		send(old, 3) // never published
		c := r.config(0, native)
		s, err := Adopt(c, old.Parts().dup(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		old.Close()
		r.socks[0] = s
		if s.TxPending() != 2 {
			t.Errorf("%d frames pending, want 2", s.TxPending())
		}
		mustConserve(t, s, 512)
		flags := *s.tx.flags
		*s.tx.flags = 0 // as of a kernel that has been told, or thinks so
		if err := s.Flush(); err != nil {
			t.Error(err)
		}
		*s.tx.flags = flags
		if !wait(func() bool { return s.TxRoom() > 0 && s.TxPending() == 0 }) {
			t.Errorf("%d frames were never sent", s.TxPending())
		}
		next := frames / 2
		r.receive(t, frames/2, func(s *Socket, d Desc) {
			if !bytes.Equal(frameOf(s, d), segment(next, 100)) {
				t.Errorf("frame %d is another", next)
			}
			next++
		})
		if next != frames {
			t.Errorf("the heir stopped at frame %d of %d", next, frames)
		}
		send(s, 4)
		if !wait(func() bool { return s.Flush() == nil && s.TxPending() == 0 }) {
			t.Error("the heir's own frame was never sent")
		}
		var got []int
		for _, f := range capture.Drain(300 * time.Millisecond) {
			for i := range 5 {
				if bytes.Equal(f.Data, segment(i, 200)) {
					got = append(got, i)
				}
			}
		}
		if len(got) != 3 || got[0] != 1 || got[1] != 2 || got[2] != 4 {
			t.Errorf("sent frames %v, want 1, 2 and 4", got)
		}
		mustConserve(t, s, 512)
		mustHaveLostNothing(t, s)
	})
}

// wait asks until it is so, for at most 2 s.
func wait(is func() bool) bool {
	for range 400 {
		if is() {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

func TestWrongPartsAreRefused(t *testing.T) {
	netnstest.Need(t, remap)
	r := newRig(t, 2, true, netnstest.Options{})
	s, other := r.socks[0], r.socks[1]
	s.Refill()
	good := r.config(0, true)
	must := func(fd int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	replace := func(at *int, fd int) {
		unix.Close(*at)
		*at = fd
	}
	file := func() int { return must(unix.Open(t.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)) }
	pipe := func() int {
		var p [2]int
		must(0, unix.Pipe2(p[:], unix.O_CLOEXEC))
		unix.Close(p[1])
		return p[0]
	}
	unsealed := func() int {
		fd := must(unix.MemfdCreate("x", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING))
		must(0, unix.Ftruncate(fd, int64(good.umemSize())))
		return fd
	}
	dup := func(fd int) int { return must(unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)) }
	// garble lets one word of the real owners be another for a while.
	garble := func(i int, word uint64) (undo func()) {
		mem, err := unix.Mmap(s.Parts().Owners, 0, good.ownersSize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(0, err)
		w := wordsOf(mem)
		was := w[i]
		w[i] = word
		return func() {
			w[i] = was
			unix.Munmap(mem)
		}
	}
	for _, c := range []struct {
		name   string
		change func(c *Config, p *Parts) (undo func())
		want   string
	}{
		{"no socket", func(_ *Config, p *Parts) func() { replace(&p.Socket, -1); return nil }, "socket: missing"},
		{"no UMEM", func(_ *Config, p *Parts) func() { replace(&p.Umem, -1); return nil }, "rscctl-umem: missing"},
		{"no owners", func(_ *Config, p *Parts) func() { replace(&p.Owners, -1); return nil }, "rscctl-owners: missing"},
		{"a pipe for a socket", func(_ *Config, p *Parts) func() { replace(&p.Socket, pipe()); return nil }, "socket:"},
		{"a UDP socket", func(_ *Config, p *Parts) func() {
			replace(&p.Socket, must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)))
			return nil
		}, "socket: "},
		{"an AF_XDP socket that is not bound", func(_ *Config, p *Parts) func() {
			replace(&p.Socket, must(unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)))
			return nil
		}, "another socket"},
		{"a pipe for a UMEM", func(_ *Config, p *Parts) func() { replace(&p.Umem, pipe()); return nil }, "rscctl-umem:"},
		{"a file for a UMEM", func(_ *Config, p *Parts) func() { replace(&p.Umem, file()); return nil }, "no memory file"},
		{"a UMEM that can shrink", func(_ *Config, p *Parts) func() { replace(&p.Umem, unsealed()); return nil }, "not sealed"},
		{"a UMEM of another size", func(_ *Config, p *Parts) func() { replace(&p.Umem, must(newMemory("x", 4096))); return nil }, "4096 bytes, not"},
		{"owners of another size", func(_ *Config, p *Parts) func() { replace(&p.Owners, must(newMemory("x", 4096))); return nil }, "4096 bytes, not"},
		{"owners of nothing", func(c *Config, p *Parts) func() {
			replace(&p.Owners, must(newMemory("x", c.ownersSize())))
			return nil
		}, "another layout of the owners"},
		{"memory for owners, owners for memory", func(_ *Config, p *Parts) func() { p.Umem, p.Owners = p.Owners, p.Umem; return nil }, "rscctl-umem:"},
		{"one for all", func(_ *Config, p *Parts) func() {
			unix.Close(p.Umem)
			replace(&p.Owners, p.Socket)
			p.Umem = p.Socket
			return nil
		}, "rscctl-umem:"},
		{"the socket of another queue", func(_ *Config, p *Parts) func() { replace(&p.Socket, dup(other.Parts().Socket)); return nil }, "another socket"},
		{"the UMEM of another queue", func(_ *Config, p *Parts) func() { replace(&p.Umem, dup(other.Parts().Umem)); return nil }, "another UMEM"},
		{"the owners of another queue", func(_ *Config, p *Parts) func() { replace(&p.Owners, dup(other.Parts().Owners)); return nil }, "another socket"},
		{"all of another queue", func(_ *Config, p *Parts) func() {
			must(0, p.close())
			*p = other.Parts().dup(t)
			return nil
		}, "another interface or queue"},
		{"another interface", func(c *Config, _ *Parts) func() { c.Ifindex++; return nil }, "another interface or queue"},
		{"another RX ring", func(c *Config, _ *Parts) func() { c.RxSize *= 2; return nil }, "RX or TX ring"},
		{"another completion ring", func(c *Config, _ *Parts) func() { c.CompSize *= 2; return nil }, "completion ring"},
		{"another way of waking", func(c *Config, _ *Parts) func() { c.NeedWakeup = false; return nil }, "another way of waking"},
		{"chunks of another size", func(c *Config, _ *Parts) func() { c.Chunks, c.ChunkSize = c.Chunks/2, LargeChunk; return nil }, "rscctl-owners:"},
		{"owners from the future", func(*Config, *Parts) func() { return garble(noteMagic, magic+1) }, "another layout of the owners"},
		{"a chunk of nobody", func(*Config, *Parts) func() { return garble(noteWords+9, 77<<32) }, "chunk 9: owner"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := openFDs(t)
			cfg, p := good, s.Parts().dup(t)
			if undo := c.change(&cfg, &p); undo != nil {
				defer undo()
			}
			h, err := Adopt(cfg, p)
			if err == nil {
				h.Close()
			}
			if !errors.Is(err, ErrParts) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v; want %q", err, c.want)
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
	fd := pipe()
	if err := (Parts{fd, fd, fd}).close(); err != nil { // somebody else may have the number by then
		t.Errorf("closed twice: %v", err)
	}
	p := s.Parts().dup(t)
	if _, err := Adopt(Config{}, p); !errors.Is(err, ErrConfig) {
		t.Errorf("no configuration: %v", err)
	}
	for _, fd := range p.each() {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			t.Errorf("descriptor %d is open", fd)
		}
	}
	// The right ones do, as if nothing had been tried.
	h, err := Adopt(good, s.Parts().dup(t))
	if err != nil {
		t.Fatal(err)
	}
	mustConserve(t, h, good.Chunks)
	mustBeInItsRing(t, h)
	h.Close()
}

// An heir comes whatever the link is doing: an interface that is down is the owner's to wait for, one that is gone is nobody's.
func TestAdoptOnAnInterfaceThatIsDownOrGone(t *testing.T) {
	netnstest.Need(t, remap)
	r := newRig(t, 1, true, netnstest.Options{})
	s := r.socks[0]
	s.Refill()
	link := func(do func(netlink.Link) error) {
		t.Helper()
		r.net.B.Do(t, func() error {
			l, err := netlink.LinkByIndex(r.net.B.Index)
			if err != nil {
				return err
			}
			return do(l)
		})
	}
	link(netlink.LinkSetDown)
	h, err := Adopt(r.config(0, true), s.Parts().dup(t))
	if err != nil {
		t.Fatalf("down: %v", err)
	}
	s.Close()
	link(netlink.LinkSetUp)
	r.socks[0] = h
	var d [1]Desc
	if !wait(func() bool { // the far end's carrier comes when it comes
		r.net.A.Inject(t, segment(1, 100))
		return h.Recv(d[:]) == 1
	}) {
		t.Error("up again, the heir received nothing")
	}
	link(netlink.LinkDel)
	before := openFDs(t)
	if _, err := Adopt(r.config(0, true), h.Parts().dup(t)); !errors.Is(err, ErrNoDevice) {
		t.Errorf("gone: %v", err)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	h.Close()
}
