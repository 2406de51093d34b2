package controller

import (
	"errors"
	"time"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost/kernel"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Bounds of one worker's feed of one tap.
const (
	maxRingChunks = chunkCount / 4        // chunks that a /dev/vhost-net ring may hold
	callChunks    = chunkCount / 8        // from here on a sleeping worker asks to be called when they come back
	emptyWithin   = 20 * time.Millisecond // a feed that stops is given this long to finish what was posted
	emptyPoll     = 50 * time.Microsecond
)

// tapFeed is one worker's way to one VM's tap: the ring of a /dev/vhost-net of its own, or without one the packet socket
// itself. It belongs to the worker's goroutine.
type tapFeed struct {
	pkt     *kernel.Packet
	net     *kernel.Net // nil: the packet socket is the feed
	batch   [kernel.MaxBatch]*virtio.Frame
	err     error // why the feed has ended, nil while it works
	senders senderSet
}

// openTapFeed opens a feed over a worker's UMEM, in the calling thread's namespace.
func openTapFeed(ifindex int, xs *xsk.Socket, vhostNet bool) (*tapFeed, error) {
	pkt, err := kernel.OpenPacket(ifindex)
	if err != nil {
		return nil, err
	}
	t := &tapFeed{pkt: pkt}
	if vhostNet {
		if t.net, err = kernel.OpenNet(kernel.NetConfig{Umem: xs.Memory(), Backend: pkt, MaxFrags: maxTapSegments + 1}); err != nil {
			return nil, errors.Join(err, pkt.Close())
		}
	}
	return t, nil
}

// close ends the feed; what was posted and not sent goes to free, and is returned as a number of frames.
func (t *tapFeed) close(free func(uint64)) (unsent int, err error) {
	if t.net != nil {
		err = t.net.Close(free)
		unsent = t.net.Unsent()
	}
	return unsent, errors.Join(err, t.pkt.Close())
}

// flushTap moves a VM's output queue into its tap. What the feed has no room for stays queued, as for a guest without buffers.
func (w *worker) flushTap(p *workerPort) {
	t := p.tap
	var short bool
	switch {
	case t.err != nil:
	case t.net != nil:
		short = w.postTap(p, t)
	default:
		short = w.sendTap(p, t)
	}
	if t.err != nil {
		w.dropQueued(p, flowtable.ReasonPortDown)
		short = false
		select { // XDP still sends the VM's frames here
		case w.trouble <- struct{}{}:
		default: // it will look
		}
	}
	w.settle(p, short)
}

// sendTap hands the queue to the packet socket, a batch with one system call. It reports whether frames are left for later.
func (w *worker) sendTap(p *workerPort, t *tapFeed) (short bool) {
	for p.out.n > 0 {
		n := min(p.out.n, len(t.batch))
		for i := range n {
			t.batch[i] = &p.out.at(i).frame
		}
		sent, err := t.pkt.Send(t.batch[:n])
		for range sent {
			f := p.out.front()
			p.countDelivered(f)
			w.freeAll(f.refs)
			p.out.popFront()
		}
		if err != nil && !w.survives(p, t, err) {
			return errors.Is(err, kernel.ErrFull)
		}
	}
	return false
}

// postTap posts the queue to the ring, kicking once. The chunks are the ring's until reapTaps.
func (w *worker) postTap(p *workerPort, t *tapFeed) (short bool) {
	t.net.Reap(w.free)
	for p.out.n > 0 {
		f := p.out.front()
		err := kernel.ErrFull
		if t.net.Chunks()+len(f.refs) <= maxRingChunks {
			err = t.net.Post(&f.frame, f.refs)
		}
		if err == nil {
			p.countDelivered(f)
			p.out.popFront()
		} else if !w.survives(p, t, err) {
			short = errors.Is(err, kernel.ErrFull)
			break
		}
	}
	if err := t.net.Kick(); err != nil && t.err == nil {
		t.err = err
	}
	return short
}

// survives deals with what became of the queue's first frame, and says whether to go on behind it. A feed that cannot go on
// keeps the reason for the control side.
func (w *worker) survives(p *workerPort, t *tapFeed, err error) bool {
	switch {
	case errors.Is(err, kernel.ErrRefused):
		w.dropFront(p, flowtable.ReasonBadLength)
		return true
	case errors.Is(err, kernel.ErrDown): // it may come up again
		w.dropFront(p, flowtable.ReasonPortDown)
		return true
	case !errors.Is(err, kernel.ErrFull):
		t.err = err
	}
	return false
}

// reapTaps takes back the chunks that vhost-net is done with.
func (w *worker) reapTaps() {
	for _, p := range w.list {
		if p.tap != nil && p.tap.net != nil && p.tap.net.Pending() > 0 {
			p.tap.net.Reap(w.free)
		}
	}
}

// armTap asks for a call when the worker must know that the ring has moved: frames wait for room, or many chunks are in it.
// It returns the descriptor to poll, -1 for none, and whether something is used already.
func (t *tapFeed) armTap(blocked bool) (fd int, ready bool) {
	if t.net == nil || t.err != nil || t.net.Pending() == 0 || (!blocked && t.net.Chunks() < callChunks) {
		return -1, false
	}
	return t.net.CallFD(), t.net.ArmCall()
}

// emptyTap waits, within a bound, until the ring has taken all that was posted.
func (w *worker) emptyTap(t *tapFeed) {
	for end := time.Now().Add(emptyWithin); t.net != nil && t.net.Pending() > 0 && t.net.Err() == nil && time.Now().Before(end); {
		if t.net.Reap(w.free) == 0 {
			time.Sleep(emptyPoll)
		}
	}
}

// drain takes what XDP had sent to the socket before a VM's steering was narrowed, at most one RX ring, and delivers it.
func (w *worker) drain(idx uint32) {
	for n := 0; n < rxRing; {
		w.now = w.clock()
		k := w.receive()
		w.table.EndBurst(w.now)
		w.flush()
		w.xs.Refill()
		if k == 0 {
			break
		}
		n += k
	}
	if p := w.ports[idx]; p != nil && p.tap != nil {
		w.emptyTap(p.tap)
	}
}

// startTap gives a worker its feed of a VM, which it owns from here on.
func (w *worker) startTap(idx uint32, t *tapFeed, cfg flowtable.PortConfig) error {
	p := w.ports[idx]
	if err := w.table.SetPort(idx, cfg, w.now); err != nil {
		return err
	}
	p.tap, p.running = t, true
	w.fdsStale = true
	return nil
}

// stopTap ends a worker's feed. What is held has been delivered; what vhost-net does not send within a bound is counted.
func (w *worker) stopTap(p *workerPort) {
	w.emptyTap(p.tap)
	unsent, err := p.tap.close(w.free)
	if err != nil {
		w.log.Warn("worker: tap feed: close", "worker", w.id, "err", err)
	}
	p.cnt.unsent += uint64(unsent)
	p.tap = nil
}

// senderSet remembers the source addresses of recent frames, so that a bridge beside us can be told of them. Two senders that
// share a place take turns.
type senderSet struct {
	mac [64][macLen]byte
	use [64]bool
}

func (s *senderSet) note(frame []byte) {
	mac := [macLen]byte(frame[macLen : 2*macLen])
	i := (mac[5] ^ mac[4]*3 ^ mac[3]*7) % uint8(len(s.mac))
	s.mac[i], s.use[i] = mac, true
}

// take returns the addresses seen since the last time.
func (s *senderSet) take(out [][macLen]byte) [][macLen]byte {
	for i := range s.use {
		if s.use[i] {
			out, s.use[i] = append(out, s.mac[i]), false
		}
	}
	return out
}
