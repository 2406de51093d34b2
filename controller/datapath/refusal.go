package datapath

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"time"

	"github.com/rscctl/rscctl/flowtable"
)

// A guest may drop superframes: some kernels do (docs/operations.md), so does an XDP program in the guest, and a VM that forwards to
// something that cannot take them. Its senders then come to a stand: what they send again after their timeout (RFC 6298, 200 ms with
// Linux) is one segment, which passes alone; behind it come more, which merge, and are dropped. So what gives such a guest away is a flow
// that falls silent, begins again with bytes of a superframe that the guest has got, and the next time further on, where all between came
// alone in the end: TCP begins again with the first byte that is not acknowledged. A guest that is slow, paused or behind a lossy wire does
// not show that: it acknowledges superframes, or nothing.
//
// Such a VM gets its packets one by one for a while, and is tried then with the superframes of one burst, again and again: while all else
// comes alone, what it drops is sent again at once, and tells. After a trial in vain the next while is longer, up to a minute. A VM that
// stands the trial cannot be accused for as long as it was kept short. A sender that forges segments of flows that are none can look like
// this, also in trials: it costs the VM the merging, and nobody else anything (docs/security.md).
const (
	refusalFlows   = 64                     // flows of a VM that are watched at a time, a power of two
	refusalRanges  = 8                      // of a flow's bytes that are remembered, each from superframes without a gap between
	refusalWindow  = 1 << 30                // bytes in such a range, far from where comparisons wrap: as many as TCP may have on their way (RFC 7323)
	refusalQuiet   = 50 * time.Millisecond  // what comes again after less is no timeout
	refusalKeep    = 15 * time.Second       // what is known for longer is forgotten, and the flow's place is another's: timeouts grow to seconds
	refusalStrikes = 2                      // so many times is no accident,
	refusalSpan    = 150 * time.Millisecond // unless all of them are from one: senders of many flows repeat together
	refusalTaken   = 2                      // nor if one in so many flows that stood has taken superframes
	refusalPause   = 10 * time.Second       // the first one
	refusalLongest = time.Minute
	refusalAnswer  = time.Second // what is dropped in a trial comes again within
	refusalRounds  = 2           // bursts of a trial with the same outcome, which decide
)

// refusal is what is known of whether a guest takes superframes.
type refusal struct {
	flows [refusalFlows]refusalFlow

	strikes uint32 // times that a flow began again further on, and all between had come alone in the end
	taken   uint32 // times that superframes were between
	since   int64  // when the first of the strikes was
	last    int64

	some  bool // flows has some
	mode  refusalMode
	until int64         // the end of a pause, of the wait for an answer, or of the time in which nobody is accused
	pause time.Duration // the last one
	ended int64         // when it ended

	good, bad uint32 // bursts of the trial
}

// refusalMode is how a guest is served.
type refusalMode uint8

const (
	superframes refusalMode = iota
	refused                 // single packets, until it is tried
	trying                  // superframes, until it has got one
	answering               // single packets: does the superframe come again?
)

// single says that the guest gets no superframes.
func (r *refusal) single() bool { return r.mode == refused || r.mode == answering }

// refusalFlow is a flow of which the guest has got superframes.
type refusalFlow struct {
	flow    uint64                  // its hash; 0: none
	got     [refusalRanges]seqRange // what superframes brought last, and nothing else since
	oldest  int                     // in got: the next one's place
	at      int64                   // when the flow was heard of last
	head    uint32                  // where it began again last
	headAt  int64                   // and when; 0: it has not
	settled bool                    // it had begun again before that, and everything in front of there is settled
	again   bool                    // something came again
	gone    seqRange                // from the first to the last of those that there was no place for any more
}

// seqRange is bytes of a flow, by their sequence numbers. They wrap, and so do their differences.
type seqRange struct{ start, end uint32 }

func (r *seqRange) has(seq uint32) bool { return seq-r.start < r.end-r.start }

// sequence is what a frame's place in its flow is told by.
type sequence struct {
	flow   uint64 // 0: not known
	first  uint32 // sequence number of its first byte
	header uint32 // bytes in front of that
}

