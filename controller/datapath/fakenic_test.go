package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// hand is who has a chunk.
type hand uint8

const (
	inPool   hand = iota // nobody: free
	inFill               // the kernel, to receive into
	inRX                 // received, and waits for Recv
	inWorker             // the worker: table, output queues, guests
	inWire               // sent, and not completed
)

const (
	fakeChunk = 2048
	poison    = 0xdb // bytes of a chunk that was given back
)

var poisoned = bytes.Repeat([]byte{poison}, fakeChunk)

var errLink = errors.New("fake NIC: the link is down")

// fakeNIC is a NIC over plain memory. It knows in whose hand each chunk is, and fails the test when a chunk is given back by
// one who does not have it. A chunk that comes back is overwritten, so that whoever still reads it is found.
//
// Its chunks are a stack, as xsk.Socket's are. Sent frames are on the wire with Flush.
type fakeNIC struct {
	tb      testing.TB
	mu      sync.Mutex // the tests put frames in while a worker runs
	mem     []byte
	hands   []hand
	pool    []uint64
	fill    []uint64
	rx      []xsk.Desc
	tx      []xsk.Desc
	wire    [][]byte
	shown   int // of tx: Publish has shown them to the kernel
	reserve int // chunks that Refill leaves
	txSize  int
	busy    bool // the wire completes nothing
	onWay   bool // it has taken all that it has not completed
	down    bool // Flush fails
	fd, far int  // a pair of sockets: frames make fd readable
	refills int
	flushes int
	stats   xsk.Stats
	statErr error
	boom    any // Recv panics with it
	polls   int
	onPoll  func()     // in BusyPoll
	large   *fakeLarge // nil: all frames fit a chunk
}

func newFakeNIC(tb testing.TB, chunks int) *fakeNIC {
	n := &fakeNIC{tb: tb, mem: make([]byte, chunks*fakeChunk), hands: make([]hand, chunks), reserve: min(64, chunks/4), txSize: 64, fd: -1}
	for i := chunks - 1; i >= 0; i-- {
		n.pool = append(n.pool, uint64(i)*fakeChunk)
	}
	return n
}

// withFD gives the NIC a descriptor, for a worker that sleeps.
func (n *fakeNIC) withFD() *fakeNIC {
	n.tb.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		n.tb.Fatal(err)
	}
	n.fd, n.far = pair[0], pair[1]
	n.tb.Cleanup(func() {
		_ = unix.Close(n.fd)
		_ = unix.Close(n.far)
	})
	return n
}

// moves takes a chunk from one hand to another.
func (n *fakeNIC) moves(addr uint64, from, to hand) bool {
	i := addr / fakeChunk
	if i >= uint64(len(n.hands)) || n.hands[i] != from {
		return false
	}
	n.hands[i] = to
	return true
}

// inject receives a frame, with what XDP leaves in front of it, if anything. false: there is no chunk to receive into.
func (n *fakeNIC) inject(frame, meta []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.fill) == 0 {
		return false
	}
	a := n.fill[len(n.fill)-1]
	n.fill = n.fill[:len(n.fill)-1]
	n.moves(a, inFill, inRX)
	at := a + xsk.Headroom
	clear(n.mem[at-xsk.MetaSize : at])
	copy(n.mem[at-xsk.MetaSize:at], meta)
	copy(n.mem[at:a+fakeChunk], frame)
	n.rx = append(n.rx, xsk.Desc{Addr: at, Len: uint32(len(frame))})
	if n.fd >= 0 {
		_, _ = unix.Write(n.far, []byte{1})
	}
	return true
}

func (n *fakeNIC) Recv(d []xsk.Desc) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.boom != nil {
		panic(n.boom)
	}
	k := copy(d, n.rx)
	for _, d := range d[:k] {
		if n.large.has(d.Addr) {
			continue
		}
		n.moves(d.Addr, inRX, inWorker)
	}
	n.rx = n.rx[k:]
	if n.fd >= 0 && len(n.rx) == 0 {
		var b [256]byte
		for r, err := unix.Read(n.fd, b[:]); err == nil && r > 0; r, err = unix.Read(n.fd, b[:]) {
		}
	}
	return k
}

