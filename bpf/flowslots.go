package bpf

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf/meta"
)

// flowSlots is how many slots each CPU has. It mirrors FLOW_SLOTS in abi.h.
const flowSlots = 1 << 10

// flowSlot is what one CPU has counted of one flow since it was last brought to the flow's row. It mirrors struct flow_slot in abi.h.
type flowSlot struct {
	Owner        uint32 // 1 + PortValue.Port, 0: nobody's
	Seq          uint32 // odd while it becomes another's or is emptied
	Key          FlowKey
	Bytes        uint64
	PayloadBytes uint64
	LastNS       uint64
	SinceNS      uint64
	Packets      uint32
	TCPFlags     uint32
	Tick         uint32
	Missed       uint32
	_            [32]byte
}

// slotReads is how often a flow is read again whose slot is brought to its row meanwhile: of two flows that share a slot that may happen with every
// frame, and a moment's counts are all that a reader was promised.
const slotReads = 16

// slotMap is the map flow_slots in our memory: XDP counts there, in front of the flow maps. slots.h has the rules.
type slotMap struct {
	mem   []byte
	slots []flowSlot // shared: XDP writes them
}

func openSlots(m *ebpf.Map) (*slotMap, error) {
	n := int(m.MaxEntries())
	mem, err := unix.Mmap(m.FD(), 0, n*flowSlotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("flow slots: map: %w: %w", ErrUnsupported, err)
	}
	return &slotMap{mem, slotsAt(mem, n)}, nil
}

func (s *slotMap) close() error {
	if s == nil || s.mem == nil {
		return nil
	}
	mem := s.mem
	s.mem, s.slots = nil, nil
	return unix.Munmap(mem)
}

// heldSlot is one slot as it was at one moment.
type heldSlot struct {
	at int // its number
	flowSlot
}

// read copies a slot whole; false: XDP was about to change whose it is.
func (s *slotMap) read(at int) (c flowSlot, ok bool) {
	p := &s.slots[at]
	c.Seq = atomic.LoadUint32(&p.Seq)
	if c.Seq&1 != 0 {
		return c, false
	}
	c.Owner, c.Key = atomic.LoadUint32(&p.Owner), p.Key
	c.Bytes, c.PayloadBytes, c.LastNS = atomic.LoadUint64(&p.Bytes), atomic.LoadUint64(&p.PayloadBytes), atomic.LoadUint64(&p.LastNS)
	c.Packets, c.TCPFlags = atomic.LoadUint32(&p.Packets), atomic.LoadUint32(&p.TCPFlags)
	return c, atomic.LoadUint32(&p.Seq) == c.Seq
}

// readSoon is read, some times over.
func (s *slotMap) readSoon(at int) (c flowSlot, ok bool) {
	for range slotReads {
		if c, ok = s.read(at); ok {
			return c, true
		}
	}
	return c, false
}

// take empties the slots of a VM that nobody counts for any more, and returns what was in them.
func (s *slotMap) take(id uint32) (out []flowSlot) {
	for at := range s.slots {
		p := &s.slots[at]
		if atomic.LoadUint32(&p.Owner) != id+1 {
			continue
		}
		// The copy is good if the slot is still the VM's behind it: nobody adds to it, and it becomes nobody's a second time.
		if c, ok := s.readSoon(at); ok && c.Owner == id+1 && atomic.CompareAndSwapUint32(&p.Owner, id+1, 0) {
			out = append(out, c)
		}
	}
	return out
}

// SlotView is what was counted at one moment and is in no flow map yet.
type SlotView struct {
	slots *slotMap
	held  map[uint32][]heldSlot // by PortValue.Port
}

// Slots looks at what XDP has counted in front of the flow maps. Ask soon, and not once SetFlows or Close was called.
func (p *Program) Slots() *SlotView {
	v := &SlotView{slots: p.slots, held: map[uint32][]heldSlot{}}
	for at := range v.slots.slots {
		if atomic.LoadUint32(&v.slots.slots[at].Owner) == 0 {
			continue
		}
		// Not read whole, it is on its way to a row, and found there.
		if c, ok := v.slots.readSoon(at); ok && c.Owner != 0 {
			v.held[c.Owner-1] = append(v.held[c.Owner-1], heldSlot{at, c})
		}
	}
	return v
}