// sequenceOf reads it from the headers of a TCP frame with payload: at most one tag, and no IP options or extension headers, with which
// nothing is merged. Other frames have none.
func (w *Worker) sequenceOf(p *port, gsoType uint8, e *flowtable.Entry, frags [][]byte) (s sequence) {
	if !e.TCP || e.Segments == 0 || len(frags) == 0 || gsoType == 0 && !p.refusal.some { // or nobody will ask
		return s
	}
	b := frags[0]
	l3 := ethHeader
	if len(b) >= ethHeader+vlanTag && b[12] == 0x81 && b[13] == 0 {
		l3 += vlanTag
	}
	if len(b) < l3+20+20 { // Ethernet, IPv4, TCP
		return s
	}
	var ends []byte // addresses and ports: they stand side by side in both families
	var l4 int
	switch b[l3] >> 4 {
	case 4:
		l4 = l3 + 20
		ends = b[l3+12 : l4+4]
		if b[l3] != 0x45 {
			return s
		}
	case 6:
		l4 = l3 + 40
		if b[l3+6] != protoTCP || len(b) < l4+20 {
			return s
		}
		ends = b[l3+8 : l4+4]
	default:
		return s
	}
	return sequence{flow: maphash.Bytes(w.seed, ends) | 1, first: binary.BigEndian.Uint32(b[l4+4:]), header: uint32(l4 + int(b[l4+12]>>4)*4)}
}

// watch hears of a frame that the guest has got whole, at the time of the burst.
func (w *Worker) watch(p *port, f *outFrame) {
	r := &p.refusal
	if r.mode != superframes && w.now >= r.until {
		p.cnt.Refusals += r.goOn(w.now)
		w.judged = true
	}
	if f.seq.flow == 0 || r.mode == refused {
		return
	}
	super := f.Hdr.GSOType != 0
	e := &r.flows[f.seq.flow>>1&(refusalFlows-1)]
	if e.flow != f.seq.flow {
		if super && (e.flow == 0 || w.now-e.at > refusalKeep.Nanoseconds()) {
			*e = refusalFlow{flow: f.seq.flow, at: w.now}
			e.grow(f.seq.first, f.payload())
			r.some = true
			w.tried(r)
		}
		return
	}
	quiet := w.now-e.at >= refusalQuiet.Nanoseconds()
	e.at = w.now
	again := e.has(f.seq.first)
	e.again = e.again || again
	if again && quiet && r.mode == superframes && r.stood(e, f.seq.first, w.now) {
		p.cnt.Refusals += r.refuse(w.now)
		w.judged = true
	}
	if super {
		e.grow(f.seq.first, f.payload())
	} else {
		e.shrink(f.seq.first, f.payload())
	}
}

// tried ends the part of a trial in which the guest gets superframes.
func (w *Worker) tried(r *refusal) {
	if r.mode == trying {
		r.mode, r.until = answering, w.now+refusalAnswer.Nanoseconds()
		w.judged = true
	}
}

// payload is the number of TCP payload bytes of a frame with a place in its flow. Of a lone packet padding may be among them.
func (f *outFrame) payload() uint32 { return uint32(f.Len) - f.seq.header }

// has tells whether a superframe brought a byte.
func (e *refusalFlow) has(seq uint32) bool {
	for i := range e.got {
		if e.got[i].has(seq) {
			return true
		}
	}
	return false
}

// grow books a superframe of n bytes.
func (e *refusalFlow) grow(first, n uint32) {
	for i := range e.got {
		r := &e.got[i]
		if !r.has(first) && first != r.end || r.start == r.end {
			continue
		}
		if int32(first+n-r.end) > 0 {
			r.end = first + n
		}
		if r.end-r.start > refusalWindow {
			r.start = r.end - refusalWindow
		}
		return
	}
	e.put(seqRange{first, first + n})
}

// put finds a place for a range: what was there must not count as come alone.
func (e *refusalFlow) put(n seqRange) {
	for i := range e.got {
		if r := &e.got[i]; r.start == r.end {
			*r = n
			return
		}
	}
	e.gone.cover(e.got[e.oldest])
	e.got[e.oldest] = n
	e.oldest = (e.oldest + 1) % refusalRanges
}

// shrink books that n bytes came alone.
func (e *refusalFlow) shrink(first, n uint32) {
	for i := range e.got {
		switch r := &e.got[i]; {
		case !r.has(first):
		case first == r.start:
			r.start += min(n, r.end-r.start)
		default:
			rest := seqRange{first + n, r.end}
			r.end = first
			if int32(rest.end-rest.start) > 0 {
				e.put(rest)
			}
		}
	}
}

