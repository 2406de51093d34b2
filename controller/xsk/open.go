package xsk

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A socket that was closed leaves its queue a moment later, in a kernel work queue; Open waits that long for the queue.
const (
	busyTries = 2000
	busyPause = 500 * time.Microsecond
)

const maxTxBudget = 32 // frames the kernel sends per wake-up unless told otherwise (net/xdp/xsk.c TX_BATCH_SIZE)

func (c *Config) check() error {
	switch {
	case c.ChunkSize != SmallChunk && c.ChunkSize != LargeChunk:
		return fmt.Errorf("chunk size %d: 2048 or 4096: %w", c.ChunkSize, ErrConfig)
	case c.Chunks <= 0 || c.Chunks > 1<<20:
		return fmt.Errorf("%d chunks: 1 to 1048576: %w", c.Chunks, ErrConfig)
	case c.Queue < 0 || c.Ifindex <= 0:
		return fmt.Errorf("interface %d, queue %d: %w", c.Ifindex, c.Queue, ErrConfig)
	case c.TxReserve < 0 || c.TxReserve > c.Chunks:
		return fmt.Errorf("TX reserve %d of %d chunks: %w", c.TxReserve, c.Chunks, ErrConfig)
	}
	if c.Frames < 0 || c.Frames > 1<<20 || c.Frames > 0 && (c.FrameSize <= c.ChunkSize || c.FrameSize > MostFrame || c.FrameSize%frameGrain != 0) {
		return fmt.Errorf("%d buffers of %d bytes: %w", c.Frames, c.FrameSize, ErrConfig)
	}
	for _, r := range []struct {
		name string
		size int
	}{{"RX", c.RxSize}, {"TX", c.TxSize}, {"fill", c.FillSize}, {"completion", c.CompSize}} {
		if r.size < 2 || r.size > 1<<20 || r.size&(r.size-1) != 0 {
			return fmt.Errorf("%s ring of %d entries: not a power of two: %w", r.name, r.size, ErrConfig)
		}
	}
	return nil
}

func (c *Config) reserve() int {
	if c.TxReserve > 0 {
		return c.TxReserve
	}
	return min(c.TxSize, c.Chunks/4)
}

// Open makes the socket and binds it to one queue of one interface. The fill ring is empty: call Refill. The XDP program
// need not be attached yet. Errors: ErrConfig, ErrPermission, ErrNoDevice, ErrBusy, ErrUnsupported, ErrNoMemory, ErrDown.
func Open(c Config) (*Socket, error) { return begun(OpenAhead(c)) }

// OpenAhead is Open for a queue that another socket still has: it makes the memory and the rings, which takes milliseconds. Begin binds
// the socket, once the other is closed. Until then it receives and sends nothing.
func OpenAhead(c Config) (s *Socket, err error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("xsk: %w", err)
	}
	s = newSocket(c, Parts{-1, -1, -1})
	defer func() {
		if err != nil {
			s.Close()
			s, err = nil, fmt.Errorf("xsk: interface %d queue %d: %w", c.Ifindex, c.Queue, err)
		}
	}()
	if s.parts.Socket, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return s, explain("socket", err)
	}
	if err := s.registerUmem(c); err != nil {
		return s, err
	}
	if err := s.sizeRings(c); err != nil {
		return s, err
	}
	ours, err := s.mapRings(c)
	if err != nil {
		return s, err
	}
	s.raiseTxBudget(c)
	// The socket's own limit on memory in flight must not be the one that stops sending: the TX ring's size is the limit. Where
	// the kernel refuses, EAGAIN slows sending down instead.
	_ = unix.SetsockoptInt(s.parts.Socket, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, c.TxSize*2*c.ChunkSize)
	s.begin = func() (err error) {
		if c.BusyPoll {
			err = s.preferPoll(true)
		}
		if err == nil {
			err = s.bind(c)
		}
		if err == nil {
			err = s.readMode()
		}
		if err != nil {
			return fmt.Errorf("xsk: interface %d queue %d: %w", c.Ifindex, c.Queue, err)
		}
		s.rings = ours
		s.umem = newUmem(s.umem.mem, c.ChunkSize, c.FrameSize, s.umem.owner)
		return nil
	}
	return s, nil
}

// newSocket is a Socket without memory and rings.
func newSocket(c Config, p Parts) *Socket {
	return &Socket{parts: p, umem: &umem{}, rings: noRings(), reserve: c.reserve(), alwaysWake: !c.NeedWakeup, txBudget: maxTxBudget}
}

func (s *Socket) raiseTxBudget(c Config) {
	if unix.SetsockoptInt(s.parts.Socket, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, c.TxSize) == nil { // Linux 6.18
		s.txBudget = c.TxSize
	}
}

func (s *Socket) readMode() error {
	opts, err := unix.GetsockoptInt(s.parts.Socket, unix.SOL_XDP, unix.XDP_OPTIONS)
	if err != nil {
		return explain("options", err)
	}
	s.zeroCopy = opts&unix.XDP_OPTIONS_ZEROCOPY != 0
	return nil
}

