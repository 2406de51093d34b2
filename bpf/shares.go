package bpf

import (
	"fmt"
	"github.com/rscctl/rscctl/bpf/meta"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxRoom is how many frames an RX ring with shares holds at most: tickets are compared modulo 2^16.
const maxRoom = 1<<15 - 1

// maxFill is the longest fill ring that hang.h computes with: more than any that xsk opens.
const maxFill = 1 << 24

// rxVM is what XDP and a worker know of one VM's frames in the RX ring. It mirrors struct rx_vm in shares.h.
type rxVM struct {
	Admitted uint32
	_        uint32
	ProbedNS uint64
	Refused  uint64
	_        [40]byte
	Taken    uint32
	_        [60]byte
}

// rxQueue is the account of one RX ring. It mirrors struct rx_queue in shares.h.
type rxQueue struct {
	Admitted   uint32
	Seen       uint32
	Since      uint32
	SinceTick  uint32
	SinceNS    uint64
	Refused    uint64
	_          [32]byte
	Taken      uint32
	Room       uint32
	Beat       uint32
	Patience   uint32
	_          [48]byte
	Hangs      uint32
	HangBeat   uint32
	Behind     uint32
	_          uint32
	HangPassed uint64
	_          [40]byte
	VMs        [meta.MaxPorts]rxVM
}

// Shares tells XDP which frames have left the RX ring of one queue, so that it holds every VM to its share: a VM may have as
// many frames in the ring as twice the room that is left. What is above that is dropped in front of the ring, as rx_share, and
// the neighbours' frames find room. shares.h has the rule and the reasons.
//
// XDP gives each frame a ticket of its VM and one of its queue, both counted up, which the frame brings along in its metadata. Took
// notes them, and Publish shows them to XDP through memory that both map: no system call, and one store per VM and burst. Frames
// without metadata have no tickets and no shares.
//
// Publish is also the worker's beat: when it does not come while frames wait, XDP leaves the frames of the VMs that the kernel reaches too
// (FlagFailOpen) to the kernel. hang.h has the rule. Frames without metadata count for that as well.
//
// One goroutine uses it, but for Hangs, Refused and Forget.
type Shares struct {
	mem   []byte
	queue *rxQueue // shared: of what XDP writes only what it writes for a hang is read here
	beat  uint32
	hangs uint32 // that Overtaken has told of

	room, patience uint32 // for Begin

	// Of the frames taken since Publish: 1 + the last ticket of the queue and of each VM, and the VMs' places, each once.
	ofQueue uint32
	ofVM    [meta.MaxPorts]uint32
	noted   [meta.MaxPorts]bool
	places  []uint32
}

// Shares begins to hold the VMs of a queue to their shares of an RX ring with room for so many frames, and to look whether the worker
// hangs, which has a fill ring of so many. Call it while the queue has no socket. What was in the ring before counts as gone. It
// outlives the program; Close ends it.
func (p *Program) Shares(queue, room, fill int) (*Shares, error) {
	s, err := p.SharesAhead(queue, room, fill)
	if err == nil {
		s.Begin()
	}
	return s, err
}

// SharesAhead is Shares while another one still has the queue: Begin is the rest. Until then nothing but Close may be done with it, and Hangs.
func (p *Program) SharesAhead(queue, room, fill int) (*Shares, error) {
	n := int(p.shares.MaxEntries())
	if queue < 0 || queue >= n || room <= 0 || room > maxRoom || fill < 2 || fill > maxFill {
		return nil, fmt.Errorf("xdp: shares: queue %d of %d, room for %d frames, fill ring of %d: %w", queue, n, room, fill, ErrNoDevice)
	}
	mem, err := unix.Mmap(p.shares.FD(), 0, n*rxQueueSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("xdp: shares: map: %w: %w", ErrUnsupported, err)
	}
	return &Shares{mem: mem, queue: rxQueueAt(mem, queue), places: make([]uint32, 0, meta.MaxPorts), room: uint32(room), patience: uint32(fill / 2)}, nil
}

// Begin makes XDP count on this one from here on: what was in the ring before counts as gone. Of nil, a queue without shares, it does nothing.
func (s *Shares) Begin() {
	if s == nil {
		return
	}
	q := s.queue
	for i := range q.VMs {
		atomic.StoreUint32(&q.VMs[i].Taken, atomic.LoadUint32(&q.VMs[i].Admitted))
	}
	atomic.StoreUint32(&q.Taken, atomic.LoadUint32(&q.Admitted))
	atomic.StoreUint32(&q.Room, s.room)
	s.beat, s.hangs = atomic.LoadUint32(&q.Beat)+1, atomic.LoadUint32(&q.Hangs)
	atomic.StoreUint32(&q.Beat, s.beat)
	atomic.StoreUint32(&q.Patience, s.patience)
}

// Took notes that a frame has left the ring: the VM's meta.PortID and the tickets, from the frame's meta.Meta. It does not matter whether
// the VM is still there.
func (s *Shares) Took(port uint32, vm, queue uint16) {
	i := meta.PortIndex(port)
	if !s.noted[i] {
		s.noted[i] = true
		s.places = append(s.places, i)
	}
	s.ofVM[i] = uint32(vm) + 1
	s.ofQueue = uint32(queue) + 1
}

// Publish shows XDP what Took has noted, and that the worker does not hang. Call it behind every burst, also behind an empty one: what
// XDP sent before the burst is taken then. The stores need no order: XDP reads each word by itself, and a late one only makes a
// VM's share smaller for a moment.
func (s *Shares) Publish() {
	if len(s.places) > 0 {
		for _, i := range s.places {
			atomic.StoreUint32(&s.queue.VMs[i].Taken, s.ofVM[i])
			s.noted[i] = false
		}
		atomic.StoreUint32(&s.queue.Taken, s.ofQueue)
		s.places = s.places[:0]
	}
	s.beat++
	atomic.StoreUint32(&s.queue.Beat, s.beat)
}

// Overtaken returns how many of the frames that are taken next have waited while XDP left later ones to the kernel: not 0 once after each hang.
// Ask in front of a burst.
func (s *Shares) Overtaken() int {
	n := atomic.LoadUint32(&s.queue.Hangs)
	if n == s.hangs {
		return 0
	}
	s.hangs = n
	return int(atomic.LoadUint32(&s.queue.Behind))
}

// Hangs is what XDP has found out about a queue's worker since the program was loaded.
type Hangs struct {
	Times  uint64 // that it was taken for hung
	Passed uint64 // frames that went by the kernel because of it
	Now    bool   // it has not been heard of since the last time
}

// Hangs may be called from any goroutine until Close. Of nil it is the zero value.
func (s *Shares) Hangs() Hangs {
	if s == nil {
		return Hangs{}
	}
	q := s.queue
	h := Hangs{Times: uint64(atomic.LoadUint32(&q.Hangs)), Passed: atomic.LoadUint64(&q.HangPassed)}
	h.Now = h.Times > 0 && atomic.LoadUint32(&q.HangBeat) == atomic.LoadUint32(&q.Beat)
	return h
}

// Refused is how many frames of the queue were dropped because their VM had its share, and how many of them were those of the VM at each place:
// since the program was loaded, by whichever process. It may be called from any goroutine until Close. Of nil it is the zero value.
func (s *Shares) Refused() (all uint64, ofVM [meta.MaxPorts]uint64) {
	if s == nil {
		return 0, ofVM
	}
	for i := range s.queue.VMs {
		ofVM[i] = atomic.LoadUint64(&s.queue.VMs[i].Refused)
	}
	return atomic.LoadUint64(&s.queue.Refused), ofVM
}

// Forget ends the count of a VM that has gone, for the next one at its place. It may be called from any goroutine until Close.
func (s *Shares) Forget(place uint32) {
	if s != nil {
		atomic.StoreUint64(&s.queue.VMs[meta.PortIndex(place)].Refused, 0)
	}
}

// Close unmaps the account. The shares stay in force as they are; the next Shares of the queue begins anew.
func (s *Shares) Close() error {
	if s == nil || s.mem == nil {
		return nil
	}
	mem := s.mem
	s.mem, s.queue = nil, nil
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("xdp: shares: unmap: %w", err)
	}
	return nil
}
