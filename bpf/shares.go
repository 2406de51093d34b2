package bpf

import (
	"fmt"
	"github.com/rscctl/rscctl/bpf/meta"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxRoom is how many frames an RX ring with shares holds at most: tickets are compared modulo 2^16.
const maxRoom = 1<<15 - 1

// rxVM is what XDP and a worker know of one VM's frames in the RX ring. It mirrors struct rx_vm in shares.h.
type rxVM struct {
	Admitted uint32
	_        uint32
	ProbedNS uint64
	_        [48]byte
	Taken    uint32
	_        [60]byte
}

// rxQueue is the account of one RX ring. It mirrors struct rx_queue in shares.h.
type rxQueue struct {
	Admitted uint32
	_        [60]byte
	Taken    uint32
	Room     uint32
	_        [56]byte
	VMs      [meta.MaxPorts]rxVM
}

// Shares tells XDP which frames have left the RX ring of one queue, so that it holds every VM to its share: a VM may have as
// many frames in the ring as twice the room that is left. What is above that is dropped in front of the ring, as rx_share, and
// the neighbours' frames find room. shares.h has the rule and the reasons.
//
// XDP gives each frame a ticket of its VM and one of its queue, both counted up, which the frame brings along in its metadata. Took
// notes them, and Publish shows them to XDP through memory that both map: no system call, and one store per VM and burst. Frames
// without metadata have no tickets and no shares.
//
// One goroutine uses it.
type Shares struct {
	mem   []byte
	queue *rxQueue // shared: what XDP writes is never read here

	// Of the frames taken since Publish: 1 + the last ticket of the queue and of each VM, and the VMs' places, each once.
	ofQueue uint32
	ofVM    [meta.MaxPorts]uint32
	noted   [meta.MaxPorts]bool
	places  []uint32
}

// Shares begins to hold the VMs of a queue to their shares of an RX ring with room for so many frames. Call it while the queue has
// no socket. What was in the ring before counts as gone. It outlives the program; Close ends it.
func (p *Program) Shares(queue, room int) (*Shares, error) {
	n := int(p.shares.MaxEntries())
	if queue < 0 || queue >= n || room <= 0 || room > maxRoom {
		return nil, fmt.Errorf("xdp: shares: queue %d of %d, room for %d frames: %w", queue, n, room, ErrNoDevice)
	}
	mem, err := unix.Mmap(p.shares.FD(), 0, n*rxQueueSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("xdp: shares: map: %w: %w", ErrUnsupported, err)
	}
	s := &Shares{mem: mem, queue: rxQueueAt(mem, queue), places: make([]uint32, 0, meta.MaxPorts)}
	q := s.queue
	for i := range q.VMs {
		atomic.StoreUint32(&q.VMs[i].Taken, atomic.LoadUint32(&q.VMs[i].Admitted))
	}
	atomic.StoreUint32(&q.Taken, atomic.LoadUint32(&q.Admitted))
	atomic.StoreUint32(&q.Room, uint32(room))
	return s, nil
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

// Publish shows XDP what Took has noted. The stores need no order: XDP reads each word by itself, and a late one only makes a
// VM's share smaller for a moment.
func (s *Shares) Publish() {
	if len(s.places) == 0 {
		return
	}
	for _, i := range s.places {
		atomic.StoreUint32(&s.queue.VMs[i].Taken, s.ofVM[i])
		s.noted[i] = false
	}
	atomic.StoreUint32(&s.queue.Taken, s.ofQueue)
	s.places = s.places[:0]
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
