package xsk

// Config says what to open. Ring sizes are powers of two.
type Config struct {
	Ifindex, Queue int
	Chunks         int  // chunks in the UMEM
	ChunkSize      int  // bytes, 2048 or 4096; 256 of them are the headroom XDP keeps for itself
	RxSize, TxSize int  // entries
	FillSize       int  //
	CompSize       int  // at least TxSize is wise
	TxReserve      int  // chunks Refill leaves for AllocTx; 0: TxSize, but at most a quarter of the UMEM
	NeedWakeup     bool // ask the kernel to say when it wants to be woken
	Native         bool // the XDP program runs in the driver: zero-copy is tried first
}

// Desc is one frame in the UMEM: the offset of its first byte and its length.
type Desc struct {
	Addr uint64
	Len  uint32
}

// Stats are the kernel's counters of the socket (XDP_STATISTICS).
type Stats struct {
	RxDropped   uint64 // frames lost for another reason, for instance longer than a chunk
	RxInvalid   uint64 // bad descriptors in the fill ring
	TxInvalid   uint64 // bad descriptors in the TX ring
	RxRingFull  uint64 // frames lost: RX ring full
	FillEmpty   uint64 // frames lost: fill ring empty
	TxRingEmpty uint64 // wake-ups that found nothing to send
}

// Socket is one bound AF_XDP socket with its UMEM. Use it from one goroutine.
type Socket struct{}

// Open makes the socket and binds it to one queue of one interface.
func Open(c Config) (*Socket, error) { return nil, ErrUnsupported }

// FD returns the socket's file descriptor, readable when frames wait in the RX ring.
func (s *Socket) FD() int { return -1 }

// ZeroCopy reports whether the driver reads and writes the UMEM itself.
func (s *Socket) ZeroCopy() bool { return false }

// Close frees everything. Slices from Frame, Meta and AllocTx must not be used any more. Closing twice is no error.
func (s *Socket) Close() error { return nil }

// Recv takes up to len(d) frames from the RX ring. Each chunk is the caller's until Free or Send.
func (s *Socket) Recv(d []Desc) int { return 0 }

// Frame returns the frame's bytes.
func (s *Socket) Frame(d Desc) []byte { return nil }

// Meta returns the MetaSize bytes in front of the frame, nil when there is no room for them in the chunk.
func (s *Socket) Meta(d Desc) []byte { return nil }

// Free gives the chunk with address addr in it back to the pool.
func (s *Socket) Free(addr uint64) {}

// Refill moves chunks from the pool to the fill ring, as many as fit and the TX reserve allows, with one store of the
// producer index. It returns how many.
func (s *Socket) Refill() int { return 0 }

// AllocTx takes a chunk to build a frame in. Send or Free ends it.
func (s *Socket) AllocTx() (buf []byte, d Desc, ok bool) { return nil, Desc{}, false }

// Send queues the first n bytes of d's buffer. It returns false, and the chunk stays the caller's, when the TX ring is full.
func (s *Socket) Send(d Desc, n int) bool { return false }

// TxRoom returns how many frames AllocTx and Send take now.
func (s *Socket) TxRoom() int { return 0 }

// Flush makes what Send queued visible, wakes the kernel at most once, and takes completed chunks back.
func (s *Socket) Flush() error { return nil }

// NeedsRxWakeup reports whether the kernel wants a system call (a poll of FD) to go on receiving.
func (s *Socket) NeedsRxWakeup() bool { return false }

// Stats asks the kernel for the socket's counters.
func (s *Socket) Stats() (Stats, error) { return Stats{}, nil }

// FreeChunks returns how many chunks the pool holds.
func (s *Socket) FreeChunks() int { return 0 }
