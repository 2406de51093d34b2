//go:build !race

package datapath

import (
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/xsk"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// What the worker's work costs in the simulator, in ns. Time there is counted, not measured, so a share is the same in every run and on
// every machine. The figures are those of a slow core in AF_XDP's copy mode.
const (
	costTurn  = 500  // a step with nothing to do
	costRx    = 1000 // a frame, from the RX ring to its guest
	costTx    = 1500 // a packet, from its chunk to the wire, or to the guest beside it
	costPiece = 9    // of a descriptor chain, looked at
	costLook  = 100  // at a guest or a source, whatever is there
	costBytes = 10   // bytes that are copied in a ns
	simNap    = 2000 // a sleep with nothing to do
)

// sim is a worker of full size, as an uplink makes it, with its NIC, guests and sources, all of them on one counted clock.
type sim struct {
	tb      testing.TB
	w       *Worker
	now     int64
	nic     *simNIC
	vms     []*simVM
	longest int64 // turn
	spins   int   // steps that did nothing and asked for another
}

const (
	simChunks = 8192
	simRing   = 2048 // RX and fill
	simTxRing = 1024
	simSlots  = 256 // of a ring of vhost-net
)

// simNIC is a queue whose wire takes perFrame for each frame; 0: all that is queued goes with Flush, as in copy mode.
type simNIC struct {
	s        *sim
	mem      []byte
	free     []uint64
	fill     int // chunks that the kernel may receive into: any will do
	rx       []xsk.Desc
	streams  []*simStream
	tx       []simSent
	perFrame int64
	busyTill int64
}

type simSent struct {
	addr uint64
	at   int64 // when it has left
}

// simStream is what comes from the wire for one VM.
type simStream struct {
	to     *simVM
	every  int64 // ns
	next   int64
	frames [][]byte // again and again
	n      int

	timed   bool // the way of each is timed: none may be lost
	came    []int64
	longest int64
}

// simVM is a VM's two sides.
type simVM struct {
	s     *sim
	index uint32

	// What it receives. came is counted at the wire, lost at a full RX ring.
	came, lost int
	guest      *simGuest

	// What it sends.
	sources []*simSource
	sent    int // packets
}

func newSim(tb testing.TB, edits ...func(n *simNIC)) *sim {
	tb.Helper()
	s := &sim{tb: tb}
	s.nic = &simNIC{s: s, mem: make([]byte, simChunks*fakeChunk)}
	for i := range uint64(simChunks) {
		s.nic.free = append(s.nic.free, i*fakeChunk)
	}
	for _, e := range edits {
		e(s.nic)
	}
	var err error
	s.w, err = New(Config{
		MTU: 1500, NIC: s.nic, WakeFD: -1, Chunks: simChunks, Slots: 4096, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Clock: func() int64 { return s.now }, Trouble: func() {},
	})
	if err != nil {
		tb.Fatal(err)
	}
	s.nic.Refill()
	return s
}

// vm adds a VM and starts it. edit says what kind it is; without one it takes all and sends nothing.
func (s *sim) vm(edits ...func(v *simVM)) *simVM {
	s.tb.Helper()
	v := &simVM{s: s, index: uint32(len(s.vms))}
	v.guest = &simGuest{vm: v, pieces: 1}
	for _, e := range edits {
		e(v)
	}
	s.vms = append(s.vms, v)
	if err := s.w.addPort(PortConfig{Index: v.index, Addr: Addr{MAC: macOf(v.index)}}); err != nil {
		s.tb.Fatal(err)
	}
	s.start(v)
	return v
}

func (s *sim) start(v *simVM) {
	s.tb.Helper()
	var sources []Source
	for _, src := range v.sources {
		sources = append(sources, src)
	}
	if err := s.w.startPort(v.index, v.guest, sources, rules()); err != nil {
		s.tb.Fatal(err)
	}
}

// run lets so much time pass.
func (s *sim) run(d time.Duration) {
	s.tb.Helper()
	for end := s.now + int64(d); s.now < end; {
		begin, did := s.now, s.w.cnt.RxFrames+s.w.cnt.TxSlots
		s.now += costTurn
		if !s.w.step() {
			s.now += simNap
		} else if did == s.w.cnt.RxFrames+s.w.cnt.TxSlots {
			s.spins++
		}
		s.longest = max(s.longest, s.now-begin)
	}
}

// measure is what each VM received and sent in so much time, after it has come to its stride.
func (s *sim) measure(d time.Duration) {
	s.tb.Helper()
	s.run(d / 4)
	s.longest, s.spins = 0, 0
	for _, v := range s.vms {
		v.came, v.lost, v.sent, v.guest.got = 0, 0, 0, 0
	}
	s.run(d)
}

// receives lets so many packets a second come for a VM: a train of one flow, or single ones.
func (v *simVM) receives(rate int, frames ...[]byte) *simStream {
	st := &simStream{to: v, every: int64(time.Second) / int64(rate), next: v.s.now, frames: frames}
	v.s.nic.streams = append(v.s.nic.streams, st)
	v.guest.from = st
	return st
}

func (v *simVM) datagram() []byte { return pt.UDP{DstMAC: macOf(v.index), Len: 200}.Frame() }

// trainOf is n segments that become one superframe.
func (v *simVM) trainOf(n int) [][]byte { return train(to(v.index, 1448), n) }

// sends gives a VM virtqueues that are always full.
func sends(queues, pieces int, hdr virtio.NetHdr, frame func(v *simVM) []byte) func(*simVM) {
	return func(v *simVM) {
		for range queues {
			v.sources = append(v.sources, &simSource{vm: v, hdr: hdr, data: frame(v), pieces: pieces})
		}
	}
}

// The kinds of senders.
func bulk(queues int) func(*simVM) { return sends(queues, 19, tsoHdr(1448), tsoOf(45*1448)) }
func cruel(queues int) func(*simVM) {
	return sends(queues, 19, tsoHdr(4), tsoOf(4*maxTxPackets))
}
func small(queues int) func(*simVM) {
	return sends(queues, 2, noHdr, func(v *simVM) []byte { return from(v.index, wire, 60).Frame() })
}
func longChains(queues int) func(*simVM) {
	return sends(queues, 1024, noHdr, func(v *simVM) []byte { return from(v.index, wire, 1000).Frame() })
}

func tsoHdr(size uint16) virtio.NetHdr {
	return virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: size, CsumStart: 34, CsumOffset: 16}
}

