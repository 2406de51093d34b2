package vhost_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// A ferry is numbered frames in both directions through the first pair of a port, whoever has the port just now, and whatever
// process that is. Both ends sleep without a bound when there is nothing to do, so that a kick or a call that is lost ends it.
const (
	ferryFrame = 200                  // bytes of a frame
	ferrySlack = 64                   // frames of a burst, which may come again after a crash
	numberAt   = 14                   // of a frame
	ferryBufs  = 64                   // descriptors of its guest's rings
	ferryChain = virtio.HdrSize + 256 // bytes of a buffer
)

func numbered(b []byte, n uint64) []byte {
	b = b[:ferryFrame]
	for i := range b {
		b[i] = byte(n) ^ byte(i)
	}
	binary.LittleEndian.PutUint64(b[numberAt:], n)
	return b
}

func number(b []byte) (uint64, error) {
	if len(b) != ferryFrame {
		return 0, fmt.Errorf("a frame of %d bytes", len(b))
	}
	n := binary.LittleEndian.Uint64(b[numberAt:])
	for i := range b {
		if (i < numberAt || i >= numberAt+8) && b[i] != byte(n)^byte(i) {
			return 0, fmt.Errorf("frame %d differs at byte %d", n, i)
		}
	}
	return n, nil
}

// ferryBook is what the port's end has done, in memory that outlives it.
type ferryBook struct {
	toGuest   atomic.Uint64 // frames published to the guest
	fromGuest atomic.Uint64 // frames that have left: before they were completed
	again     atomic.Uint64 // of fromGuest: seen before, after a crash
}

// worker is the port's end, as the controller's: a goroutine between Hooks.Started and what ends it.
type worker struct {
	book *ferryBook
	fail func(error)

	mu   sync.Mutex
	quit int // an eventfd; -1 while none runs
	done chan struct{}
}

func newWorker(book *ferryBook, fail func(error)) *worker {
	return &worker{book: book, fail: fail, quit: -1}
}

func (w *worker) hooks(h *vhost.Hooks) {
	h.Started = w.start
	h.BeforePause = func(*vhost.Port) { w.stop() }
	h.BeforeStop = func(*vhost.Port) { w.stop() }
}

func (w *worker) start(p *vhost.Port) {
	w.stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		w.fail(err)
		return
	}
	done := make(chan struct{})
	w.quit, w.done = fd, done
	go func() {
		defer close(done)
		w.run(p, fd)
	}()
}

func (w *worker) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.quit < 0 {
		return
	}
	_, _ = unix.Write(w.quit, []byte{1, 7: 0})
	<-w.done
	_ = unix.Close(w.quit)
	w.quit = -1
}

func (w *worker) run(p *vhost.Port, quit int) {
	rx, tx := p.RX(0), p.TX(0)
	waiter := &vhost.Waiter{Wake: func() {}}
	defer rx.Forget(waiter)
	f := &virtio.Frame{Frags: [][]byte{make([]byte, ferryFrame)}, Len: ferryFrame}
	for {
		hungry, began := false, rx.Begin()
		if began {
			n := w.book.toGuest.Load()
			for i := range uint64(ferrySlack) {
				numbered(f.Frags[0], n)
				err := rx.Put(f)
				if err == nil {
					n++
					continue
				}
				if errors.Is(err, vhost.ErrNoBuffers) {
					hungry = i == 0 && !rx.Await(waiter)
				}
				break
			}
			if rx.Commit() == nil {
				w.book.toGuest.Store(n)
			}
		}
		took := w.book.fromGuest.Load()
		n, _, _ := tx.Poll(ferrySlack, func(f *vhost.TxFrame) vhost.Next {
			switch got, err := number(f.Data); {
			case err != nil:
				w.fail(err)
			case got == took:
				took++
			case got < took && took-got <= ferrySlack:
				w.book.again.Add(1)
			default:
				w.fail(fmt.Errorf("frame %d of the guest after %d", got, took))
			}
			return vhost.TakeOn
		}, func() int { w.book.fromGuest.Store(took); return 0 })
		if n > 0 || began && !hungry {
			if pollNow(quit) {
				return
			}
			runtime.Gosched()
			continue
		}
		if tx.ArmKick() {
			continue
		}
		set := []unix.PollFd{{Fd: int32(quit), Events: unix.POLLIN}, {Fd: int32(rx.KickFD()), Events: unix.POLLIN}, {Fd: int32(tx.KickFD()), Events: unix.POLLIN}}
		_, _ = unix.Poll(set, -1)
		switch {
		case set[0].Revents != 0:
			return
		case set[1].Revents != 0:
			rx.AckKick()
		case set[2].Revents != 0:
			tx.AckKick()
		}
	}
}

func pollNow(fd int) bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0
}

// ferryGuest is the guest's end: it posts and sends without an end. Its goroutine owns the rings' drivers.
type ferryGuest struct {
	*user.Frontend
	t         testing.TB
	quit      int
	done      chan struct{}
	received  atomic.Uint64
	twice     atomic.Uint64
	sent      atomic.Uint64
	completed atomic.Uint64
	bad       atomic.Pointer[error]
	mayRepeat bool
}