func (n *fakeNIC) frame(d xsk.Desc) []byte {
	if n.large.has(d.Addr) {
		return n.large.frame(d)
	}
	end := d.Addr + uint64(d.Len)
	if d.Len == 0 || end > uint64(len(n.mem)) || d.Addr/fakeChunk != (end-1)/fakeChunk {
		return nil
	}
	return n.mem[d.Addr:end:end]
}

func (n *fakeNIC) Chunks() xsk.Chunks { return xsk.NewChunks(n.mem, fakeChunk) }

func (n *fakeNIC) Received(d xsk.Desc) (frame, meta []byte) {
	if n.large.has(d.Addr) {
		meta = n.large.frame(xsk.Desc{Addr: d.Addr - xsk.MetaSize, Len: xsk.MetaSize})
	} else if d.Addr < uint64(len(n.mem)) && d.Addr%fakeChunk >= xsk.MetaSize {
		meta = n.mem[d.Addr-xsk.MetaSize : d.Addr : d.Addr]
	}
	return n.frame(d), meta
}

func (n *fakeNIC) FreeAll(refs []uint64) {
	for _, r := range refs {
		n.Free(r)
	}
}

func (n *fakeNIC) Free(ref uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.large.has(ref) {
		n.large.give(n.tb, ref)
		return
	}
	a := ref / fakeChunk * fakeChunk
	if !n.moves(ref, inWorker, inPool) {
		n.tb.Errorf("chunk %d was given back by one who does not have it", ref/fakeChunk)
		return
	}
	copy(n.mem[a:a+fakeChunk], poisoned)
	n.pool = append(n.pool, a)
}

func (n *fakeNIC) take() (addr uint64, ok bool) {
	if len(n.pool) == 0 {
		return 0, false
	}
	addr = n.pool[len(n.pool)-1]
	n.pool = n.pool[:len(n.pool)-1]
	return addr, true
}

func (n *fakeNIC) Refill() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refills++
	k := 0
	for len(n.pool) > n.reserve {
		a, _ := n.take()
		n.moves(a, inPool, inFill)
		n.fill = append(n.fill, a)
		k++
	}
	return k
}

// keep lets Refill leave k chunks for what is sent.
func (n *fakeNIC) keep(k int) {
	n.reserve = k
	for len(n.pool) < k {
		a := n.fill[0]
		n.fill = n.fill[1:]
		n.moves(a, inFill, inPool)
		n.pool = append(n.pool, a)
	}
}

func (n *fakeNIC) TxRoom() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return max(0, min(n.txSize-len(n.tx), len(n.pool)))
}

func (n *fakeNIC) AllocTx() (buf []byte, d xsk.Desc, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.take()
	if !ok {
		return nil, xsk.Desc{}, false
	}
	n.moves(a, inPool, inWorker)
	d = xsk.Desc{Addr: a + xsk.Headroom, Len: fakeChunk - xsk.Headroom}
	return n.frame(d), d, true
}

func (n *fakeNIC) Send(d xsk.Desc, k int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	d.Len = uint32(k)
	if len(n.tx) >= n.txSize || n.frame(d) == nil {
		return false
	}
	if n.large.has(d.Addr) {
		return n.large.send(n, d)
	}
	if !n.moves(d.Addr, inWorker, inWire) {
		n.tb.Errorf("chunk %d was sent by one who does not have it", d.Addr/fakeChunk)
		return false
	}
	n.tx = append(n.tx, d)
	return true
}

func (n *fakeNIC) Publish() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shown = len(n.tx)
}

func (n *fakeNIC) BusyPoll() {
	n.polls++
	if n.onPoll != nil {
		n.onPoll()
	}
}

func (n *fakeNIC) TxPending() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.tx)
}

func (n *fakeNIC) TxUnsent() bool { return n.TxPending() > 0 && !n.onWay }

