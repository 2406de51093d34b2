package stackguest

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// What a back-end can do wrong with used receive buffers, beside what virtio.CheckRx finds (virtio 1.2, 5.1.6.4).
var (
	errNoHeader   = errors.New("used buffer shorter than the virtio header")
	errTooLong    = errors.New("used length beyond the buffer")
	errNumBuffers = errors.New("num_buffers is 0, or not 1 without MRG_RXBUF")
	errMissing    = errors.New("fewer used buffers visible than num_buffers says")
	errNotFull    = errors.New("a buffer that is not the frame's last is not filled")
)

// rxRing is the receive half of a pair: buffers of one size, posted in a circle, each one chain of one descriptor.
// A token is a buffer's index.
type rxRing struct {
	drv  *vring.Driver
	mem  []byte // the buffers, one after the other
	gpa  uint64 // of mem
	size int    // bytes of a buffer
	feat virtio.Features
	kick int // eventfd

	toks    []uint64     // buffers of the frame in hand
	iov     []unix.Iovec // its pieces for the tap, header included
	lens    []int        // bytes of each piece
	start   int          // offset of its first piece in mem
	total   int          // its bytes, header included
	last    int          // where its last piece ends in mem: a piece that begins there continues it
	hdr     virtio.NetHdr
	scratch []byte // a frame whose pieces do not touch, copied for the validator
	pending int    // buffers posted and not published
	buf     [1]vring.Buffer
}

// publishEvery bounds how many buffers the back-end waits for while a turn lasts.
const publishEvery = 64

func (r *rxRing) init(num int) error {
	r.toks = make([]uint64, 0, num)
	r.iov = make([]unix.Iovec, 0, num)
	r.lens = make([]int, 0, num)
	r.scratch = make([]byte, 0, maxFrame)
	for i := range num {
		if err := r.post(uint64(i)); err != nil {
			return err
		}
	}
	r.pending = 0
	if r.drv.Publish() {
		signal(r.kick)
	}
	return nil
}

func (r *rxRing) post(tok uint64) error {
	r.buf[0] = vring.Buffer{Addr: r.gpa + tok*uint64(r.size), Len: uint32(r.size), Writable: true}
	if err := r.drv.Add(r.buf[:], tok); err != nil {
		return fmt.Errorf("receive ring: post: %w", err)
	}
	r.pending++
	return nil
}

// gather takes the next frame's buffers. fault is what the back-end did wrong; the frame is then to be thrown away, its
// buffers are in toks all the same. ok is false when there is no frame.
func (r *rxRing) gather() (ok bool, fault error) {
	r.toks, r.iov, r.lens = r.toks[:0], r.iov[:0], r.lens[:0]
	r.total = 0
	tok, n, ok := r.drv.Used()
	if !ok {
		return false, nil
	}
	r.toks = append(r.toks, tok)
	hdrLen := r.feat.HdrLen()
	if int(n) < hdrLen {
		return true, errNoHeader
	}
	if int(n) > r.size {
		return true, errTooLong
	}
	r.start = int(tok) * r.size
	r.last = r.start
	if err := r.hdr.Decode(r.mem[r.start:][:hdrLen]); err != nil {
		return true, errNoHeader
	}
	r.add(r.start, int(n))
	num := 1
	if hdrLen == virtio.HdrSize {
		num = int(r.hdr.NumBuffers)
	}
	if num < 1 || num > 1 && !r.feat.Has(virtio.FMrgRxbuf) {
		fault = errNumBuffers
	}
	for i := 1; i < num; i++ {
		if int(n) != r.size && fault == nil {
			fault = errNotFull
		}
		// The standard wants all of a frame's elements to become visible at once, so waiting would hide a fault.
		if tok, n, ok = r.drv.Used(); !ok {
			return true, errMissing
		}
		r.toks = append(r.toks, tok)
		if int(n) > r.size {
			fault = errTooLong
			continue
		}
		r.add(int(tok)*r.size, int(n))
	}
	return true, fault
}

// add appends a piece, joining it to the one before when they touch.
func (r *rxRing) add(off, n int) {
	r.total += n
	if k := len(r.iov) - 1; k >= 0 && off == r.last {
		r.lens[k] += n
		r.iov[k].SetLen(r.lens[k])
	} else if n > 0 {
		r.iov = append(r.iov, unix.Iovec{Base: &r.mem[off]})
		r.lens = append(r.lens, n)
		r.iov[k+1].SetLen(n)
	}
	r.last = off + n
}

// frame returns the frame in hand behind its header, contiguous. Buffers that were used in the order they were posted
// lie side by side in memory, but at the end of the circle; only there the bytes are copied, for the validator alone.
func (r *rxRing) frame() []byte {
	hdrLen := r.feat.HdrLen()
	if len(r.iov) == 1 {
		return r.mem[r.start:][hdrLen:r.total]
	}
	r.scratch = r.scratch[:0]
	left := r.total
	for _, tok := range r.toks {
		n := min(left, r.size)
		r.scratch = append(r.scratch, r.mem[int(tok)*r.size:][:n]...)
		left -= n
	}
	return r.scratch[hdrLen:]
}

// turn moves up to budget frames to the tap and gives their buffers back. It returns how many it moved.
func (r *rxRing) turn(tap int, budget int, c *counts) (int, error) {
	moved := 0
	for moved < budget {
		ok, fault := r.gather()
		if !ok {
			break
		}
		moved++
		c.rxFrames++
		c.rxBuffers += uint64(len(r.toks))
		if fault == nil {
			frame := r.frame()
			c.rxBytes += uint64(len(frame))
			c.countTCP(&r.hdr, frame)
			fault = virtio.CheckRx(&r.hdr, frame, r.feat)
			if r.hdr.GSOType != virtio.GSONone && c.shared.refuses.Load() {
				c.dropped++
			} else if _, errno := writev(tap, r.iov); errno != 0 {
				c.tapError(errno)
			}
		}
		if fault != nil {
			c.violation(fault, &r.hdr, r.total-r.feat.HdrLen())
		}
		for _, tok := range r.toks {
			if err := r.post(tok); err != nil {
				return moved, err
			}
		}
		if r.pending >= publishEvery {
			r.publish()
		}
	}
	if r.pending > 0 {
		r.publish()
	}
	return moved, r.drv.Err()
}

func (r *rxRing) publish() {
	r.pending = 0
	if r.drv.Publish() {
		signal(r.kick)
	}
}

// refused says whether the tap turned a frame down for what it is, and not for the state of the host.
func refused(errno syscall.Errno) bool { return errno == unix.EINVAL }
