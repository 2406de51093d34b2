package datapath

import (
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// RxQueue is a *vhost.RxQueue: an RX virtqueue, which workers may share.
type RxQueue interface {
	Begin() bool
	Put(f *virtio.Frame) error
	Walked() int
	Await(w *vhost.Waiter) (available bool)
	Commit() error
	Forget(w *vhost.Waiter)
	KickFD() int
	AckKick()
	MaxFrame() int
}

// userGuest is one RX virtqueue of a vhost-user VM: Put copies into guest memory, so the chunks are free at Commit.
//
// Several workers may share the queue, and its kick is one descriptor, which one of them takes from the others. So a worker
// without buffers leaves a waiter in the queue, and is woken by whichever worker took the kick. It need not look by the clock.
type userGuest struct {
	rx     RxQueue
	nic    NIC
	waiter vhost.Waiter
	waits  bool // the waiter may be in the queue
	full   bool // the burst in hand ended for lack of buffers
	again  bool // and buffers came whenever we looked: there is no time to sleep
	puts   int
	frames []*Frame // of the burst in hand, those with chunks
}

// tryAgain bounds how often Put tries with a guest that posts buffers one by one while it is asked.
const tryAgain = 4

// NewUserGuest returns the way into a VM by its RX virtqueue. The queue stays its port's: Close leaves it as it is. wake makes
// the worker look at its guests again: Worker.Wake. It is called from any goroutine, and not after Close.
func NewUserGuest(rx RxQueue, nic NIC, wake func()) Guest {
	return &userGuest{rx: rx, nic: nic, waiter: vhost.Waiter{Wake: wake}}
}

func (g *userGuest) Begin(int) bool {
	g.puts, g.frames, g.full, g.again = 0, g.frames[:0], false, false
	return g.rx.Begin()
}

func (g *userGuest) Put(f *Frame) error {
	f.Copy = checksum.Scatter
	for try := 0; ; try++ {
		switch err := g.rx.Put(&f.Frame); err {
		case nil:
			g.full = false
			g.puts++
			if len(f.Refs) > 0 { // no piece: the worker uses a piece's Frame again
				g.frames = append(g.frames, f)
			}
			return nil
		case vhost.ErrNoBuffers:
			// Ask for a kick, and look again: buffers posted since then must not wait for it.
			g.full = true
			if !g.rx.Await(&g.waiter) {
				g.waits = true
				return ErrFull
			}
			if try == tryAgain { // nothing will wake us, so Arm says not to sleep
				g.again = true
				return ErrFull
			}
		case vhost.ErrTooBig:
			return ErrTooBig
		case vhost.ErrDamaged:
			return ErrDamaged
		case vhost.ErrSource:
			return ErrSource
		case vhost.ErrNotNegotiated:
			return ErrNoOffer
		case vhost.ErrBadFrame:
			return ErrRefused
		default: // the port has failed, and has the reason
			return err
		}
	}
}

// Commit: with an error none of the burst has arrived, so its chunks stay the worker's, which drops the frames.
func (g *userGuest) Commit() (int, error) {
	if !g.full { // before the queue's Commit, which then tells the guest that no kick is needed
		g.forget()
	}
	if err := g.rx.Commit(); err != nil {
		return 0, err
	}
	for _, f := range g.frames {
		g.nic.FreeAll(f.Refs)
	}
	return g.puts, nil
}

func (g *userGuest) Sums()       {}
func (g *userGuest) Walked() int { return g.rx.Walked() }
func (g *userGuest) Reap() int   { return 0 }

// Arm: Put has asked for the kick already.
func (g *userGuest) Arm(hungry bool) (int, bool) {
	if !hungry {
		return -1, false
	}
	return g.rx.KickFD(), g.again
}

// Ack wakes the other workers that wait for this kick. This one is awake.
func (g *userGuest) Ack() {
	g.forget()
	g.rx.AckKick()
}

func (g *userGuest) forget() {
	if g.waits {
		g.waits = false
		g.rx.Forget(&g.waiter)
	}
}

func (g *userGuest) MaxFrame() int    { return g.rx.MaxFrame() }
func (g *userGuest) Check(bool) error { return nil } // the port's control goroutine looks

func (g *userGuest) Close() (int, error) {
	g.forget()
	return 0, nil
}
