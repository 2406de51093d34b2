package vhost_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// openFDs tells what each of this process's descriptors is. A bare count would not do: it falls when the collector
// closes a file that a test has forgotten, and would hide a leak then.
func openFDs(t testing.TB) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("needs /proc:", err)
	}
	fds := make(map[string]string, len(entries))
	for _, e := range entries {
		if what, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil { // else it was the folder's own
			fds[e.Name()] = what
		}
	}
	return fds
}

// closedSince waits until every descriptor that is not in before is closed.
func closedSince(t testing.TB, before map[string]string) {
	t.Helper()
	var left []string
	defer func() {
		if t.Failed() && len(left) > 0 {
			t.Logf("open: %v", left)
		}
	}()
	waitFor(t, "all descriptors closed", func() bool {
		left = left[:0]
		for n, what := range openFDs(t) {
			if before[n] != what {
				left = append(left, n+" "+what)
			}
		}
		return len(left) == 0
	})
}

// bystander is a second port under load in both directions while the first one is attacked. check ends the load: every
// frame must have arrived, unchanged and in order, in either direction.
func bystander(t *testing.T) (check func()) {
	t.Helper()
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	load := newRxLoad(t, g, 2048)
	gpa, mem, err := g.Alloc(virtio.HdrSize+1514, 64)
	if err != nil {
		t.Fatal(err)
	}
	b := &bystanding{p: p, load: load, tx: g.TX(0), buf: vring.Buffer{Addr: gpa, Len: uint32(len(mem))}, mem: mem}
	stop, done := make(chan struct{}), make(chan error, 1)
	end := sync.OnceValue(func() error {
		close(stop)
		return <-done
	})
	t.Cleanup(func() { _ = end() }) // before its guest's memory goes
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := b.round(); err != nil {
				done <- err
				return
			}
			runtime.Gosched() // the machine may have one core, and there is an attack to make
		}
	}()
	return func() {
		t.Helper()
		if err := end(); err != nil {
			t.Errorf("the port beside it: %v", err)
		}
		if s := p.State(); s.Name != vhost.StateRunning {
			t.Errorf("the port beside it is %s: %s", s.Name, s.Reason)
		}
		c := p.Counters()
		if c.RxFrames != b.frames || c.TxFrames != b.frames || b.frames == 0 || c.CallsLost+c.RxNoBuffers+c.RxRefused+c.RxTooBig != 0 {
			t.Errorf("the port beside it: %d frames each way, but %+v", b.frames, c)
		}
	}
}

type bystanding struct {
	p      *vhost.Port
	load   *rxLoad
	tx     *user.Ring
	buf    vring.Buffer
	mem    []byte
	frames uint64 // each way
}

// round moves 16 frames to the guest in one burst, and as many from it.
func (b *bystanding) round() error {
	const burst = 16
	rx := b.p.RX(0)
	if !rx.Begin() {
		return vhost.ErrNotRunning
	}
	for i := range burst {
		if err := rx.Put(plain(makeFrame(1514, byte(b.frames)+byte(i)))); err != nil {
			return errors.Join(err, rx.Commit())
		}
	}
	if err := rx.Commit(); err != nil {
		return err
	}
	for i := range burst {
		token, n, ok := b.load.ring.Driver.Used()
		want := makeFrame(1514, byte(b.frames)+byte(i))
		if !ok || n != uint32(virtio.HdrSize+len(want)) || !bytes.Equal(b.load.mem[token][virtio.HdrSize:n], want) {
			return fmt.Errorf("frame %d to the guest is missing or differs", b.frames+uint64(i))
		}
		if err := b.load.ring.Driver.Add(b.load.bufs[token:token+1], token); err != nil {
			return err
		}
	}
	b.load.ring.Driver.Publish()
	for i := range burst {
		want := makeFrame(1514, byte(b.frames)+byte(i))
		copy(b.mem[virtio.HdrSize:], want)
		if err := b.tx.Driver.Add([]vring.Buffer{b.buf}, 0); err != nil {
			return err
		}
		b.tx.Driver.Publish()
		same := false
		n, _, err := b.p.TX(0).Poll(8, func(f *vhost.TxFrame) vhost.Next { same = bytes.Equal(f.Data, want); return vhost.TakeOn }, nil)
		if err != nil || n != 1 || !same {
			return fmt.Errorf("frame %d of the guest is missing or differs: %d, %w", b.frames+uint64(i), n, err)
		}
		if _, _, ok := b.tx.Driver.Used(); !ok {
			return fmt.Errorf("frame %d of the guest was not completed", b.frames+uint64(i))
		}
	}
	b.frames += burst
	return nil
}

