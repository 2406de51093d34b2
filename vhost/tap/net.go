package tap

import (
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// Sizes that a NetConfig leaves out.
const (
	DefaultRingSize = 256
	DefaultMaxFrags = 64
	DefaultMaxCopy  = 2048 - 64
)

// NetConfig describes a Net.
type NetConfig struct {
	Umem     []byte  // memory that fragments are referenced in, outside of the Go heap; may be empty: all is copied
	Backend  *Packet // whose tap the frames go to. It stays the caller's and must outlive the Net
	RingSize int     // frames in flight, a power of two up to 32768; 0: DefaultRingSize
	MaxFrags int     // fragments of one frame that are not empty, and of its chunks, up to MaxFrameFrags; 0: DefaultMaxFrags
	MaxCopy  int     // bytes of one frame that may lie outside of Umem; 0: DefaultMaxCopy
}

// features are those of the ring. Without MRG_RXBUF and VERSION_1 the header has the 10 bytes that a packet socket takes on every
// kernel.
const features = virtio.Features(1 << virtio.FIndirectDesc)

const txQueue = 1 // vhost-net's ring 1 is the one it sends from; ring 0 needs no backend

// Net is the transmit ring of a /dev/vhost-net. It belongs to one goroutine, and allocates nothing after OpenNet.
type Net struct {
	cfg  NetConfig
	dev  *device
	ring *ring
	drv  *vring.Driver
	mem  *arena

	slots []netSlot
	free  []uint32 // slots to use; the last used is the next taken
	bufs  []vring.Buffer

	chunks int    // references held
	posted uint16 // chains added, modulo 65536
	unsent int
	closed bool
}

// netSlot is what belongs to one frame in flight: the driver's token is its index.
type netSlot struct {
	head []byte // header, and what is copied of the frame behind it
	refs []uint64
}

// OpenNet opens and owns /dev/vhost-net and starts its transmit ring. Errors: those of Available, ErrFeatures, ErrConfig.
//
// The kernel's worker inherits CPU affinity and control group of the calling thread.
func OpenNet(c NetConfig) (_ *Net, err error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	n := &Net{cfg: c}
	defer func() {
		if err != nil {
			_ = n.release()
		}
	}()
	if n.dev, err = openDevice(devicePath); err != nil {
		return nil, err
	}
	if err := n.dev.negotiate(features); err != nil {
		return nil, err
	}
	l, err := n.lay()
	if err != nil {
		return nil, err
	}
	if err := n.dev.share(n.mem.mem, c.Umem); err != nil {
		return nil, err
	}
	if n.ring, err = n.dev.newRing(txQueue, l); err != nil {
		return nil, fmt.Errorf("%s: %w", devicePath, err)
	}
	if err := n.ring.setBackend(c.Backend.FD()); err != nil {
		return nil, fmt.Errorf("%s: %w", devicePath, err)
	}
	return n, nil
}

func (c *NetConfig) complete() error {
	for _, x := range []struct {
		v *int
		d int
	}{{&c.RingSize, DefaultRingSize}, {&c.MaxFrags, DefaultMaxFrags}, {&c.MaxCopy, DefaultMaxCopy}} {
		if *x.v == 0 {
			*x.v = x.d
		}
	}
	switch {
	case c.Backend == nil || c.Backend.FD() < 0:
		return fmt.Errorf("%w: no socket", ErrConfig)
	case c.RingSize < 1 || c.RingSize > vring.MaxSize || bits.OnesCount(uint(c.RingSize)) != 1:
		return fmt.Errorf("%w: ring of %d frames", ErrConfig, c.RingSize)
	case c.MaxFrags < 1 || c.MaxFrags > MaxFrameFrags:
		return fmt.Errorf("%w: %d fragments", ErrConfig, c.MaxFrags)
	case c.MaxCopy < 0 || c.MaxCopy > MaxLen:
		return fmt.Errorf("%w: %d bytes to copy", ErrConfig, c.MaxCopy)
	}
	return nil
}

// lay makes the memory and the driver's side of the ring in it.
func (n *Net) lay() (l vring.Layout, err error) {
	num, entries := n.cfg.RingSize, n.cfg.MaxFrags+1
	head := virtio.HdrSize + n.cfg.MaxCopy
	ringBytes, tables := vring.Bytes(num), vring.IndirectBytes(num, entries)
	if n.mem, err = newArena(cells(ringBytes) + cells(tables) + num*cells(head)); err != nil {
		return l, err
	}
	if l, err = vring.Split(n.mem.take(ringBytes), num); err != nil {
		return l, err
	}
	area := vring.IndirectArea{Mem: n.mem.take(tables), Entries: entries}
	area.GPA = address(area.Mem)
	if n.drv, err = vring.NewDriver(l, features, area); err != nil {
		return l, err
	}
	n.drv.DisableCalls()
	n.slots, n.free = make([]netSlot, num), make([]uint32, num)
	refs := make([]uint64, num*entries)
	for i := range n.slots {
		n.slots[i] = netSlot{head: n.mem.take(head), refs: refs[i*entries : i*entries : (i+1)*entries]}
		n.free[i] = uint32(num - 1 - i)
	}
	n.bufs = make([]vring.Buffer, 0, entries)
	return l, nil
}

// Post puts a frame into the ring; the kernel sees it after Kick. Fragments inside of Umem are referenced and must stay as they
// are until their refs come back from Reap or Close; what lies elsewhere is copied and free at once. refs are kept as they are:
// whatever the caller must get back, at most MaxFrags+1.
//
// When it fails nothing was posted and no ref kept: ErrFull (try again after Reap), ErrRefused, ErrRing, ErrClosed.
func (n *Net) Post(f *virtio.Frame, refs []uint64) error {
	if n.closed {
		return ErrClosed
	}
	frags, err := check(f, n.cfg.Backend.mtu)
	switch {
	case err != nil:
		return err
	case frags > n.cfg.MaxFrags, len(refs) > n.cfg.MaxFrags+1:
		return ErrFragments
	case len(n.free) == 0:
		return ErrFull
	}
	slot := n.free[len(n.free)-1]
	s := &n.slots[slot]
	if err := n.describe(f, s.head); err != nil {
		return err
	}
	if err := n.drv.Add(n.bufs, uint64(slot)); err != nil {
		return ErrRing // there is a descriptor for every slot and an entry for every fragment
	}
	n.free = n.free[:len(n.free)-1]
	s.refs = append(s.refs[:0], refs...)
	n.chunks += len(refs)
	n.posted++
	return nil
}

// describe fills bufs: the header, then the frame. Copied bytes lie behind the header in head; those at the frame's beginning share
// its descriptor.
func (n *Net) describe(f *virtio.Frame, head []byte) error {
	f.Hdr.Encode(head)
	limit := virtio.HdrSizeLegacy + n.cfg.MaxCopy
	used, begin := virtio.HdrSizeLegacy, 0 // bytes of head in use, and where its piece in hand begins
	n.bufs = n.bufs[:0]
	for _, b := range f.Frags {
		switch {
		case len(b) == 0:
		case inside(b, n.cfg.Umem):
			if used > begin {
				n.bufs = append(n.bufs, vring.Buffer{Addr: address(head[begin:]), Len: uint32(used - begin)})
				begin = used
			}
			n.bufs = append(n.bufs, vring.Buffer{Addr: address(b), Len: uint32(len(b))})
		case len(b) > limit-used:
			return ErrCopy
		default:
			used += copy(head[used:], b)
		}
	}
	if used > begin {
		n.bufs = append(n.bufs, vring.Buffer{Addr: address(head[begin:]), Len: uint32(used - begin)})
	}
	return nil
}

// Kick shows the kernel what was posted since the last Kick, and wakes its worker if it sleeps: at most one system call.
func (n *Net) Kick() error {
	if n.closed {
		return ErrClosed
	}
	if n.drv.Publish() {
		eventSignal(n.ring.kick)
	}
	if n.drv.Err() != nil {
		return ErrRing
	}
	return nil
}

// Reap takes back the frames that the kernel is done with, hands their refs to free and returns how many frames they were.
func (n *Net) Reap(free func(ref uint64)) int {
	if n.closed {
		return 0
	}
	count := 0
	for tok, _, ok := n.drv.Used(); ok; tok, _, ok = n.drv.Used() {
		n.giveBack(uint32(tok), free)
		count++
	}
	return count
}

func (n *Net) giveBack(slot uint32, free func(ref uint64)) {
	s := &n.slots[slot]
	for _, ref := range s.refs {
		free(ref)
	}
	n.chunks -= len(s.refs)
	s.refs = s.refs[:0]
	n.free = append(n.free, slot)
}

// Pending is the number of frames posted and not yet reaped.
func (n *Net) Pending() int { return len(n.slots) - len(n.free) }

// Room is the number of frames that can be posted now.
func (n *Net) Room() int { return len(n.free) }

// Chunks is the number of refs held.
func (n *Net) Chunks() int { return n.chunks }

// ArmCall asks the kernel to signal CallFD when it is done with a frame. true: one is waiting already and nothing is asked for; do
// not sleep. It says so too when the Net is broken or closed.
func (n *Net) ArmCall() bool {
	if n.closed {
		return true
	}
	more := n.drv.EnableCalls()
	if more {
		n.drv.DisableCalls()
	}
	return more
}

// AckCall, after the sleep, takes the signal off CallFD, a system call, and asks for no more.
func (n *Net) AckCall() {
	if n.closed {
		return
	}
	n.drv.DisableCalls()
	eventDrain(n.ring.call)
}

// CallFD is an eventfd that becomes readable when a frame is used while calls are asked for. It is gone after Close.
func (n *Net) CallFD() int { return n.ring.call }

// ErrFD is an eventfd that becomes readable when the kernel gives the ring up. It is gone after Close.
func (n *Net) ErrFD() int { return n.ring.err }

// Err says whether the ring is broken: ErrRing, and a Net to close. It makes a system call; the data path hears of it by ErrFD.
func (n *Net) Err() error {
	switch {
	case n.closed:
		return ErrClosed
	case n.drv.Err() != nil:
		return fmt.Errorf("%w: %w", ErrRing, n.drv.Err())
	}
	fd := [1]unix.PollFd{{Fd: int32(n.ring.err), Events: unix.POLLIN}}
	if k, err := unix.Poll(fd[:], 0); err == nil && k > 0 { // the counter stays: the ring does not heal
		return ErrRing
	}
	return nil
}

// Unsent is, after Close, the number of frames that were posted and that the kernel had not taken.
func (n *Net) Unsent() int { return n.unsent }

// Close stops the ring, waiting for no more than the frame in the worker's hand, gives all refs back and frees the memory. To have
// everything sent, Reap until Pending is 0 before.
func (n *Net) Close(free func(ref uint64)) error {
	if n.closed {
		return ErrClosed
	}
	base, err := n.ring.stop()
	if err == nil {
		n.unsent = int(n.posted - base)
	}
	// Closing the device ends the worker, whatever became of the ring: from here on nobody reads the chunks.
	n.ring.closeEvents()
	err = errors.Join(err, n.dev.close())
	n.closed, n.dev, n.ring = true, nil, &ring{kick: -1, call: -1, err: -1}
	n.free = n.free[:0]
	for slot := range n.slots {
		n.giveBack(uint32(slot), free) // one without a frame has no refs
	}
	return errors.Join(err, n.release())
}

// release frees what exists.
func (n *Net) release() (err error) {
	if n.ring != nil {
		n.ring.closeEvents()
	}
	if n.dev != nil {
		err = n.dev.close()
	}
	if n.mem != nil {
		err = errors.Join(err, n.mem.free())
	}
	n.ring, n.dev, n.mem = nil, nil, nil
	return err
}
