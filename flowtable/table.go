package flowtable

import (
	"fmt"
	"math"
	"math/bits"
)

// Table holds the open superframes of many flows and ports. It is used by one goroutine and allocates nothing after New
// (SetPort copies its list of ports).
//
// Times are ns of any clock that does not run backwards; where it does, the table's clock stands.
type Table struct {
	out     Output
	slots   []slot
	origins []origin // by slot
	free    uint32   // list of free slots by hashNext
	blocks  blocks
	pairs   pairs
	places  []place // by slot
	habits  []habit // by bucket

	buckets []uint32
	shift   uint8
	seed    seed

	last    uint32 // slot of the last packet that joined or opened one; it may be free again
	held    int    // Refs in slots
	maxHeld int
	opened  int // slots in use

	now    int64
	due    int64 // no deadline is earlier
	ports  []port
	active []uint32 // ports with slots, in no order

	w   words      // of the packet in hand: here, as a rule set's arguments would be allocated
	sf  Superframe // the one that is given out: its lists are used again
	hdr [maxHeader]byte
}

// New returns a table whose ports pass everything until SetPort.
func New(cfg Config, out Output) (*Table, error) {
	if cfg.Slots == 0 {
		cfg.Slots = DefaultSlots
	}
	if cfg.MaxHeld == 0 {
		cfg.MaxHeld = 4 * cfg.Slots
	}
	switch {
	case out == nil:
		return nil, fmt.Errorf("%w: no output", ErrConfig)
	case cfg.Slots < 1 || cfg.Slots > MaxSlots:
		return nil, fmt.Errorf("%w: %d slots: not between 1 and %d", ErrConfig, cfg.Slots, MaxSlots)
	case cfg.MaxHeld < 1 || cfg.MaxHeld > 1<<24:
		return nil, fmt.Errorf("%w: %d chunks held: not between 1 and %d", ErrConfig, cfg.MaxHeld, 1<<24)
	case cfg.Ports < 1 || cfg.Ports > 1<<16:
		return nil, fmt.Errorf("%w: %d ports: not between 1 and %d", ErrConfig, cfg.Ports, 1<<16)
	}
	t := &Table{
		out: out, maxHeld: cfg.MaxHeld,
		slots: make([]slot, cfg.Slots+1), origins: make([]origin, cfg.Slots+1),
		// Full blocks hold at most MaxHeld fragments together, and every slot may have one that is not full.
		blocks: newBlocks(cfg.MaxHeld/blockLen + cfg.Slots),
		pairs:  newPairs(cfg.Slots),
		places: make([]place, cfg.Slots+1),
		due:    math.MaxInt64,
		ports:  make([]port, cfg.Ports),
		active: make([]uint32, 0, cfg.Ports),
	}
	t.sf = Superframe{
		// No superframe has more fragments than bytes: those without bytes are held, but not listed.
		Frags: make([][]byte, 0, min(cfg.MaxHeld, MaxIPLength)+2), // one more where the headers lie apart
		Refs:  make([]uint64, 0, cfg.MaxHeld+1),
		Sums:  make([]uint16, 0, min(cfg.MaxHeld, MaxIPLength)+1),
	}
	for i := cfg.Slots; i > 0; i-- {
		t.slots[i].hashNext, t.free = t.free, uint32(i)
	}
	order := bits.Len(uint(4*cfg.Slots - 1)) // another flow in the same bucket costs as much as a look-up: keep it rare
	t.buckets = make([]uint32, 1<<order)
	t.habits = make([]habit, 1<<order)
	t.shift = uint8(64 - order)
	if err := t.seed.sow(cfg.Seed); err != nil {
		return nil, fmt.Errorf("flow table: seed: %w", err)
	}
	for i := range t.ports {
		t.ports[i].noVerify = cfg.NoVerify
		off := PortConfig{}
		if err := t.ports[i].configure(&off); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// SetPort changes the rules of a port. What is held for it leaves first, for reason policy.
func (t *Table) SetPort(index uint32, c PortConfig, now int64) error {
	if uint64(index) >= uint64(len(t.ports)) {
		return fmt.Errorf("%w: %d of %d", ErrPort, index, len(t.ports))
	}
	var check port
	if err := check.configure(&c); err != nil {
		return err
	}
	t.ClearPort(index, ReasonPolicy, now)
	return t.ports[index].configure(&c)
}

// LimitFrame tells how long a superframe of a port may be for its guest's buffers, in bytes from Ethernet on; 0: no limit
// beyond the rules. It outlives SetPort. What is held and longer already stays, and only does not grow. It is cheap enough
// for every burst.
func (t *Table) LimitFrame(index uint32, frame int) {
	if uint64(index) < uint64(len(t.ports)) && t.ports[index].guest != frame {
		t.ports[index].limit(frame)
	}
}

// Single says whether every packet of a port leaves alone, for the reason guest_refuses, where PortConfig would let it merge. It
// outlives SetPort. What is held leaves first, for the same reason.
func (t *Table) Single(index uint32, on bool, now int64) {
	if uint64(index) < uint64(len(t.ports)) && t.ports[index].single != on {
		t.ClearPort(index, ReasonGuestRefuses, now)
		t.ports[index].shutAll(on)
	}
}

// ClearPort gives out everything held for a port, oldest first, for the reason r.
func (t *Table) ClearPort(index uint32, r Reason, now int64) {
	t.tick(now)
	if uint64(index) < uint64(len(t.ports)) {
		t.clear(&t.ports[index], r)
	}
}

// Close gives out everything held. The table can be used on.
func (t *Table) Close(r Reason, now int64) {
	t.tick(now)
	for len(t.active) > 0 {
		t.clear(&t.ports[t.active[len(t.active)-1]], r)
	}
}

// EndBurst ends a burst: what ports with hold 0 hold leaves in the order of its first packets, and so does what is overdue
// elsewhere.
func (t *Table) EndBurst(now int64) {
	t.tick(now)
	for i := len(t.active) - 1; i >= 0; i-- { // clearing moves the last entry, which was seen, to i
		if p := &t.ports[t.active[i]]; p.hold == 0 {
			t.clear(p, ReasonBurstEnd)
		}
	}
	t.expire()
}

// Expire gives out what was held for as long as its port allows. It costs nothing before NextDeadline.
func (t *Table) Expire(now int64) {
	t.tick(now)
	t.expire()
}

func (t *Table) expire() {
	if t.now < t.due {
		return
	}
	for i := len(t.active) - 1; i >= 0; i-- {
		p := &t.ports[t.active[i]]
		if p.hold == 0 {
			continue
		}
		if p.adaptive {
			t.expireAdaptive(p)
			continue
		}
		for p.oldest != 0 && t.slots[p.oldest].born+p.hold <= t.now {
			t.shutSlot(p, p.oldest, ReasonDeadline)
		}
	}
	t.due = t.nextDue()
}

// NextDeadline returns when Expire has to be called next. ok is false when nothing waits for a time.
func (t *Table) NextDeadline() (ns int64, ok bool) {
	t.due = t.nextDue()
	return t.due, t.due != math.MaxInt64
}

func (t *Table) nextDue() int64 {
	due := int64(math.MaxInt64)
	for _, i := range t.active {
		switch p := &t.ports[i]; {
		case p.adaptive:
			due = min(due, t.dueAdaptive(p))
		case p.hold != 0:
			due = min(due, t.slots[p.oldest].born+p.hold) // it is the same for all of its slots
		}
	}
	return due
}

// Held is the number of Refs the table has.
func (t *Table) Held() int { return t.held }

// Open is the number of slots in use.
func (t *Table) Open() int { return t.opened }

// Ledger returns a port's account, which the table goes on writing and in which the Output books; nil if there is no such port.
func (t *Table) Ledger(index uint32) *Ledger {
	if uint64(index) >= uint64(len(t.ports)) {
		return nil
	}
	return &t.ports[index].ledger
}

func (t *Table) tick(now int64) {
	// Half of the range is left for holds to be added.
	t.now = max(t.now, min(now, math.MaxInt64/2))
}

// clear gives out all slots of a port in order.
func (t *Table) clear(p *port, r Reason) {
	for p.oldest != 0 {
		t.shutSlot(p, p.oldest, r)
	}
}

// relieve makes room: the oldest of all goes out.
func (t *Table) relieve() {
	var p *port
	var born int64
	for _, i := range t.active {
		q := &t.ports[i]
		if b := t.slots[q.oldest].born; p == nil || b < born {
			p, born = q, b
		}
	}
	if p != nil {
		t.shutSlot(p, p.oldest, ReasonPressure)
	}
}

// take returns a free slot, entered as the newest of its port.
func (t *Table) take(p *port, index uint32) (uint32, *slot) {
	for t.free == 0 {
		t.relieve()
	}
	n := t.free
	s := &t.slots[n]
	t.free = s.hashNext
	t.opened++
	s.born = t.now
	s.agePrev, s.ageNext = p.newest, 0
	if p.newest != 0 {
		t.slots[p.newest].ageNext = n
	} else {
		p.oldest = n
		t.active = append(t.active, index)
		p.active = uint32(len(t.active))
	}
	p.newest = n
	return n, s
}

// drop takes a slot whose frame is gone out of its port's list.
func (t *Table) drop(p *port, n uint32, s *slot) {
	if s.agePrev != 0 {
		t.slots[s.agePrev].ageNext = s.ageNext
	} else {
		p.oldest = s.ageNext
	}
	if s.ageNext != 0 {
		t.slots[s.ageNext].agePrev = s.agePrev
	} else {
		p.newest = s.agePrev
	}
	if p.oldest == 0 {
		last := t.active[len(t.active)-1]
		t.active[p.active-1] = last
		t.ports[last].active = p.active
		t.active = t.active[:len(t.active)-1]
		p.active = 0
	}
	t.blocks.release(s)
	t.held -= 1 + int(s.extra)
	t.opened--
	s.state, s.extra = slotFree, 0
	s.hashNext, t.free = t.free, n
}

// find looks a flow up.
func (t *Table) find(k *key) (bucket, n uint32) {
	k.fold = k.addr // as fold does; a call less
	if k.meta&metaIPv6 != 0 {
		k.fold = k.fold6(&t.seed)
	}
	bucket = t.bucketOf(k.fold, k.meta)
	for n = t.buckets[bucket]; n != 0; n = t.slots[n].hashNext {
		s := &t.slots[n]
		if s.addr == k.addr && s.meta == k.meta && (k.meta&metaIPv6 == 0 || t.origins[n].rest == k.rest) {
			break
		}
	}
	return bucket, n
}

// unhash takes an open slot out of its bucket, which it returns, and out of its pair's list. As a rule a bucket holds one flow, so the walk is short.
func (t *Table) unhash(n uint32, s *slot) (bucket uint32) {
	if t.pairs.kept {
		t.pairs.remove(n)
	}
	fold := s.addr
	if s.meta&metaIPv6 != 0 {
		k := key{addr: s.addr, rest: t.origins[n].rest}
		fold = k.fold6(&t.seed)
	}
	bucket = t.bucketOf(fold, s.meta) // to keep it would cost a slot a third line
	at := &t.buckets[bucket]
	for *at != n {
		at = &t.slots[*at].hashNext
	}
	*at = s.hashNext
	return bucket
}

// shutSlot closes a slot. With a hold its frame leaves at once; with hold 0 when nothing older of its port is held.
func (t *Table) shutSlot(p *port, n uint32, r Reason) {
	s := &t.slots[n]
	if s.state == slotOpen {
		bucket := t.unhash(n, s)
		s.state, s.reason = slotWaiting, r
		if p.adaptive {
			t.judgeHold(p, n, s, bucket, r)
		}
	}
	if p.hold != 0 {
		t.emit(p, n, s)
		t.drop(p, n, s)
		return
	}
	for p.oldest != 0 && t.slots[p.oldest].state == slotWaiting {
		n = p.oldest
		s = &t.slots[n]
		t.emit(p, n, s)
		t.drop(p, n, s)
	}
}