func TestAHostileRingStopsOnlyItsOwnPort(t *testing.T) {
	check := bystander(t)
	desc := func(l vring.Layout, i int, addr uint64, n uint32, flags, next uint16) {
		b := l.Desc[16*i:]
		binary.LittleEndian.PutUint64(b, addr)
		binary.LittleEndian.PutUint32(b[8:], n)
		binary.LittleEndian.PutUint16(b[12:], flags)
		binary.LittleEndian.PutUint16(b[14:], next)
	}
	avail := func(l vring.Layout, idx uint16, head uint16) {
		binary.LittleEndian.PutUint16(l.Avail[4:], head)
		binary.LittleEndian.PutUint16(l.Avail[2:], idx)
	}
	const mem = 1 << 20 // where a Frontend's memory begins
	tests := []struct {
		name string
		tx   bool
		do   func(l vring.Layout)
		want error
	}{
		{"index jump", false, func(l vring.Layout) { avail(l, 1000, 0) }, vring.ErrBadIndex},
		{"index jump, sending", true, func(l vring.Layout) { avail(l, 0x8000, 0) }, vring.ErrBadIndex},
		{"head out of range", false, func(l vring.Layout) { avail(l, 1, 64) }, vring.ErrBadIndex},
		{"next out of range", false, func(l vring.Layout) { desc(l, 0, mem, 64, 3, 64); avail(l, 1, 0) }, vring.ErrBadIndex},
		{"loop", false, func(l vring.Layout) { desc(l, 0, mem, 64, 3, 0); avail(l, 1, 0) }, vring.ErrBadChain},
		{"loop, sending", true, func(l vring.Layout) { desc(l, 0, mem, 64, 1, 1); desc(l, 1, mem, 64, 1, 0); avail(l, 1, 0) }, vring.ErrBadChain},
		{"outside memory", false, func(l vring.Layout) { desc(l, 0, 0, 4096, 2, 0); avail(l, 1, 0) }, vring.ErrOutOfRegion},
		{"across the end", true, func(l vring.Layout) { desc(l, 0, mem+8<<20-10, 4096, 0, 0); avail(l, 1, 0) }, vring.ErrOutOfRegion},
		{"address wraps", true, func(l vring.Layout) { desc(l, 0, ^uint64(0)-5, 4096, 0, 0); avail(l, 1, 0) }, vring.ErrOutOfRegion},
		{"empty buffer", false, func(l vring.Layout) { desc(l, 0, mem, 0, 2, 0); avail(l, 1, 0) }, vring.ErrBadChain},
		{"read-only receive buffer", false, func(l vring.Layout) { desc(l, 0, mem, 2000, 0, 0); avail(l, 1, 0) }, vring.ErrReadable},
		{"half read-only", false, func(l vring.Layout) { desc(l, 0, mem, 12, 1, 1); desc(l, 1, mem, 2000, 2, 0); avail(l, 1, 0) }, vring.ErrReadable},
		{"writable send buffer", true, func(l vring.Layout) { desc(l, 0, mem, 2000, 2, 0); avail(l, 1, 0) }, vring.ErrWritable},
		{"indirect in indirect", true, nil, vring.ErrBadChain},
		{"indirect of odd length", true, func(l vring.Layout) { desc(l, 0, mem, 17, 4, 0); avail(l, 1, 0) }, vring.ErrBadChain},
		{"4 GiB and more", true, func(l vring.Layout) { desc(l, 0, mem, 1<<32-1, 1, 1); desc(l, 1, mem, 1<<32-1, 0, 0); avail(l, 1, 0) }, vring.ErrOutOfRegion},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, socket, log := newPort(t, nil)
			g := newGuest(t, socket, nil).start()
			l := g.RX(0).Layout()
			if tt.tx {
				l = g.TX(0).Layout()
			}
			if tt.do == nil { // needs a table of its own
				gpa, table, _ := g.Alloc(32, 16)
				desc(vring.Layout{Desc: table}, 0, gpa+16, 16, 4, 0)
				desc(vring.Layout{Desc: table}, 1, gpa, 16, 0, 0)
				desc(l, 0, gpa, 16, 4, 0)
				avail(l, 1, 0)
			} else {
				tt.do(l)
			}
			var err error
			if tt.tx {
				_, _, err = p.TX(0).Poll(64, func(*vhost.TxFrame) vhost.Next { t.Error("frame out of nothing"); return vhost.TakeOn }, nil)
			} else {
				err = put(t, p.RX(0), plain(makeFrame(100, 1)))
			}
			if !errors.Is(err, vhost.ErrPortFailed) {
				t.Fatal(err)
			}
			if reason := <-log.stopped; !errors.Is(reason, tt.want) {
				t.Errorf("reason %v", reason)
			}
			if s := p.State(); s.Name != vhost.StateFailed || !errors.Is(s.Err, tt.want) || s.Reason == "" {
				t.Errorf("state %+v", s)
			}
			if !log.has("thrown out") {
				t.Error("no log line")
			}
			checkAlternating(t, log.all())
			_ = g.Close()
			g = newGuest(t, socket, nil).start()
			exchange(t, p, g, 0)
		})
	}
	check()
}

