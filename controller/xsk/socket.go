package xsk

// Config says what to open. Ring sizes are powers of two.
type Config struct {
	Ifindex, Queue int  // looked up in the network namespace of the calling thread
	Chunks         int  // chunks in the UMEM
	Frames         int  // buffers for frames that no chunk holds; 0: none, and such frames do not come
	FrameSize      int  // bytes of such a buffer, FrameFor
	ChunkSize      int  // bytes, 2048 or 4096; XDP keeps 256 of them in front of each frame
	RxSize, TxSize int  // entries
	FillSize       int  //
	CompSize       int  // at least TxSize: a full completion ring stops sending
	TxReserve      int  // chunks Refill leaves for AllocTx; 0: TxSize, but at most a quarter of the UMEM
	NeedWakeup     bool // let the kernel say when it wants to be woken: fewer system calls
	Native         bool // the XDP program runs in the driver, so zero-copy is tried first
	BusyPoll       bool // BusyPoll is going to be called instead of waiting
}

// Desc is one frame in the UMEM: the offset of its first byte, and its length in bytes.
type Desc struct {
	Addr uint64
	Len  uint32
}

// MetaSize is the length of what Meta returns.
const MetaSize = 32

// Headroom is what XDP keeps free in front of a received frame (XDP_PACKET_HEADROOM); AllocTx leaves as much.
const Headroom = 256

// Socket is one bound AF_XDP socket with its UMEM. Use it from one goroutine.
type Socket struct {
	parts      Parts
	begin      func() error // what Begin has to do; nil: nothing any more
	zeroCopy   bool
	mapped     [][]byte // what Close unmaps
	umem       *umem
	rings          // empty until Begin
	reserve    int // chunks that Refill leaves
	txPending  int // sent and not completed
	txQueued   bool
	txBudget   int // frames the kernel sends per wake-up at most
	alwaysWake bool
	unwoken    bool // adopted: nobody knows whether the last owner woke the kernel
	batch      [64]uint64
	chain      chains
}

// FD returns the socket's file descriptor, readable when frames wait in the RX ring.
func (s *Socket) FD() int { return s.parts.Socket }

// ZeroCopy reports whether the driver reads and writes the UMEM itself.
func (s *Socket) ZeroCopy() bool { return s.zeroCopy }

// Recv takes up to len(d) frames from the RX ring. Each chunk is the caller's until Free or Send. An entry that names a chunk which
// the kernel did not have to receive into, as a driver with a fault makes it, comes as a Desc without chunk and frame.
//
// With Config.Frames a frame that came in several chunks is one Desc, of a buffer: see chain.go.
func (s *Socket) Recv(d []Desc) int {
	if s.umem.large.size > 0 {
		return s.recvChains(d)
	}
	n := s.rx.read(d)
	if n == 0 {
		return 0
	}
	for i := range d[:n] {
		if !s.umem.received(d[i].Addr) {
			d[i] = Desc{Addr: nowhere}
		}
	}
	s.rx.release()
	return n
}

// Received returns the bytes of a frame, and the MetaSize bytes in front of it. They may be written, which does not touch a
// neighbour's chunk. Either is nil when it would not lie in one chunk of ours. Refill makes what is in front of a frame
// unreadable as metadata, so that what is found here belongs to this frame.
func (s *Socket) Received(d Desc) (frame, meta []byte) { return s.umem.frame(d), s.umem.meta(d) }

// Memory is the whole UMEM, and the buffers behind it, for one who shares it with the kernel by another way. It is unmapped by Close.
func (s *Socket) Memory() []byte { return s.umem.mem }

// Chunks are the UMEM's chunks, without the buffers behind them. They are unmapped by Close.
func (s *Socket) Chunks() Chunks { return NewChunks(s.umem.mem[:s.umem.end], s.umem.chunkSize()) }

// nowhere lies in no chunk: Received has nothing of it, and Free ignores it.
const nowhere = ^uint64(0)

// Free gives the chunk with address addr in it back to the pool. Addresses that are not out are ignored.
func (s *Socket) Free(addr uint64) { s.umem.give(addr) }

// FreeAll gives the chunks of many addresses back.
func (s *Socket) FreeAll(addrs []uint64) {
	for _, a := range addrs {
		s.umem.give(a)
	}
}