func tsoOf(n int) func(v *simVM) []byte {
	return func(v *simVM) []byte { return from(v.index, wire, n).Frame() }
}

// The kinds of receivers.
func stuck(v *simVM)           { v.guest.stuck = true }
func chopped(v *simVM)         { v.guest.pieces, v.guest.cut = 1024, true }
func onTap(v *simVM)           { v.guest.ring, v.guest.gives = true, 100*time.Microsecond }
func stuckTap(v *simVM)        { v.guest.ring, v.guest.gives = true, -1 }
func (n *simNIC) spend(ns int) { n.s.now += int64(ns) }
func (n *simNIC) Recv(d []xsk.Desc) int {
	n.arrive()
	k := copy(d, n.rx)
	n.rx = n.rx[k:]
	n.spend(k * costRx)
	return k
}

// arrive receives what has come until now, in the order in which it came.
func (n *simNIC) arrive() {
	for {
		var first *simStream
		for _, st := range n.streams {
			if st.next <= n.s.now && (first == nil || st.next < first.next) {
				first = st
			}
		}
		if first == nil {
			return
		}
		first.next += first.every
		f := first.frames[first.n%len(first.frames)]
		first.n++
		first.to.came++
		if n.fill == 0 || len(n.rx) >= simRing {
			first.to.lost++
			continue
		}
		n.fill--
		if first.timed {
			first.came = append(first.came, first.next-first.every)
		}
		a := n.take()
		clear(n.mem[a+xsk.Headroom-xsk.MetaSize : a+xsk.Headroom])
		n.rx = append(n.rx, xsk.Desc{Addr: a + xsk.Headroom, Len: uint32(copy(n.mem[a+xsk.Headroom:a+fakeChunk], f))})
	}
}

func (n *simNIC) take() uint64 {
	a := n.free[len(n.free)-1]
	n.free = n.free[:len(n.free)-1]
	return a
}

// pool is how many chunks nobody has: those of the fill ring are counted, not moved.
func (n *simNIC) pool() int { return len(n.free) - n.fill }

func (n *simNIC) Chunks() xsk.Chunks { return xsk.NewChunks(n.mem, fakeChunk) }

func (n *simNIC) Received(d xsk.Desc) (frame, meta []byte) {
	return n.mem[d.Addr : d.Addr+uint64(d.Len)], n.mem[d.Addr-xsk.MetaSize : d.Addr]
}

func (n *simNIC) FreeAll(refs []uint64) {
	for _, r := range refs {
		n.Free(r)
	}
}

func (n *simNIC) Free(ref uint64) { n.free = append(n.free, ref/fakeChunk*fakeChunk) }

func (n *simNIC) Refill() int {
	k := max(0, min(n.pool()-max(0, simTxRing-len(n.tx)), simRing-n.fill))
	n.fill += k
	return k
}

func (n *simNIC) reap() {
	for len(n.tx) > 0 && n.tx[0].at <= n.s.now {
		n.Free(n.tx[0].addr)
		n.tx = n.tx[1:]
	}
}

func (n *simNIC) TxRoom() int {
	n.reap()
	return max(0, min(simTxRing-len(n.tx), n.pool()))
}

func (n *simNIC) AllocTx() ([]byte, xsk.Desc, bool) {
	if n.pool() <= 0 {
		return nil, xsk.Desc{}, false
	}
	d := xsk.Desc{Addr: n.take() + xsk.Headroom, Len: fakeChunk - xsk.Headroom}
	return n.mem[d.Addr : d.Addr+uint64(d.Len)], d, true
}

func (n *simNIC) Send(d xsk.Desc, k int) bool {
	if len(n.tx) >= simTxRing {
		return false
	}
	n.spend(costTx)
	n.s.vms[n.mem[d.Addr+11]].sent++
	n.busyTill = max(n.busyTill, n.s.now) + n.perFrame
	n.tx = append(n.tx, simSent{d.Addr, n.busyTill})
	return true
}

func (n *simNIC) Publish()                  {}
func (n *simNIC) BusyPoll()                 {}
func (n *simNIC) TxPending() int            { n.reap(); return len(n.tx) }
func (n *simNIC) TxUnsent() bool            { return n.TxPending() > 0 }
func (n *simNIC) Flush() error              { n.spend(costLook); n.reap(); return nil }
func (n *simNIC) FD() int                   { return -1 }
func (n *simNIC) Stats() (xsk.Stats, error) { return xsk.Stats{}, nil }
