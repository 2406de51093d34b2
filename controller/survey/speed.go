package survey

import (
	"time"

	"github.com/rscctl/rscctl/flowtable/checksum"
)

// Speed is what the data path cannot do without, on one processor of this machine.
type Speed struct {
	CopyNS float64 // ns to copy the payload of a segment, from memory that is not in the cache
	SumNS  float64 // ns to sum it once more, for its checksum
}

const (
	payload = 1448     // bytes, of a segment with an MTU of 1500 and timestamps
	slot    = 2048     // bytes of a chunk
	region  = 64 << 20 // bytes: more than caches have
	rounds  = 5        // of which the fastest counts: what disturbs a measurement makes it slower
)

func measure() Speed {
	from, to := make([]byte, region), make([]byte, 64*slot)
	for i := range from {
		from[i] = byte(i * 7)
	}
	each := func(fn func(segment []byte, i int)) float64 {
		best := time.Duration(0)
		for range rounds {
			start := time.Now()
			for i := range region / slot {
				fn(from[i*slot:][:payload], i)
			}
			if took := time.Since(start); best == 0 || took < best {
				best = took
			}
		}
		return float64(best.Nanoseconds()) / (region / slot)
	}
	var s Speed
	s.CopyNS = each(func(segment []byte, i int) { copy(to[i%64*slot:], segment) })
	s.SumNS = each(func(segment []byte, i int) { to[i%64] += byte(checksum.Sum(segment, 0)) }) // used, or the compiler leaves it out
	return s
}
