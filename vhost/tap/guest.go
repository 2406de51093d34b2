package tap

import (
	"errors"
	"fmt"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// What a device can do wrong with a guest's receive buffers (virtio 1.2, 5.1.6.4).
var (
	ErrGuestHeader  = errors.New("guest: a used buffer is shorter than the header or longer than the buffer")
	ErrGuestBuffers = errors.New("guest: num_buffers is not the number of used buffers")
	ErrGuestFill    = errors.New("guest: a buffer before the last is not full")
)

// GuestFeatures are what a Guest negotiates with vhost-net: what a Linux guest does, as far as vhost-net has a say in it. Offloads
// are the tap's.
const GuestFeatures = virtio.Features(1<<virtio.FVersion1 | 1<<virtio.FMrgRxbuf)

const (
	rxQueue = 0

	guestMaxFrame = MaxLen + ethLen + tagLen                        // longer than any frame of a tap
	guestTxStride = (virtio.HdrSize + guestMaxFrame + 4095) &^ 4095 // distance of two transmit buffers
	guestTxFrames = 64                                              // frames a guest has in flight
)

// GuestConfig describes a Guest.
type GuestConfig struct {
	Tap       int // file of the tap, with a vnet header of 12 bytes. It stays the caller's
	RingSize  int // receive buffers, 0: 1024
	BufferLen int // bytes of one receive buffer, header included, 0: 4096
}

// Guest is the guest's end of a tap with vhost=on: a /dev/vhost-net with a receive ring of mergeable buffers and a transmit ring,
// driven as a guest's driver does. It belongs to one goroutine.
type Guest struct {
	dev    *device
	mem    *arena
	rx, tx *ring

	rxDrv, txDrv *vring.Driver
	rxMem, txMem []byte
	size         int      // of a receive buffer
	toks         []uint64 // buffers of the frame in hand
	frame        []byte   // the frame in hand, header first
	txFree       []uint64
	buf          [1]vring.Buffer
}

// OpenGuest opens and owns a /dev/vhost-net and starts both rings on the tap.
func OpenGuest(c GuestConfig) (_ *Guest, err error) {
	if c.RingSize == 0 {
		c.RingSize = 1024
	}
	if c.BufferLen == 0 {
		c.BufferLen = 4096
	}
	if c.BufferLen < virtio.HdrSize+ethLen {
		return nil, fmt.Errorf("guest: %w: buffers of %d bytes", ErrConfig, c.BufferLen)
	}
	g := &Guest{size: c.BufferLen}
	defer func() {
		if err != nil {
			_ = g.release()
		}
	}()
	if g.dev, err = openDevice(devicePath); err != nil {
		return nil, err
	}
	if err := g.dev.negotiate(GuestFeatures); err != nil {
		return nil, err
	}
	if err := g.lay(c); err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	for _, r := range []*ring{g.rx, g.tx} {
		if err := r.setBackend(c.Tap); err != nil {
			return nil, fmt.Errorf("guest: %w", err)
		}
	}
	return g, nil
}

func (g *Guest) lay(c GuestConfig) (err error) {
	rxRing, txRing := vring.Bytes(c.RingSize), vring.Bytes(guestTxFrames)
	g.mem, err = newArena(cells(rxRing) + cells(txRing) + cells(c.RingSize*c.BufferLen) + guestTxFrames*guestTxStride)
	if err != nil {
		return err
	}
	rx, err := vring.Split(g.mem.take(rxRing), c.RingSize)
	if err != nil {
		return err
	}
	tx, err := vring.Split(g.mem.take(txRing), guestTxFrames)
	if err != nil {
		return err
	}
	if g.rxDrv, err = vring.NewDriver(rx, GuestFeatures, vring.IndirectArea{}); err != nil {
		return err
	}
	if g.txDrv, err = vring.NewDriver(tx, GuestFeatures, vring.IndirectArea{}); err != nil {
		return err
	}
	g.rxMem, g.txMem = g.mem.take(c.RingSize*c.BufferLen), g.mem.take(guestTxFrames*guestTxStride)
	g.toks, g.frame = make([]uint64, 0, c.RingSize), make([]byte, 0, virtio.HdrSize+guestMaxFrame)
	for i := range uint64(c.RingSize) {
		if err := g.post(i); err != nil {
			return err
		}
	}
	g.rxDrv.Publish() // the kernel looks when it gets its backend
	for i := range uint64(guestTxFrames) {
		g.txFree = append(g.txFree, guestTxFrames-1-i)
	}
	g.rxDrv.DisableCalls()
	g.txDrv.DisableCalls()
	if err := g.dev.share(g.mem.mem); err != nil {
		return err
	}
	if g.rx, err = g.dev.newRing(rxQueue, rx); err != nil {
		return err
	}
	g.tx, err = g.dev.newRing(txQueue, tx)
	return err
}

// post makes receive buffer tok available.
func (g *Guest) post(tok uint64) error {
	b := g.rxMem[int(tok)*g.size:][:g.size]
	g.buf[0] = vring.Buffer{Addr: address(b), Len: uint32(g.size), Writable: true}
	return g.rxDrv.Add(g.buf[:], tok)
}

// Receive takes up to budget frames, hands each to fn and gives the buffers back. packet is the 12-byte header and the frame, in one
// piece, and fn's during the call; the header's num_buffers is the number of receive buffers it came in. An error is one of the
// device: it broke the rules.
func (g *Guest) Receive(budget int, fn func(packet []byte)) (count int, err error) {
	for count < budget {
		ok, err := g.gather()
		if err != nil {
			return count, err
		}
		if !ok {
			break
		}
		count++
		fn(g.frame)
		for _, tok := range g.toks {
			if err := g.post(tok); err != nil {
				return count, fmt.Errorf("guest: %w", err)
			}
		}
	}
	if g.rxDrv.Publish() {
		eventSignal(g.rx.kick)
	}
	if err := g.rxDrv.Err(); err != nil {
		return count, fmt.Errorf("guest: %w", err)
	}
	return count, nil
}

// gather copies the next frame's buffers together.
func (g *Guest) gather() (ok bool, err error) {
	g.toks, g.frame = g.toks[:0], g.frame[:0]
	for want := 1; len(g.toks) < want; {
		tok, n, ok := g.rxDrv.Used()
		first := len(g.toks) == 0
		switch {
		case !ok && first:
			return false, nil
		case !ok: // all of a frame's elements become visible at once
			return false, ErrGuestBuffers
		case int(n) > g.size, first && n < virtio.HdrSize, len(g.frame)+int(n) > cap(g.frame):
			return false, ErrGuestHeader
		}
		b := g.rxMem[int(tok)*g.size:][:n]
		if first {
			var h virtio.NetHdr
			_ = h.Decode(b) // it is long enough
			if want = int(h.NumBuffers); want == 0 {
				return false, ErrGuestBuffers
			}
		}
		g.toks = append(g.toks, tok)
		g.frame = append(g.frame, b...)
		if len(g.toks) < want && int(n) != g.size {
			return false, ErrGuestFill
		}
	}
	return true, nil
}

// Buffer is room for a frame to send, 12 bytes of header first, or nil when all are in flight. Without a Post it stays free.
func (g *Guest) Buffer() []byte {
	for tok, _, ok := g.txDrv.Used(); ok; tok, _, ok = g.txDrv.Used() {
		g.txFree = append(g.txFree, tok)
	}
	if len(g.txFree) == 0 {
		return nil
	}
	return g.txMem[g.txFree[len(g.txFree)-1]*guestTxStride:][:virtio.HdrSize+guestMaxFrame]
}

// Post sends the first n bytes of the Buffer last asked for. The kernel sees it after Kick.
func (g *Guest) Post(n int) error {
	last := len(g.txFree) - 1
	tok := g.txFree[last]
	g.buf[0] = vring.Buffer{Addr: address(g.txMem[tok*guestTxStride:]), Len: uint32(n)}
	if err := g.txDrv.Add(g.buf[:], tok); err != nil {
		return fmt.Errorf("guest: %w", err)
	}
	g.txFree = g.txFree[:last]
	return nil
}

// Kick shows the kernel what was posted.
func (g *Guest) Kick() {
	if g.txDrv.Publish() {
		eventSignal(g.tx.kick)
	}
}

// Arm asks for calls: of the receive ring, and with tx of the transmit ring too, which matters to who waits for a Buffer. It says
// whether something is waiting already.
func (g *Guest) Arm(tx bool) bool {
	more := g.rxDrv.EnableCalls()
	return tx && g.txDrv.EnableCalls() || more
}

// Ack takes the signals off and asks for no more.
func (g *Guest) Ack() {
	g.rxDrv.DisableCalls()
	g.txDrv.DisableCalls()
	eventDrain(g.rx.call)
	eventDrain(g.tx.call)
}

// CallFDs are the eventfds of the receive and the transmit ring.
func (g *Guest) CallFDs() (rx, tx int) { return g.rx.call, g.tx.call }

// Close stops both rings and frees their memory.
func (g *Guest) Close() error {
	_, rxErr := g.rx.stop()
	_, txErr := g.tx.stop()
	return errors.Join(rxErr, txErr, g.release())
}

func (g *Guest) release() (err error) {
	for _, r := range []*ring{g.rx, g.tx} {
		if r != nil {
			r.closeEvents()
		}
	}
	if g.dev != nil {
		err = g.dev.close()
	}
	if g.mem != nil {
		err = errors.Join(err, g.mem.free())
	}
	return err
}
