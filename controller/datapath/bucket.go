package datapath

import (
	"math/bits"
	"sync/atomic"
)

// Bucket is a token bucket that the workers of a VM share: so many bits a second, and a burst at once. A frame may leave while there
// are tokens, and what it costs beyond them is owed: the debt is one frame, and the next waits until it is paid, so superframes that are
// larger than the burst pass at the rate.
//
// It is one word: how many bytes have been taken since the clock's beginning, or would have been had nobody ever waited. By the rate and
// the clock so many bytes were earned; the difference is the tokens. So nothing is rounded that could add up, nothing has to be done
// while nothing is sent, and a worker takes tokens with one compare-and-swap: no lock, and no part of the rate lies with a worker that
// does not need it. A bucket for each worker, with lending, would need somebody who evens them out.
//
// All counts are modulo 2^64: differences hold until a bucket of 1 Tbit/s has lain idle for two years.
type Bucket struct {
	rate  uint64 // bits a second
	burst uint64 // bytes
	taken atomic.Uint64
}

// NewBucket makes a full one, for a clock that has run for less than two years. rate is in bits a second, burst in bytes; both are at least 1, and at most 2^40.
func NewBucket(rate, burst uint64) *Bucket {
	return &Bucket{rate: rate, burst: burst}
}

// Is reports whether it was made with these.
func (b *Bucket) Is(rate, burst uint64) bool { return b != nil && b.rate == rate && b.burst == burst }

const bitNS = 8e9 // bits a second, times ns, in a byte

// earned is how many bytes the rate has made until now, ns, modulo 2^64.
func (b *Bucket) earned(now int64) uint64 {
	hi, lo := bits.Mul64(b.rate, uint64(max(0, now)))
	n, _ := bits.Div64(hi%bitNS, lo, bitNS)
	return n
}

// takes takes a frame of so many bytes, if there are tokens; the clock is all workers'.
func (b *Bucket) takes(now int64, bytes int) bool {
	earned := b.earned(now)
	for {
		was := b.taken.Load()
		from := was
		if int64(earned-was) > 0 { // full
			from = earned
		}
		if int64(from-earned) >= int64(b.burst) {
			return false
		}
		if b.taken.CompareAndSwap(was, from+uint64(bytes)) {
			return true
		}
	}
}

// giveBack takes back what takes took for a frame that has not left. No bucket has nothing to take back.
func (b *Bucket) giveBack(bytes int) {
	if b != nil {
		b.taken.Add(-uint64(bytes))
	}
}

// paceQuantum is how long a worker sleeps at least until a bucket that was empty has tokens for more than a frame: it would wake up for
// each of them.
const paceQuantum = 100_000 // ns

// ready is when an empty bucket has tokens again, for about paceQuantum of sending, but no more than half of the burst.
func (b *Bucket) ready(now int64) int64 {
	want := int64(min(max(1, b.burst/2), max(1, b.rate/(bitNS/paceQuantum))))
	missing := int64(b.taken.Load()-b.earned(now)) - int64(b.burst) + want // bytes to earn
	if missing <= 0 {
		return now
	}
	hi, lo := bits.Mul64(uint64(missing), bitNS)
	if hi >= b.rate {
		return now + int64(1)<<40 // 18 minutes: it is asked again then
	}
	ns, rest := bits.Div64(hi, lo, b.rate)
	if rest > 0 {
		ns++
	}
	return now + int64(min(ns, 1<<40))
}

// queue is how many chunks may wait for a VM whose bucket is empty: 50 ms of frames of 1,500 bytes, 64 at least. More would be delay.
func (b *Bucket) queue() int { return int(max(64, b.rate/8/20/1500)) }

// wireBytes is what packets take on the wire that together are so many bytes, headers of the first alone among them: each has these
// headers, is padded, and may have a tag. Preamble, FCS and gap are no bytes of the frame.
func wireBytes(length, header, packets int, tagged bool) int {
	n := max(length+(packets-1)*header, packets*minWire)
	if tagged {
		n += packets * vlanTag
	}
	return n
}