// Frames that Put has taken arrive with Commit, or not at all: who is told that they arrived gives up what they were made of.
func TestABurstThatCannotBePublishedHasNotArrived(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(t *testing.T, p *vhost.Port, g *guest) error
		want error
	}{
		"memory vanishes before the end": {func(t *testing.T, _ *vhost.Port, g *guest) error {
			return unix.Ftruncate(g.MemoryFile(), 0)
		}, vhost.ErrMemoryFault},
		"a bad chain later in the burst": {func(t *testing.T, p *vhost.Port, g *guest) error {
			g.post(g.RX(0), false, 2000)
			g.kick(g.RX(0))
			if err := p.RX(0).Put(plain(makeFrame(1000, 3))); !errors.Is(err, vhost.ErrPortFailed) {
				t.Errorf("put: %v", err)
			}
			return nil
		}, vring.ErrReadable},
	} {
		t.Run(name, func(t *testing.T) {
			p, socket, log := newPort(t, nil)
			g := newGuest(t, socket, nil).start()
			q := p.RX(0)
			g.post(g.RX(0), true, 2000)
			g.kick(g.RX(0))
			if err := put(t, q, plain(makeFrame(700, 1))); err != nil {
				t.Fatal(err)
			}
			g.recv(g.RX(0))
			for range 2 {
				g.post(g.RX(0), true, 2000)
			}
			g.kick(g.RX(0))
			if !q.Begin() {
				t.Fatal("not running")
			}
			for i := range 2 {
				if err := q.Put(plain(makeFrame(1000, byte(i)))); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.harm(t, p, g); err != nil {
				t.Fatal(err)
			}
			if err := q.Commit(); err != vhost.ErrPortFailed {
				t.Errorf("commit: %v", err)
			}
			if reason := <-log.stopped; !errors.Is(reason, c.want) {
				t.Errorf("reason %v", reason)
			}
			if c := p.Counters(); c.RxFrames != 1 || c.RxBytes != 700 || c.RxBuffers != 1 {
				t.Errorf("frames that arrived: %+v", c)
			}
			if c.want != vhost.ErrMemoryFault {
				if _, _, ok := g.recv(g.RX(0)); ok {
					t.Error("the guest sees a frame of the burst")
				}
			}
		})
	}
}