// registerUmem makes the shared memory and gives the chunks to the socket.
func (s *Socket) registerUmem(c Config) (err error) {
	if s.parts.Umem, err = newMemory(umemName, c.umemSize()); err != nil {
		return explain("UMEM memory", err)
	}
	if s.parts.Owners, err = newMemory(ownersName, c.ownersSize()); err != nil {
		return explain("memory of the chunks' owners", err)
	}
	n, err := s.mapMemory(c)
	if err != nil {
		return err
	}
	if err := n.write(c, s.parts); err != nil {
		return err
	}
	return explain("UMEM", setUmem(s.parts.Socket, s.umem.mem[:c.chunksSize()], c.ChunkSize))
}

// sizeRings makes the four rings in the kernel.
func (s *Socket) sizeRings(c Config) error {
	for _, r := range []struct {
		what      string
		opt, size int
	}{
		{"RX ring", unix.XDP_RX_RING, c.RxSize}, {"TX ring", unix.XDP_TX_RING, c.TxSize},
		{"fill ring", unix.XDP_UMEM_FILL_RING, c.FillSize}, {"completion ring", unix.XDP_UMEM_COMPLETION_RING, c.CompSize},
	} {
		if err := unix.SetsockoptInt(s.parts.Socket, unix.SOL_XDP, r.opt, r.size); err != nil {
			return explain(r.what, err)
		}
	}
	return nil
}

// mapRings maps the four rings, at the positions that are in them.
func (s *Socket) mapRings(c Config) (r rings, err error) {
	off, err := mmapOffsets(s.parts.Socket)
	if err != nil {
		return r, explain("ring offsets", err)
	}
	if r.rx, err = mapDescRing(s, unix.XDP_PGOFF_RX_RING, off.Rx, c.RxSize); err != nil {
		return r, explain("RX ring", err)
	}
	if r.tx, err = mapDescRing(s, unix.XDP_PGOFF_TX_RING, off.Tx, c.TxSize); err != nil {
		return r, explain("TX ring", err)
	}
	if r.fill, err = mapAddrRing(s, unix.XDP_UMEM_PGOFF_FILL_RING, off.Fr, c.FillSize); err != nil {
		return r, explain("fill ring", err)
	}
	if r.comp, err = mapAddrRing(s, unix.XDP_UMEM_PGOFF_COMPLETION_RING, off.Cr, c.CompSize); err != nil {
		return r, explain("completion ring", err)
	}
	return r, nil
}

func (s *Socket) mapRing(pgoff int64, length int) ([]byte, error) {
	m, err := unix.Mmap(s.parts.Socket, pgoff, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err == nil {
		s.mapped = append(s.mapped, m)
	}
	return m, err
}

func mapAddrRing(s *Socket, pgoff int64, off unix.XDPRingOffset, size int) (addrRing, error) {
	m, err := s.mapRing(pgoff, int(off.Desc)+size*addrSize)
	if err != nil {
		return addrRing{}, err
	}
	return newAddrRing(m, off, size), nil
}

func mapDescRing(s *Socket, pgoff int64, off unix.XDPRingOffset, size int) (descRing, error) {
	m, err := s.mapRing(pgoff, int(off.Desc)+size*descSize)
	if err != nil {
		return descRing{}, err
	}
	return newDescRing(m, off, size), nil
}

// bind asks for zero-copy by asking for nothing: the kernel then tries the driver and falls back to copying. In generic mode
// only copying is possible, and said so.
func (s *Socket) bind(c Config) error {
	var flags uint16
	if c.NeedWakeup {
		flags |= unix.XDP_USE_NEED_WAKEUP
	}
	if !c.Native {
		flags |= unix.XDP_COPY
	}
	if c.Frames > 0 {
		flags |= unix.XDP_USE_SG
	}
	addr := &unix.SockaddrXDP{Flags: flags, Ifindex: uint32(c.Ifindex), QueueID: uint32(c.Queue)}
	for try := 0; ; try++ {
		err := unix.Bind(s.parts.Socket, addr)
		if !errors.Is(err, unix.EBUSY) || try >= busyTries {
			return explain("bind", err)
		}
		time.Sleep(busyPause)
	}
}

// Close frees everything. Slices from Received and AllocTx must not be used any more. Closing twice is no error. The socket
// goes on receiving and sending when somebody else holds its Parts.
func (s *Socket) Close() error {
	errs := []error{s.parts.close()}
	s.parts = Parts{-1, -1, -1}
	for _, m := range s.mapped {
		errs = append(errs, unix.Munmap(m))
	}
	s.mapped = nil
	s.umem, s.rings, s.begin = &umem{}, noRings(), nil
	s.txPending, s.txQueued = 0, false
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("xsk: close: %w", err)
	}
	return nil
}

// explain says what an errno of the AF_XDP calls means to the operator (net/xdp/xsk.c, xdp_umem.c, xsk_buff_pool.c).
func explain(what string, err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err
	}
	kind := error(nil)
	switch errno {
	case unix.EPERM, unix.EACCES:
		kind = ErrPermission
	case unix.EBUSY:
		kind = ErrBusy
	case unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT, unix.EOPNOTSUPP, unix.ENOPROTOOPT:
		kind = ErrUnsupported
	case unix.ENOBUFS, unix.ENOMEM, unix.ENOSPC:
		kind = ErrNoMemory
	case unix.ENODEV, unix.ENXIO:
		kind = ErrNoDevice
	case unix.EINVAL:
		if what == "bind" {
			kind = ErrNoDevice // the usual one: the interface has no such queue
		} else {
			kind = ErrUnsupported
		}
	case unix.ENETDOWN:
		kind = ErrDown
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, kind, err)
}
