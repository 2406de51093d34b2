package user

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// device records what a session asks for.
type device struct {
	mu    sync.Mutex
	calls []string
	pause bool // what the last BeforeChange said
	rings map[int]RingSetup
}

func (d *device) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, fmt.Sprintf(format, args...))
}

// take returns what was asked for since the last time.
func (d *device) take() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := strings.Join(d.calls, " ")
	d.calls = nil
	return s
}

func (d *device) BeforeChange(pause bool) {
	d.mu.Lock()
	d.pause = pause
	d.mu.Unlock()
	d.note("(")
}
func (d *device) AfterChange() { d.note(")") }

func (d *device) StartRing(r RingSetup) error {
	d.note("start%d:%d@%d", r.Index, r.Size, r.Dev.Base().Num())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rings[r.Index] = r
	return nil
}

func (d *device) StopRing(i int) (vring.Position, error) {
	d.note("stop%d", i)
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.rings[i]
	delete(d.rings, i)
	base := r.Dev.Base()
	return base, r.Dev.Close()
}

func (d *device) EnableRing(i int, on bool) error { d.note("enable%d:%v", i, on); return nil }

func (d *device) SetCall(i int, call *EventFD) error { d.note("call%d:%v", i, call != nil); return nil }

// peer is the front-end's end of a session under test.
type peer struct {
	t    *testing.T
	c    *net.UnixConn
	dev  *device
	s    *Session
	done chan error
	mem  int // a memfd of 2 MiB
}

func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

const memSize = 2 << 20

func newPeer(t *testing.T) *peer {
	t.Helper()
	return newPeerWith(t, guestmem.Options{})
}

func newPeerWith(t *testing.T, memory guestmem.Options) *peer {
	t.Helper()
	a, b := socketPair(t)
	dev := &device{rings: map[int]RingSetup{}}
	p := &peer{t: t, c: a, dev: dev, done: make(chan error, 1)}
	p.s = NewSession(NewConn(b), SessionConfig{
		Features: virtio.Mask(virtio.FVersion1, virtio.FMrgRxbuf, virtio.FCsum, virtio.FGuestCsum, virtio.FGuestTSO4, virtio.FGuestECN, virtio.FHostTSO4, virtio.FHostECN, virtio.FMQ, virtio.FEventIdx, virtio.FIndirectDesc),
		MaxPairs: 2, MaxMTU: 9000, Device: dev, Logf: t.Logf, Memory: memory,
	})
	var err error
	if p.mem, err = unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(p.mem, memSize); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.s.Run() }()
	t.Cleanup(func() {
		_ = a.Close()
		_ = unix.Close(p.mem)
	})
	return p
}

// send writes one request.
func (p *peer) send(r Request, flags uint32, payload []byte, fds ...int) {
	p.t.Helper()
	b := make([]byte, HeaderSize)
	(&Header{Request: r, Flags: FlagVersion | flags, Size: uint32(len(payload))}).Encode(b)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := p.c.WriteMsgUnix(append(b, payload...), oob, nil); err != nil {
		p.t.Fatalf("%s: %v", r, err)
	}
}

// reply reads one reply and checks what QEMU checks.
func (p *peer) reply(r Request, size int) []byte {
	p.t.Helper()
	_ = p.c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, HeaderSize+size)
	if _, err := io.ReadFull(p.c, b); err != nil {
		p.t.Fatalf("%s: %v", r, err)
	}
	var h Header
	if err := h.Decode(b); err != nil || h.Request != r || h.Flags != 5 || int(h.Size) != size {
		p.t.Fatalf("%s: reply %+v, %v", r, h, err)
	}
	return b[HeaderSize:]
}

func (p *peer) get(r Request) uint64 {
	p.t.Helper()
	p.send(r, 0, nil)
	v, err := U64(p.reply(r, 8))
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// ack sends with need-reply and returns the answer.
func (p *peer) ack(r Request, payload []byte, fds ...int) uint64 {
	p.t.Helper()
	p.send(r, FlagNeedReply, payload, fds...)
	v, err := U64(p.reply(r, 8))
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// settle waits until everything sent so far was handled.
func (p *peer) settle() { p.t.Helper(); p.get(GetFeatures) }

// quiet says that no reply is waiting.
func (p *peer) quiet(what string) {
	p.t.Helper()
	p.settle() // a stray reply would be read in place of this one's
	_ = p.c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, _ := p.c.Read(make([]byte, 1)); n != 0 {
		p.t.Fatalf("%s: stray reply", what)
	}
}

func (p *peer) event() int {
	p.t.Helper()
	e, err := NewEventFD()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = e.Close() })
	return e.FD()
}

const protocolF = 1 << virtio.FProtocolFeatures

func u64(v uint64) []byte { return AppendU64(nil, v) }

func state(i, n uint32) []byte { return VringState{i, n}.Append(nil) }

const testUVA = 0x5500_0000_0000

func region() MemRegion { return MemRegion{GPA: 0, Size: memSize, UVA: testUVA} }

func addr(i uint32) []byte {
	at := uint64(testUVA) + uint64(i)*0x10000
	avail, used := vring.Offsets(256)
	return VringAddr{Index: i, Desc: at, Avail: at + uint64(avail), Used: at + uint64(used)}.Append(nil)
}

func (p *peer) startRing(i uint32, base uint32) {
	p.t.Helper()
	p.send(SetVringNum, 0, state(i, 256))
	p.send(SetVringBase, 0, state(i, base))
	p.send(SetVringAddr, 0, addr(i))
	p.send(SetVringKick, 0, u64(uint64(i)), p.event())
	p.send(SetVringCall, 0, u64(uint64(i)), p.event())
}

func (p *peer) want(what, want string) {
	p.t.Helper()
	if got := p.dev.take(); got != want {
		p.t.Errorf("%s:\n got  %s\n want %s", what, got, want)
	}
}

func (p *peer) end() error {
	p.t.Helper()
	_ = p.c.Close()
	return p.wait()
}

func (p *peer) wait() error {
	p.t.Helper()
	select {
	case err := <-p.done:
		return err
	case <-time.After(10 * time.Second):
		p.t.Fatal("session does not end")
		return nil
	}
}

// fdOf returns the descriptor of c, valid while c is open.
func fdOf(c *net.UnixConn) (fd int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1
	}
	_ = raw.Control(func(v uintptr) { fd = int(v) })
	return fd
}
