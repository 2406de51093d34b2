package datapath

import "github.com/rscctl/rscctl/vhost"

// userGuest is one RX virtqueue of a vhost-user VM: Put copies into guest memory, so the chunks are free at Commit.
type userGuest struct {
	rx     *vhost.RxQueue
	nic    NIC
	puts   int
	frames []*Frame // of the burst in hand, those with chunks
}

// armAgain bounds how often Put asks a guest that posts buffers while it is asked.
const armAgain = 4

// NewUserGuest returns the way into a VM by its RX virtqueue. The queue stays its port's: Close leaves it as it is.
func NewUserGuest(rx *vhost.RxQueue, nic NIC) Guest { return &userGuest{rx: rx, nic: nic} }

func (g *userGuest) Begin(int) bool {
	g.puts, g.frames = 0, g.frames[:0]
	return g.rx.Begin()
}

func (g *userGuest) Put(f *Frame) error {
	for try := 0; ; try++ {
		switch err := g.rx.Put(&f.Frame); err {
		case nil:
			g.puts++
			if len(f.Refs) > 0 { // no piece: the worker uses a piece's Frame again
				g.frames = append(g.frames, f)
			}
			return nil
		case vhost.ErrNoBuffers:
			// Ask for a kick, and look again: buffers posted since then must not wait for it.
			if try == armAgain || !g.rx.ArmKick() {
				return ErrFull
			}
		case vhost.ErrTooBig:
			return ErrTooBig
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
	if err := g.rx.Commit(); err != nil {
		return 0, err
	}
	for _, f := range g.frames {
		g.nic.FreeAll(f.Refs)
	}
	return g.puts, nil
}

func (g *userGuest) Walked() int { return g.rx.Walked() }
func (g *userGuest) Reap() int   { return 0 }

// Arm: Put has asked for the kick already.
func (g *userGuest) Arm(hungry bool) (int, bool) {
	if !hungry {
		return -1, false
	}
	return g.rx.KickFD(), false
}

func (g *userGuest) Ack()                { g.rx.AckKick() }
func (g *userGuest) MaxFrame() int       { return g.rx.MaxFrame() }
func (g *userGuest) Check(bool) error    { return nil } // the port's control goroutine looks
func (g *userGuest) Close() (int, error) { return 0, nil }