// Flows returns all flows of a VM, those of its flow map with what is not there yet, each once. They change while they are read: each key is
// right, its counters are a moment's, and a flow that came or went meanwhile may be in or not. When nothing comes they are exact.
func (v *SlotView) Flows(id uint32, m *ebpf.Map) ([]Flow, error) {
	rows, err := ReadFlows(m)
	if err != nil {
		return nil, err
	}
	held := map[FlowKey][]heldSlot{}
	for _, s := range v.held[id] {
		held[s.Key] = append(held[s.Key], s)
	}
	for i := range rows {
		if len(held) == 0 {
			break
		}
		of, ok := held[rows[i].Key]
		if !ok {
			continue
		}
		delete(held, rows[i].Key)
		if v.moved(of) {
			if again, ok := v.again(id, m, of[0]); ok {
				rows[i] = again
			}
			continue
		}
		for _, s := range of {
			rows[i].Stats.add(&s.flowSlot)
		}
	}
	for key, of := range held { // the row gave way, or came behind the reader
		flow, ok := v.again(id, m, of[0])
		if !ok {
			flow = Flow{Key: key}
			for _, s := range of {
				flow.Stats.add(&s.flowSlot)
			}
		}
		if ok || flow.Stats.Packets() > 0 {
			rows = append(rows, flow)
		}
	}
	return rows, nil
}

// moved tells whether one of these slots was brought to its row since.
func (v *SlotView) moved(of []heldSlot) bool {
	for _, s := range of {
		if atomic.LoadUint32(&v.slots.slots[s.at].Seq) != s.Seq {
			return true
		}
	}
	return false
}

// again reads one flow, row and slots, until nothing was moved between them meanwhile, or long enough. False: there is no such row.
func (v *SlotView) again(id uint32, m *ebpf.Map, one heldSlot) (flow Flow, ok bool) {
	for range slotReads {
		flow = Flow{Key: one.Key}
		var of []heldSlot
		for at := one.at % flowSlots; at < len(v.slots.slots); at += flowSlots {
			if c, ok := v.slots.readSoon(at); ok {
				of = append(of, heldSlot{at, c})
			}
		}
		if m.Lookup(&one.Key, &flow.Stats) != nil {
			return flow, false
		}
		for _, s := range of {
			if s.Owner == id+1 && s.Key == one.Key {
				flow.Stats.add(&s.flowSlot)
			}
		}
		if !v.moved(of) {
			break
		}
	}
	return flow, true
}

// add counts what a slot has. All of it was parsed as a whole TCP packet.
func (s *FlowStats) add(c *flowSlot) {
	if c.Packets == 0 {
		return
	}
	s.Bytes += c.Bytes
	s.PayloadBytes += c.PayloadBytes
	s.Verdicts[0] += uint64(c.Packets)
	s.TCPFlags |= c.TCPFlags
	s.LastNS = max(s.LastNS, c.LastNS)
	if s.FirstNS == 0 { // there was no row
		s.FirstNS = c.LastNS
	}
}

// endFlows takes the map of a VM away whose frames come no more, and brings there what is in its slots.
func (p *Program) endFlows(id uint32, m *ebpf.Map) error {
	var now uint32
	if err := p.flows.Lookup(id, &now); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	// With each change the kernel waits for the runs of the program that are under way. Behind the first nobody counts in a slot of the VM,
	// but another VM's flow may still bring one to its row; behind the second nobody does, so the rows can be added to here.
	if err := p.flows.Put(id, m); err != nil {
		return err
	}
	left := p.slots.take(id)
	if err := p.flows.Delete(id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	var errs []error
	for i := range left {
		errs = append(errs, addToRow(m, &left[i]))
	}
	return errors.Join(errs...)
}

func addToRow(m *ebpf.Map, c *flowSlot) error {
	if c.Packets == 0 {
		return nil
	}
	var row FlowStats
	if err := m.Lookup(&c.Key, &row); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	row.add(c)
	return m.Put(&c.Key, &row)
}

// beginRows sets how many rows the map of a VM has had at what it has.
func (p *Program) beginRows(id uint32, m *ebpf.Map) error {
	rows, err := ReadFlows(m)
	if err != nil {
		return err
	}
	return p.made.Put(meta.PortIndex(id), uint64(toGuest(rows)))
}

func toGuest(rows []Flow) (n int) {
	for i := range rows {
		if rows[i].Key.Dir == DirToGuest {
			n++
		}
	}
	return n
}

// Evicted is how many rows of a VM's flow map gave way to others since SetFlows, of the direction to the guest; rows are those that it
// has.
func (p *Program) Evicted(id uint32, rows []Flow) uint64 {
	var made uint64
	if p.made.Lookup(meta.PortIndex(id), &made) != nil {
		return 0
	}
	return made - min(made, uint64(toGuest(rows)))
}
