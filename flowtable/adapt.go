package flowtable

import (
	"math"
	"math/bits"
	"time"
)

// An adaptive hold (PortConfig.Adaptive) has a length for each superframe, one of holdLevels between none and PortConfig.Hold. Two loops
// choose it, both by what came and by nothing else, so that the same packets at the same times get the same holds.
//
// Per flow, a habit: what its last superframes that time ended were like.
//
//	something came late in the hold, and the frame was small                  twice as long the next time
//	something came late in the hold, and the frame was large enough           as long
//	nothing came late in the hold: with the level below it would be the same  that level
//	nothing came at all                                                       a few of these, and it is not held
//	small, and its successor came soon behind it                              from now on a hold in which both would have met, until one
//	                                                                          shows whether that was worth it. Where it was in vain, as
//	                                                                          with a sender that waits for an answer, the next try waits
//	                                                                          twice as long
//
// A superframe that is full, or that a rule ended, says that something came late, or, many times in a row, that the level below would do as well. It
// does not say that a hold was in vain: of a train of a sender that marks its end with PSH, as Linux does, time can only end the first part, which
// a worker took before the rest had come. Short segments (leastBulk) are no bulk and not held.
//
// Per port, a lap: raise the longest hold that flows may have to what they asked for, compare the lap behind that with the one before, and
// keep it unless packets came more slowly or in smaller frames, as a sender does whose window is used up by waiting. The longest
// hold is also lowered now and then, and stays so if packets come faster.
const (
	holdLevels = 21 // level 0 is the end of the burst, the last one Hold, and each is the square root of two of the one below
	doubled    = 2  // levels

	levelMask = 0x1f
	levelTry  = 0x40 // in slot.level: its hold is a try
	levelLate = 0x80 // something came late: when the hold of the level below would have been over

	firstHold = 50 * time.Microsecond // at most, of a flow of which nothing is known
	enough    = 40                    // segments: about what senders hand to their NICs at once
	mostCalm  = 16                    // superframes
	tryLate   = 3                     // part of a try's hold behind which what comes is worth it
	few       = 24                    // of fewer, others are worth a try
	leastBulk = 536                   // bytes of payload (the segments of RFC 9293, 3.7.1, where nothing else was agreed)
	maxPause  = 8                     // log2 of the superframes between two tries that were in vain
	forget    = int64(time.Second)    // a flow that was silent for so long is a new one

	lapFrames = 64
	lapHolds  = 4 // of the longest in force
	lapLeast  = int64(4 * time.Millisecond)
	lapStale  = 16 // laps: one that took so much longer says nothing
	lapWorse  = 16 // a lap is worse, or better, if it differs by one part in so many
	lapTired  = 6  // log2 of the laps between two steps that were in vain
	lapLower  = 32 // laps until the longest hold is lowered to see what that brings
)

// habit is what is known of a flow, open or not. It outlives its superframes.
type habit struct {
	born   int64  // of its last superframe, ns
	tag    uint32 // of the flow: its bucket may be another's too
	rest   uint16 // superframes until the next try
	level  uint8  // of its next superframe
	before uint8  // the try
	pause  uint8  // log2 of rest after a try in vain
	calm   uint8  // superframes in a row that ended before anything came late
	state  uint8
}

// State of a habit.
const (
	habitKnown  = 1 << iota
	habitCut    // time ended its last superframe, and that was small
	habitTrying // its level is a try
	habitRaised // its last superframe made its hold longer: the next one may be the rest of a train that was cut
)

// place is where a slot of an adaptive port stands among those of its level, under the same index as the slot.
type place struct {
	prev, next uint32
	tag        uint32 // of its habit
}

// line is the slots of one level of a port, in the order of their first packets, which is that of their deadlines.
type line struct{ oldest, newest uint32 }

// adapting is a port's part of it.
type adapting struct {
	lines [holdLevels]line
	lates [holdLevels]int64 // ns: what comes later in a hold was worth it
	used  uint32            // levels with slots, a bit each
	first uint8             // level of a flow of which nothing is known
	top   uint8             // longest hold that flows may have
	lap   lap
	steps stepping
}

// lap is what a number of superframes brought.
type lap struct {
	from   int64  // ns
	in     uint64 // Ledger.In
	segs   uint64
	frames uint64
	held   uint64 // ns: their holds
	grown  uint8  // longest level that a flow's habit asks for
	tries  uint8  // and that a try would need
}

// stepping is how a port's longest hold got where it is.
type stepping struct {
	trial bool  // this lap is the first of a new top
	was   uint8 // before it
	rate  uint64
	size  uint64
	park  uint16 // laps until the next step
	tired uint8  // log2 of park after a step in vain
	laps  uint16 // since the last step down
	mean  int64  // ns: mean hold of the last lap
}