// Refill moves chunks from the pool to the fill ring, as many as fit and the TX reserve allows, with one store of the
// producer index. It returns how many.
func (s *Socket) Refill() int {
	total := 0
	for {
		n := min(len(s.umem.free)-max(0, s.reserve-s.txPending), len(s.batch))
		if n <= 0 {
			break
		}
		n = min(n, int(s.fill.room(uint32(n))))
		if n == 0 {
			break
		}
		for range n {
			a, _ := s.umem.top()
			s.umem.clearMeta(Desc{Addr: a + Headroom})
			s.umem.lend(a, inFill, s.fill.cachedP)
			s.fill.entries[s.fill.cachedP&s.fill.mask] = a
			s.fill.cachedP++
		}
		total += n
	}
	if total > 0 {
		s.fill.publish()
	}
	return total
}

// AllocTx takes a chunk to build a frame in; buf is all of it behind Headroom. Send or Free ends it. ok is false when the
// pool is empty.
func (s *Socket) AllocTx() (buf []byte, d Desc, ok bool) {
	a, ok := s.umem.take()
	if !ok {
		return nil, Desc{}, false
	}
	size := s.umem.chunkSize()
	d = Desc{Addr: a + Headroom, Len: uint32(size - Headroom)}
	return s.umem.frame(d), d, true
}

// Send queues the first n bytes of d for the wire. It returns false, and the chunk stays the caller's, when the TX ring is
// full or n bytes are not in the chunk. The chunk comes back to the pool by itself.
//
// A frame in a buffer goes in as many chunks as it needs, and its buffer is free at once.
func (s *Socket) Send(d Desc, n int) bool {
	d.Len = uint32(n)
	if s.umem.large.has(d.Addr) {
		return s.sendChain(d)
	}
	if n <= 0 || s.umem.frame(d) == nil || s.tx.room(1) == 0 {
		return false
	}
	s.umem.lend(d.Addr, inTX, s.tx.cachedP)
	s.tx.put(d)
	s.txPending++
	s.txQueued = true
	return true
}

// TxRoom returns how many frames AllocTx and Send take now. It takes completed chunks back first.
func (s *Socket) TxRoom() int {
	if s.txPending > 0 {
		s.reap()
	}
	return min(int(s.tx.room(s.tx.size)), len(s.umem.free))
}

// Publish makes what Send queued visible to the kernel without a system call. From then on a frame goes out also when this
// process dies: the kernel may not look before it is woken, and the heir's Flush wakes it.
func (s *Socket) Publish() {
	if s.txQueued {
		s.tx.publish()
		s.txQueued = false
	}
}

// Flush does what Publish does, wakes the kernel if it wants that, and takes completed chunks back. In copy mode that is
// one system call per 32 frames before Linux 6.18. A kernel that is busy is no error: what is left goes with the next Flush,
// so call it again while TxUnsent says so. Error: ErrDown.
func (s *Socket) Flush() error {
	s.Publish()
	var err error
	if s.TxUnsent() && (s.unwoken || s.alwaysWake || s.tx.needsWakeup()) {
		err = s.wake()
	}
	if s.unwoken {
		s.unwoken = false
		_ = s.wakeRx() // a link that is down wants nothing
	}
	s.reap()
	return err
}

// TxPending returns how many frames were sent and are not completed.
func (s *Socket) TxPending() int { return s.txPending }

// TxUnsent reports whether a call may find something to send. In copy mode the kernel wants one whenever it is asked, also while all that it has
// taken is on its way and nothing is left; a driver may want one in order to complete.
func (s *Socket) TxUnsent() bool {
	return s.txPending > 0 && (s.zeroCopy || s.unwoken || !s.tx.consumed())
}

func (s *Socket) reap() {
	for s.txPending > 0 {
		n := s.comp.read(s.batch[:])
		if n == 0 {
			return
		}
		for _, a := range s.batch[:n] {
			s.umem.back(a)
		}
		s.comp.release()
		for _, a := range s.batch[:n] {
			s.umem.give(a)
		}
		s.txPending -= n
		if n < len(s.batch) {
			return
		}
	}
}

// NeedsRxWakeup reports whether the kernel wants a system call (a poll of FD does) to go on receiving.
func (s *Socket) NeedsRxWakeup() bool { return s.fill.needsWakeup() }

// FreeChunks returns how many chunks the pool holds.
func (s *Socket) FreeChunks() int { return len(s.umem.free) }