func TestMemoryCutShortStopsOnlyItsOwnPort(t *testing.T) {
	check := bystander(t)
	acts := map[string]func(t *testing.T, p *vhost.Port) error{
		"put": func(t *testing.T, p *vhost.Port) error { return put(t, p.RX(0), plain(makeFrame(3000, 1))) },
		"poll": func(t *testing.T, p *vhost.Port) error {
			_, _, err := p.TX(0).Poll(8, func(*vhost.TxFrame) vhost.Next { return vhost.TakeOn }, nil)
			return err
		},
		"arm": func(t *testing.T, p *vhost.Port) error {
			p.TX(0).ArmKick()
			return vhost.ErrPortFailed
		},
		"disarm": func(t *testing.T, p *vhost.Port) error {
			p.TX(0).DisarmKick()
			return vhost.ErrPortFailed
		},
		"arm receive": func(t *testing.T, p *vhost.Port) error {
			if p.RX(0).Begin() {
				arm(p.RX(0))
				p.RX(0).Commit()
			}
			return vhost.ErrPortFailed
		},
	}
	for name, act := range acts {
		t.Run(name, func(t *testing.T) {
			p, socket, log := newPort(t, nil)
			g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features = without(all, virtio.FEventIdx) }).start()
			g.post(g.RX(0), true, 2048, 2048)
			g.kick(g.RX(0))
			g.send(g.TX(0), virtio.NetHdr{}, makeFrame(1000, 1))
			g.kick(g.TX(0))
			if err := unix.Ftruncate(g.MemoryFile(), 0); err != nil {
				t.Fatal(err)
			}
			if err := act(t, p); !errors.Is(err, vhost.ErrPortFailed) {
				t.Fatal(err)
			}
			if reason := <-log.stopped; !errors.Is(reason, vhost.ErrMemoryFault) {
				t.Fatalf("reason %v", reason)
			}
			_ = g.Close()
			g = newGuest(t, socket, nil).start()
			exchange(t, p, g, 0)
		})
	}
	t.Run("during a frame", func(t *testing.T) {
		p, socket, log := newPort(t, nil)
		g := newGuest(t, socket, nil).start()
		g.post(g.RX(0), true, 2048)
		g.post(g.RX(0), true, 1<<20)
		g.kick(g.RX(0))
		if err := unix.Ftruncate(g.MemoryFile(), 32<<10); err != nil { // the rings stay
			t.Fatal(err)
		}
		if err := put(t, p.RX(0), plain(makeFrame(60000, 1))); !errors.Is(err, vhost.ErrPortFailed) {
			t.Fatal(err)
		}
		if reason := <-log.stopped; !errors.Is(reason, vhost.ErrMemoryFault) {
			t.Fatalf("reason %v", reason)
		}
		if _, _, ok := g.recv(g.RX(0)); ok {
			t.Error("half a frame was published")
		}
	})
	check()
}

// The memory goes away at any moment of a worker that never pauses.
func TestMemoryCutShortUnderTrafficStopsOnlyItsOwnPort(t *testing.T) {
	check := bystander(t)
	p, socket, log := newPort(t, nil)
	stop := busyWorker(p)
	for i := range 20 {
		g := newGuest(t, socket, func(c *user.FrontendConfig) { c.RingSize = 256 }).start()
		for range 200 {
			g.post(g.RX(0), true, 4096)
			g.send(g.TX(0), virtio.NetHdr{}, makeFrame(100, 1))
		}
		g.kick(g.RX(0))
		g.kick(g.TX(0))
		time.Sleep(time.Duration(i) * 20 * time.Microsecond) // anywhere in the traffic, and behind it
		if err := unix.Ftruncate(g.MemoryFile(), 0); err != nil {
			t.Fatal(err)
		}
		if reason := <-log.stopped; !errors.Is(reason, vhost.ErrMemoryFault) {
			t.Errorf("reason %v", reason)
		}
		_ = g.Close()
	}
	stop()
	g := newGuest(t, socket, nil).start()
	exchange(t, p, g, 0)
	check()
}

// busyWorker serves a port's first pair without a pause until stop is called.
func busyWorker(p *vhost.Port) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		f := &virtio.Frame{Frags: cut(makeFrame(60000, 1), 1448), Len: 60000}
		for {
			select {
			case <-quit:
				return
			default:
			}
			if p.RX(0).Begin() {
				_ = p.RX(0).Put(f)
				arm(p.RX(0))
				p.RX(0).Commit()
			}
			_, _, _ = p.TX(0).Poll(64, func(*vhost.TxFrame) vhost.Next { return vhost.TakeOn }, nil)
			p.TX(0).ArmKick()
			runtime.Gosched()
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