// adapt begins anew with a longest hold. Nothing of the port is held.
func (p *port) adapt(on bool, hold int64) {
	p.adaptive = on && hold > 0
	for i := range p.holds {
		p.holds[i] = hold
	}
	p.adapting = adapting{}
	if !p.adaptive {
		return
	}
	for i := range p.holds {
		down := holdLevels - 1 - i
		p.holds[i] = hold >> (down / doubled)
		if down%doubled != 0 {
			p.holds[i] = int64(float64(p.holds[i]) * math.Sqrt2 / 2)
		}
	}
	for i := range p.lates {
		p.lates[i] = int64(float64(p.holds[i]) * math.Sqrt2 / 2)
	}
	p.holds[0] = 0
	for int(p.first) < holdLevels-1 && p.holds[p.first+1] <= firstHold.Nanoseconds() {
		p.first++
	}
	p.top = max(p.first, 1)
	p.steps.mean = p.holds[p.first]
}

// holdOf is how long a slot may be held, in ns.
func (p *port) holdOf(s *slot) int64 { return p.holds[s.level&levelMask] }

// levelFor is the lowest level of at least so many ns, 0 if there is none.
func (p *port) levelFor(ns int64) uint8 {
	for i := 1; i < holdLevels; i++ {
		if p.holds[i] >= ns {
			return uint8(i)
		}
	}
	return 0
}

// HoldNow is the hold of a port: the one that it was given, or of an adaptive port the mean of those that superframes got of late.
func (t *Table) HoldNow(index uint32) time.Duration {
	if uint64(index) >= uint64(len(t.ports)) {
		return 0
	}
	p := &t.ports[index]
	if p.adaptive {
		return time.Duration(p.steps.mean)
	}
	return time.Duration(p.hold)
}

// habitOf is the habit of a flow; if there is none, with make the place of the older of two others becomes it, without nil.
func (t *Table) habitOf(bucket, tag uint32, create bool) *habit {
	a, b := &t.habits[bucket], &t.habits[bucket^1]
	switch {
	case a.tag == tag && a.state != 0:
		return a
	case b.tag == tag && b.state != 0:
		return b
	case !create:
		return nil
	}
	if b.state == 0 || a.state != 0 && b.born < a.born {
		a = b
	}
	*a = habit{tag: tag}
	return a
}

// chooseHold gives a slot that has just been opened, in a bucket, its hold, and its place.
func (t *Table) chooseHold(p *port, n uint32, s *slot, k *key, bucket, payload uint32) {
	x := (k.fold ^ bits.RotateLeft64(k.meta, 29)) * 0x9e3779b97f4a7c15
	tag := uint32(x >> 32)
	h := t.habitOf(bucket, tag, true)
	gap := s.born - h.born
	h.born = s.born
	if h.state == 0 || gap > forget {
		*h = habit{tag: tag, born: s.born, level: p.first}
	}
	p.lap.grown = max(p.lap.grown, h.level)
	cut := h.state&(habitCut|habitTrying) == habitCut
	h.state = habitKnown | h.state&(habitRaised|habitTrying)
	var level uint8
	if payload >= leastBulk {
		if cut {
			p.try(h, gap)
		}
		if level = min(h.level, p.top); h.state&habitTrying != 0 {
			s.level = levelTry
		}
	}
	s.level |= level
	t.places[n] = place{prev: p.lines[level].newest, tag: tag}
	if l := &p.lines[level]; l.newest != 0 {
		t.places[l.newest].next = n
		l.newest = n
	} else {
		*l = line{n, n}
		p.used |= 1 << level
	}
}

// try has a flow's superframes held for long enough, from this one on, that the one before and this one, which began so many ns behind it,
// would have been one.
func (p *port) try(h *habit, gap int64) {
	if h.rest > 0 {
		h.rest--
		return
	}
	want := p.levelFor(gap + gap/2)
	p.lap.tries = max(p.lap.tries, want)
	if want = min(want, p.top); want > h.level && p.holds[want] > gap {
		h.before, h.level = h.level, want
		h.state |= habitTrying
	}
}

// came notes when a packet joined a slot.
func (p *port) came(s *slot, now int64) {
	if !p.adaptive {
		return
	}
	late := p.lates[s.level&levelMask]
	if s.level&levelTry != 0 { // where in the hold the gap falls is no matter
		late = p.holdOf(s) / tryLate
	}
	if now-s.born > late {
		s.level |= levelLate
	}
}

