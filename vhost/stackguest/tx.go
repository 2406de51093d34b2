package stackguest

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/vring"
)

// maxFrame is the longest frame the tap hands out, behind its header: 65535 bytes of IP and an Ethernet header.
// (A tap's frame is at most 65535 bytes as a whole; the room for more costs nothing.)
const maxFrame = 65535 + 14

// txStride is the distance of two transmit buffers: header and longest frame, rounded up to a page.
const txStride = (12 + maxFrame + 4095) &^ 4095

// txRing is the transmit half of a pair: one buffer, one descriptor per frame.
type txRing struct {
	drv    *vring.Driver
	mem    []byte
	gpa    uint64
	hdrLen int
	kick   int
	free   []uint64 // buffers to read into; the last used is the next taken, because it is in the cache
	buf    [1]vring.Buffer
}

func (t *txRing) init(num int) {
	t.free = make([]uint64, 0, num)
	for i := num - 1; i >= 0; i-- {
		t.free = append(t.free, uint64(i))
	}
}

// reclaim takes back what the back-end has sent.
func (t *txRing) reclaim() {
	for {
		tok, _, ok := t.drv.Used()
		if !ok {
			return
		}
		t.free = append(t.free, tok)
	}
}

// turn moves up to budget frames from the tap into the ring and returns how many.
func (t *txRing) turn(tap int, budget int, c *counts) (int, error) {
	t.reclaim()
	moved := 0
	for moved < budget && len(t.free) > 0 {
		tok := t.free[len(t.free)-1]
		b := t.mem[int(tok)*txStride:][:t.hdrLen+maxFrame]
		n, errno := read(tap, b)
		if errno == unix.EAGAIN {
			break
		}
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return moved, fmt.Errorf("tap: read: %w", errno)
		}
		if n < t.hdrLen {
			continue
		}
		if t.hdrLen == 12 {
			b[10], b[11] = 0, 0 // num_buffers is 0 on transmit; the kernel leaves these bytes as they were
		}
		t.buf[0] = vring.Buffer{Addr: t.gpa + tok*txStride, Len: uint32(n)}
		if err := t.drv.Add(t.buf[:], tok); err != nil {
			return moved, fmt.Errorf("transmit ring: post: %w", err)
		}
		t.free = t.free[:len(t.free)-1]
		moved++
		c.txFrames++
		c.txBytes += uint64(n - t.hdrLen)
	}
	if moved > 0 && t.drv.Publish() {
		signal(t.kick)
	}
	return moved, t.drv.Err()
}