// settle forgets what is in front of a byte, because it was acknowledged. It reports whether any of it had come as a superframe, and not
// alone since.
func (e *refusalFlow) settle(seq uint32) (taken bool) {
	taken = e.gone.cut(seq)
	for i := range e.got {
		taken = e.got[i].cut(seq) || taken
	}
	return taken
}

// cut takes what is in front of a byte off a range, and reports whether there was any.
func (r *seqRange) cut(seq uint32) bool {
	if r.start == r.end || int32(seq-r.start) <= 0 {
		return false
	}
	if r.start = seq; int32(r.end-seq) <= 0 {
		*r = seqRange{}
	}
	return true
}

// cover makes a range reach over another one.
func (r *seqRange) cover(o seqRange) {
	if r.start == r.end {
		*r = o
		return
	}
	if int32(o.start-r.start) < 0 {
		r.start = o.start
	}
	if int32(o.end-r.end) > 0 {
		r.end = o.end
	}
}

// stood hears that a flow was silent and begins again, with a byte that a superframe had brought. It reports that the guest is found out.
// A sender may also probe with its last segment (RFC 8985), so where a flow begins is its first unacknowledged byte only if it begins there
// or further on the next time.
func (r *refusal) stood(e *refusalFlow, first uint32, now int64) bool {
	head, known := e.head, e.headAt != 0 && now-e.headAt <= refusalKeep.Nanoseconds()
	on := int32(first - head)
	settled := known && on >= 0 && e.settled // from there to head: that is what is judged now
	e.head, e.headAt, e.settled = first, now, known && (on > 0 || on == 0 && e.settled)
	if !known || on <= 0 || now < r.until {
		return false
	}
	if r.strikes == 0 || now-r.last > refusalKeep.Nanoseconds() {
		r.strikes, r.taken, r.since = 0, 0, now
	}
	switch taken := e.settle(head); {
	case taken:
		r.taken++
		return false
	case !settled: // nothing is known of what was before
		return false
	}
	r.strikes++
	r.last = now
	return r.strikes >= refusalStrikes && now-r.since >= refusalSpan.Nanoseconds() && r.taken*refusalTaken <= r.strikes
}

// refuse begins a pause, twice as long as the one before unless superframes went well for longer than that. It returns 1, for the count.
func (r *refusal) refuse(now int64) uint64 {
	pause := refusalPause
	if r.pause > 0 && now-r.ended <= r.pause.Nanoseconds() {
		pause = min(2*r.pause, refusalLongest)
	}
	*r = refusal{mode: refused, pause: pause, until: now + pause.Nanoseconds()}
	return 1
}

// goOn ends a pause or a wait for an answer. It returns 1 where that is a refusal, for the count.
func (r *refusal) goOn(now int64) uint64 {
	if r.mode == refused {
		r.ended = now
	} else if r.answer(); r.bad == refusalRounds {
		return r.refuse(now)
	}
	if r.good == refusalRounds {
		*r = refusal{pause: r.pause, ended: r.ended, until: now + r.pause.Nanoseconds()}
		return 0
	}
	*r = refusal{mode: trying, pause: r.pause, ended: r.ended, good: r.good, bad: r.bad, until: math.MaxInt64}
	return 0
}

// answer counts a burst of a trial as bad if half of what it brought and more came again.
func (r *refusal) answer() {
	brought, again := 0, 0
	for i := range r.flows {
		if e := &r.flows[i]; e.flow != 0 {
			brought++
			if e.again {
				again++
			}
		}
	}
	if 2*again >= brought {
		r.bad++
	} else {
		r.good++
	}
}

// forgive forgets what is known of a guest: another one came, or the operator wants it tried.
func (w *Worker) forgive(p *port) {
	p.refusal = refusal{}
	w.table.Single(p.Index, false, w.now)
}

// carryOut tells the table what the last step found out: within it, the table was at work.
func (w *Worker) carryOut() {
	w.judged, w.now = false, w.clock()
	for _, p := range w.list {
		w.table.Single(p.Index, p.refusal.single(), w.now)
	}
}

// singleFor is how long the guest gets no superframes from now on, but for those of a trial: 0 only where it gets them. With what comes behind a
// pause it is tried, so until it has stood that nobody knows, and a nanosecond says so.
func (r *refusal) singleFor(now int64) time.Duration {
	switch r.mode {
	case superframes:
		return 0
	case trying:
		return 1
	}
	return time.Duration(max(r.until-now, 1))
}