// newFerryGuest starts it on a front-end that is started, or will be.
func newFerryGuest(t testing.TB, f *user.Frontend, mayRepeat bool) *ferryGuest {
	t.Helper()
	g := &ferryGuest{Frontend: f, t: t, done: make(chan struct{}), mayRepeat: mayRepeat}
	var err error
	if g.quit, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	var bufs [2][]vring.Buffer
	var mems [2][][]byte
	for i := range bufs {
		for range ferryBufs {
			gpa, mem, err := f.Alloc(ferryChain, 64)
			if err != nil {
				t.Fatal(err)
			}
			bufs[i] = append(bufs[i], vring.Buffer{Addr: gpa, Len: ferryChain, Writable: i == 0})
			mems[i] = append(mems[i], mem)
		}
	}
	for i := range bufs[1] {
		bufs[1][i].Len = virtio.HdrSize + ferryFrame
	}
	go func() {
		defer close(g.done)
		if err := g.run(bufs, mems); err != nil {
			g.bad.Store(&err)
		}
	}()
	t.Cleanup(g.stop)
	return g
}

func (g *ferryGuest) stop() {
	select {
	case <-g.done:
	default:
		_, _ = unix.Write(g.quit, []byte{1, 7: 0})
		<-g.done
	}
}

func (g *ferryGuest) run(bufs [2][]vring.Buffer, mems [2][][]byte) error {
	rx, tx := g.RX(0), g.TX(0)
	for i := range uint64(ferryBufs) {
		if err := rx.Driver.Add(bufs[0][i:i+1], i); err != nil {
			return err
		}
	}
	free := make([]uint64, ferryBufs)
	for i := range free {
		free[i] = uint64(i)
	}
	if rx.Driver.Publish() {
		rx.Kick()
	}
	for !pollNow(g.quit) {
		busy := false
		for range ferrySlack {
			token, n, ok := rx.Driver.Used()
			if !ok {
				break
			}
			busy = true
			if err := g.took(mems[0][token][:n]); err != nil {
				return err
			}
			if err := rx.Driver.Add(bufs[0][token:token+1], token); err != nil {
				return err
			}
		}
		if rx.Driver.Publish() {
			rx.Kick()
		}
		for {
			token, _, ok := tx.Driver.Used()
			if !ok {
				break
			}
			busy = true
			g.completed.Add(1)
			free = append(free, token)
		}
		for range min(len(free), 1+int(g.sent.Load())%ferrySlack) {
			token := free[len(free)-1]
			free = free[:len(free)-1]
			clear(mems[1][token][:virtio.HdrSize])
			numbered(mems[1][token][virtio.HdrSize:], g.sent.Load())
			if err := tx.Driver.Add(bufs[1][token:token+1], token); err != nil {
				return err
			}
			g.sent.Add(1)
		}
		if tx.Driver.Publish() {
			tx.Kick()
		}
		if err := errors.Join(rx.Driver.Err(), tx.Driver.Err()); err != nil {
			return err
		}
		if busy {
			runtime.Gosched()
			continue
		}
		more := rx.Driver.EnableCalls()
		if tx.Driver.EnableCalls() || more {
			continue
		}
		set := []unix.PollFd{{Fd: int32(g.quit), Events: unix.POLLIN}, {Fd: int32(rx.CallFD()), Events: unix.POLLIN}, {Fd: int32(tx.CallFD()), Events: unix.POLLIN}}
		_, _ = unix.Poll(set, -1)
		rx.AckCall()
		tx.AckCall()
		rx.Driver.DisableCalls()
		tx.Driver.DisableCalls()
	}
	return nil
}

// took judges a frame from the port.
func (g *ferryGuest) took(b []byte) error {
	if len(b) < virtio.HdrSize {
		return fmt.Errorf("a buffer of %d bytes", len(b))
	}
	n, err := number(b[virtio.HdrSize:])
	want := g.received.Load()
	switch {
	case err != nil:
		return err
	case n == want:
		g.received.Add(1)
	case g.mayRepeat && n < want && want-n <= ferrySlack:
		g.twice.Add(1)
	default:
		return fmt.Errorf("frame %d to the guest after %d", n, want)
	}
	return nil
}

// check fails the test for what the guest has found.
func (g *ferryGuest) check() {
	g.t.Helper()
	if err := g.bad.Load(); err != nil {
		g.t.Fatalf("the guest: %v", *err)
	}
}

// moves waits until so many more frames have gone in both directions.
func (g *ferryGuest) moves(n uint64) {
	g.t.Helper()
	rx, tx := g.received.Load(), g.completed.Load()
	for end := time.Now().Add(patience); g.received.Load() < rx+n || g.completed.Load() < tx+n; time.Sleep(50 * time.Microsecond) {
		g.check()
		if time.Now().After(end) {
			g.t.Fatalf("traffic stands: %d frames to the guest, %d from it", g.received.Load(), g.completed.Load())
		}
	}
}