// judgeHold learns from a slot of a bucket that is closed for a reason, and takes it out of its place.
func (t *Table) judgeHold(p *port, n uint32, s *slot, bucket uint32, r Reason) {
	level := s.level & levelMask
	l, at := &p.lines[level], &t.places[n]
	if at.prev != 0 {
		t.places[at.prev].next = at.next
	} else {
		l.oldest = at.next
	}
	if at.next != 0 {
		t.places[at.next].prev = at.prev
	} else {
		l.newest = at.prev
	}
	if l.oldest == 0 {
		p.used &^= 1 << level
	}
	if h := t.habitOf(bucket, at.tag, false); h != nil {
		switch r {
		case ReasonDeadline, ReasonBurstEnd:
			h.learn(level, s)
		default:
			h.ended(level, s)
		}
	}
	p.lap.segs += uint64(s.segs)
	p.lap.frames++
	p.lap.held += uint64(p.holds[level])
	if p.lap.frames >= lapFrames && t.now-p.lap.from >= max(lapLeast, lapHolds*p.holds[p.top]) {
		p.endLap(t.now)
	}
}

// learn is what a superframe says that time ended.
func (h *habit) learn(level uint8, s *slot) {
	h.calm = 0
	if s.segs < few {
		h.state |= habitCut
	}
	late := s.level&levelLate != 0
	switch {
	case late:
		h.worth(level)
		if s.segs < enough && level < holdLevels-1 {
			h.level = min(level+doubled, holdLevels-1)
			h.state |= habitRaised
		}
	case s.level&levelTry != 0:
		h.level, h.rest = h.before, 1<<h.pause
		h.state &^= habitTrying
		h.pause = min(h.pause+1, maxPause)
	case h.state&habitRaised != 0:
		h.state &^= habitRaised
	case level > 0:
		if h.level = level - 1; s.segs == 1 {
			h.level = level / 2
		}
	}
}

// ended is what a superframe says that was over before its time.
func (h *habit) ended(level uint8, s *slot) {
	switch {
	case level == 0:
	case s.level&levelLate != 0:
		h.worth(level)
	default:
		if h.calm++; h.calm >= mostCalm {
			h.calm, h.level = 0, min(h.level, level-1)
		}
	}
}

// worth is what a superframe says whose hold brought something.
func (h *habit) worth(level uint8) {
	h.level, h.pause, h.rest, h.calm = level, 0, 0, 0
	h.state &^= habitRaised | habitTrying
}

// endLap compares the lap that is over with the one before, and may take a step.
func (p *port) endLap(now int64) {
	l, s := p.lap, &p.steps
	p.lap = lap{from: now, in: p.ledger.In}
	took := now - l.from
	s.mean = int64(l.held / l.frames)
	if took > lapStale*max(lapLeast, lapHolds*p.holds[p.top]) {
		if s.trial {
			p.top, s.trial = s.was, false
		}
		return
	}
	rate := (p.ledger.In - l.in) * 1e9 / uint64(took) // of what came: what is held is part of it
	size := l.segs * 16 / l.frames
	below := func(a, b uint64) bool { return a < b-b/lapWorse }
	switch {
	case s.trial:
		s.trial = false
		keep := !below(rate, s.rate) && !below(size, s.size)
		if p.top < s.was {
			keep = below(s.rate, rate)
		}
		if keep {
			s.tired = 0
			break
		}
		if p.top > s.was {
			s.tired = min(s.tired+1, lapTired)
		}
		p.top, s.park = s.was, 1<<s.tired
	case s.park > 0:
		s.park--
	case l.grown > p.top, l.tries > p.top:
		s.trial, s.was, s.rate, s.size = true, p.top, rate, size
		if p.top = l.tries; l.grown > s.was { // it has shown what it is good for
			p.top = l.grown
		}
	default:
		if s.laps++; s.laps >= lapLower && p.top > 1 {
			s.laps = 0
			s.trial, s.was, s.rate, s.size = true, p.top, rate, size
			p.top -= min(p.top-1, doubled)
		}
	}
}

// dueAdaptive is the nearest deadline of a port.
func (t *Table) dueAdaptive(p *port) int64 {
	due := int64(math.MaxInt64)
	for u := p.used; u != 0; u &= u - 1 {
		i := bits.TrailingZeros32(u)
		due = min(due, t.slots[p.lines[i].oldest].born+p.holds[i])
	}
	return due
}

// expireAdaptive gives out what is due of a port.
func (t *Table) expireAdaptive(p *port) {
	for u := p.used; u != 0; u &= u - 1 {
		i := bits.TrailingZeros32(u)
		r := ReasonDeadline
		if i == 0 {
			r = ReasonBurstEnd
		}
		for n := p.lines[i].oldest; n != 0 && t.slots[n].born+p.holds[i] <= t.now; n = p.lines[i].oldest {
			t.shutSlot(p, n, r)
		}
	}
}
