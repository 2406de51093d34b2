package vhost

import (
	"encoding/binary"
	"errors"

	"github.com/rscctl/rscctl/vhost/vring"
)

// errOverBudget: the message would fit, but takes more chains than its sender allows.
var errOverBudget = errors.New("more buffers than allowed")

// mergeable writes messages of any device type into a receive virtqueue: a header
// and a payload behind it, into as many of the driver's buffers as it takes
// (VIRTIO_NET_F_MRG_RXBUF, virtio 1.2, 5.1.6.4, and VIRTIO_VSOCK_F_MRG_RXBUF). What
// a header says it does not know, but for the number of buffers, which only it
// knows. A message is written whole or not at all.
//
// It also remembers a shortage, so that a driver without buffers costs one load
// for each try, and asks for a kick at the place that ends it.
//
// It belongs to whoever holds the queue's lock. Guest memory may fault in put, arm
// and rest: whoever calls recovers (queue.guard), and the ring is not used again.
type mergeable struct {
	dev vring.Device
	receiveShape
	chain vring.Chain

	taken  []vring.Used   // chains of the message in hand
	first  vring.Position // of them
	segs   [][]byte       // their memory, in order
	walked int            // pieces of chains looked at, also in vain
	least  int            // bytes in the smallest chain of the last message; 0 before any

	armed  bool           // the driver was asked for kicks
	short  bool           // the last message found too few buffers; kicks are armed
	seen   vring.Position // where the ring had no more then
	wanted int            // bytes that were not to be had then
}

// receiveShape is what a device type and its features say about the messages of a
// receive virtqueue.
type receiveShape struct {
	most         int // chains that one message may take: 1, or the ring's size where the driver merges them
	numBuffersAt int // where the header has the number of chains, as 16 bits (le16); -1 where it has none
}

// start makes m write into a ring that starts.
func (m *mergeable) start(dev vring.Device, s receiveShape) {
	m.dev, m.receiveShape = dev, s
	m.least, m.short, m.armed = 0, false, false
	if m.taken == nil {
		m.taken, m.segs = make([]vring.Used, 0, 64), make([][]byte, 0, 256)
	}
}

// stop forgets the ring and every slice of the guest's memory.
func (m *mergeable) stop() {
	m.dev = nil
	m.chain = vring.Chain{}
	clear(m.segs[:cap(m.segs)])
}

// put writes one message of n bytes of payload, over at most budget chains; pieces
// bounds the pieces of those before the last, 0: not at all. hdr is
// the header, in which the number of chains is filled in; its length is the device
// type's, and not 0. The driver sees the message after Publish. Nothing is written
// before there is room for all of it, and the ring is rewound if there is not.
//
// Where sum is not nil it copies the payload, and tells what is wrong with it: the
// ring is rewound then as well, and put returns what it returned.
//
// The errors are ErrNoBuffers, ErrTooBig, errOverBudget, and those of the ring: then
// it is broken.
func (m *mergeable) put(hdr []byte, payload [][]byte, n, budget, pieces int, sum *summing) error {
	need := len(hdr) + n
	if m.short && need >= m.wanted && !m.news() {
		return ErrNoBuffers // without a walk: what was too little is no more
	}
	m.taken, m.segs = m.taken[:0], m.segs[:0]
	limit := min(budget, m.most)
	c, left := &m.chain, need
	for armed := false; left > 0; {
		if len(m.taken) == limit { // more buffers, or the same ones later, do not help
			m.undo()
			if limit < m.most {
				return errOverBudget
			}
			return ErrTooBig
		}
		ok, err := m.dev.Next(c)
		if err != nil {
			return err
		}
		if !ok {
			// Ask for a kick at the point where the ring is empty for us, and look
			// again: the place at which the driver is to kick must lie behind the
			// chains that are given back, or its next buffers would not pass it.
			if !armed {
				armed, m.armed = true, true
				if m.dev.EnableNotify() {
					continue
				}
			}
			m.short, m.seen, m.wanted = true, m.dev.Mark(), need
			m.undo()
			return ErrNoBuffers
		}
		m.walked += c.Walked()
		if c.ReadLen > 0 { // a receive queue has nothing to read (section 2.7.4.2, 5.1.6.3)
			m.dev.Fail(vring.ErrReadable)
			return vring.ErrReadable
		}
		if len(m.taken) == 0 {
			m.first, m.least = c.At, c.WriteLen
		}
		m.least = min(m.least, c.WriteLen)
		m.taken = append(m.taken, vring.Used{Head: c.Head, Written: uint32(c.WriteLen)})
		if len(c.Writable) == 1 { // of nearly all guests: no call of a copy for 24 bytes
			m.segs = append(m.segs, c.Writable[0])
		} else {
			m.segs = append(m.segs, c.Writable...)
		}
		if left -= c.WriteLen; pieces > 0 && left > 0 && len(m.segs) > pieces {
			m.undo()
			return errOverBudget
		}
	}
	m.short = false
	// Every chain but the last is filled (section 5.1.6.4.1); the last has room left by which left is below 0.
	m.taken[len(m.taken)-1].Written -= uint32(-left)
	if m.numBuffersAt >= 0 {
		binary.LittleEndian.PutUint16(hdr[m.numBuffersAt:], uint16(len(m.taken))) // at most the ring's size
	}
	if sum == nil {
		scatter(m.segs, hdr, payload)
	} else if !sum.scatter(m.segs, hdr, payload) {
		m.undo()
		return ErrDamaged
	}
	m.dev.Push(m.taken)
	return nil
}

// undo gives back what put has taken, from the first chain on.
func (m *mergeable) undo() {
	if len(m.taken) > 0 {
		m.dev.Rewind(m.first)
	}
}

// scatter copies hdr and payload into segs, which hold enough.
func scatter(segs [][]byte, hdr []byte, payload [][]byte) {
	segs = write(segs, hdr)
	for _, src := range payload {
		segs = write(segs, src)
	}
}

// holds is how many bytes, the header counted, surely fit into budget chains like
// those of the last message; 0 before there was any.
func (m *mergeable) holds(budget int) int { return m.least * min(budget, m.most) }

// arm asks the driver for a kick when it posts buffers, and reports whether some have
// arrived since put last found too few; or, if it did not, whether there are any.
func (m *mergeable) arm() (available bool) {
	m.armed = true
	if m.short { // put has armed the kick behind the buffers that it gave back
		return m.news()
	}
	return m.dev.EnableNotify()
}

// rest tells the driver that no kick is needed, unless a message waits for room.
func (m *mergeable) rest() {
	if m.armed && !m.short {
		m.armed = false
		m.dev.DisableNotify()
	}
}

// news tells whether the driver has posted buffers since put found too few: one load
// of what it has made available.
func (m *mergeable) news() bool { return m.dev.Available(m.seen) }
