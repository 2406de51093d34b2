package stackguest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// Stats are the counters of a Guest since it was opened. Bytes are those of frames, from Ethernet on, without header.
type Stats struct {
	RxFrames   uint64 // frames the back-end delivered
	RxBytes    uint64
	RxBuffers  uint64 // receive buffers they filled
	DataFrames uint64 // of RxFrames: TCP with payload
	Segments   uint64 // TCP data segments inside DataFrames, by gso_size
	Largest    uint64 // longest frame delivered
	TxFrames   uint64 // frames of the stack given to the back-end
	TxBytes    uint64

	Violations uint64 // frames whose header or buffers break the rules of virtio
	First      string // the first violation in words, "" without one
	TapRefused uint64 // frames the kernel turned down as malformed (EINVAL)
	TapErrors  uint64 // frames the tap did not take for another reason
	FirstTap   string // the first such error in words
	Sleeps     uint64 // times the loop waited
	Dropped    uint64 // superframes thrown away, see RefuseSuperframes
}

// counts are one loop's plain counters. publish makes them visible, once per turn.
type counts struct {
	rxFrames, rxBytes, rxBuffers, dataFrames, segments, largest uint64
	txFrames, txBytes                                           uint64
	violations, tapRefused, tapErrors, sleeps, dropped          uint64

	shared *shared
}

// shared is what other goroutines read.
type shared struct {
	rxFrames, rxBytes, rxBuffers, dataFrames, segments, largest atomic.Uint64
	txFrames, txBytes                                           atomic.Uint64
	violations, tapRefused, tapErrors, sleeps, dropped          atomic.Uint64

	refuses atomic.Bool // the loop reads it

	mu       sync.Mutex // first, firstTap
	first    string
	firstTap string
}

func (c *counts) publish() {
	s := c.shared
	s.rxFrames.Store(c.rxFrames)
	s.rxBytes.Store(c.rxBytes)
	s.rxBuffers.Store(c.rxBuffers)
	s.dataFrames.Store(c.dataFrames)
	s.segments.Store(c.segments)
	s.largest.Store(c.largest)
	s.txFrames.Store(c.txFrames)
	s.txBytes.Store(c.txBytes)
	s.violations.Store(c.violations)
	s.tapRefused.Store(c.tapRefused)
	s.tapErrors.Store(c.tapErrors)
	s.sleeps.Store(c.sleeps)
	s.dropped.Store(c.dropped)
}

// violation counts one; the first is kept in words.
func (c *counts) violation(fault error, h *virtio.NetHdr, frameLen int) {
	if c.violations++; c.violations > 1 {
		return
	}
	c.shared.mu.Lock()
	c.shared.first = fmt.Sprintf("frame %d, %d bytes, header %+v: %v", c.rxFrames, frameLen, *h, fault)
	c.shared.mu.Unlock()
}

func (c *counts) tapError(errno syscall.Errno) {
	if refused(errno) {
		c.tapRefused++
	} else {
		c.tapErrors++
	}
	if c.tapRefused+c.tapErrors > 1 {
		return
	}
	c.shared.mu.Lock()
	c.shared.firstTap = fmt.Sprintf("frame %d: %v", c.rxFrames, errno)
	c.shared.mu.Unlock()
}

// addTo adds one pair's counters to a sum.
func (s *shared) addTo(t *Stats) {
	t.RxFrames += s.rxFrames.Load()
	t.RxBytes += s.rxBytes.Load()
	t.RxBuffers += s.rxBuffers.Load()
	t.DataFrames += s.dataFrames.Load()
	t.Segments += s.segments.Load()
	t.Largest = max(t.Largest, s.largest.Load())
	t.TxFrames += s.txFrames.Load()
	t.TxBytes += s.txBytes.Load()
	t.Violations += s.violations.Load()
	t.TapRefused += s.tapRefused.Load()
	t.TapErrors += s.tapErrors.Load()
	t.Sleeps += s.sleeps.Load()
	t.Dropped += s.dropped.Load()
	s.mu.Lock()
	if t.First == "" {
		t.First = s.first
	}
	if t.FirstTap == "" {
		t.FirstTap = s.firstTap
	}
	s.mu.Unlock()
}