func (n *fakeNIC) Flush() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.flushes++
	n.shown = len(n.tx)
	if n.down {
		return errLink
	}
	if n.busy {
		return nil
	}
	for _, d := range n.tx {
		if f, last := n.large.piece(d); f != nil {
			if last {
				n.wire = append(n.wire, f)
			}
			continue
		}
		n.wire = append(n.wire, slices.Clone(n.frame(d)))
		a := d.Addr / fakeChunk * fakeChunk
		n.moves(a, inWire, inPool)
		n.pool = append(n.pool, a)
	}
	n.tx, n.shown = n.tx[:0], 0
	return nil
}

func (n *fakeNIC) FD() int { return n.fd }

func (n *fakeNIC) Stats() (xsk.Stats, error) { return n.stats, n.statErr }

// set changes the NIC while a worker runs.
func (n *fakeNIC) set(change func(n *fakeNIC)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n)
}

// sent returns the frames on the wire and forgets them.
func (n *fakeNIC) sent() [][]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.wire
	n.wire = nil
	return w
}

// with counts the chunks in one hand.
func (n *fakeNIC) with(h hand) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.withLocked(h)
}

// conserved tells whether every chunk is in one hand: those of the worker are in its table, in its output queues or in its
// guests, and each of them once.
func (n *fakeNIC) conserved(w *Worker) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	with := n.withLocked(inWorker) + n.large.out()
	if a, b := len(n.pool), len(n.fill); n.large == nil && a+b+len(n.rx)+len(n.tx)+with != len(n.hands) {
		return fmt.Errorf("%d chunks: %d in the pool, %d to fill, %d received, %d sent, %d with the worker",
			len(n.hands), a, b, len(n.rx), len(n.tx), with)
	}
	seen := make([]bool, len(n.hands))
	count := 0
	has := func(ref uint64, who string, p *port) error {
		if n.large.has(ref) {
			count++
			return n.large.one(ref)
		}
		i := ref / fakeChunk
		switch {
		case seen[i]:
			return fmt.Errorf("chunk %d is in two hands, one of them %s %d", i, who, p.Index)
		case n.hands[i] != inWorker:
			return fmt.Errorf("chunk %d of %s %d is in hand %d", i, who, p.Index, n.hands[i])
		}
		seen[i] = true
		count++
		return nil
	}
	for _, p := range w.list {
		chunks := 0
		for i := range p.out.n {
			for _, r := range p.out.at(i).Refs {
				if err := has(r, "queue", p); err != nil {
					return err
				}
				chunks++
			}
		}
		if chunks != p.out.chunks {
			return fmt.Errorf("queue %d has %d chunks and counts %d", p.Index, chunks, p.out.chunks)
		}
		held := 0
		if g := fakeOf(p.guest); g != nil {
			for _, r := range g.held {
				if err := has(r, "guest", p); err != nil {
					return err
				}
			}
			held = len(g.held)
		}
		if held != p.held {
			return fmt.Errorf("guest %d holds %d chunks, the worker thinks %d", p.Index, held, p.held)
		}
	}
	if with != count+w.table.Held() {
		return fmt.Errorf("the worker has %d chunks: %d in queues and guests, %d in the table", with, count, w.table.Held())
	}
	return nil
}

func (n *fakeNIC) withLocked(h hand) int {
	k := 0
	for _, is := range n.hands {
		if is == h {
			k++
		}
	}
	return k
}

// metaOf is what the XDP program writes in front of a frame for a port (bpf/abi.h).
func metaOf(port uint32, frame []byte) []byte {
	m := make([]byte, xsk.MetaSize)
	in := parse(frame)
	encodeMeta(m, port, &in, len(frame))
	return m
}

func encodeMeta(m []byte, port uint32, in *packet.Info, length int) {
	le := binary.LittleEndian
	copy(m, "RSC1")
	le.PutUint32(m[4:], port)
	le.PutUint32(m[8:], uint32(length))
	for i, v := range []uint32{in.L3, in.L4, in.Payload, in.PayloadLen} {
		le.PutUint16(m[12+2*i:], uint16(v))
	}
	m[22], m[23], m[24], m[25] = in.Family, uint8(in.Verdict), 0, in.TCPFlags
	if in.Keyed {
		m[24] |= meta.Keyed
	}
	if in.Tagged {
		m[24] |= meta.Tagged
		le.PutUint16(m[20:], in.TCI)
	}
}
