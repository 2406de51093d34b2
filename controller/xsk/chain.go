package xsk

import "golang.org/x/sys/unix"

// A frame that no chunk holds comes in several entries of the RX ring, of which all but the last say that it goes on (AF_XDP multi-buffer,
// Linux 6.6). The kernel shows all of them at once. Here it becomes one piece again, in a buffer: everybody behind takes frames in
// one piece, and the copy leaves it in the cache. Its chunks go back to the pool at once.
//
// Entries are released frame by frame, never in the middle of one. So whoever goes on after a crash begins with a frame's beginning, and the
// words of its chunks are in the order that owners.go asks for: in hand, released, in the pool.

// maxPieces is more than the kernel makes of a frame (MAX_SKB_FRAGS and the linear part: 18).
const maxPieces = 32

// chains is what Recv keeps of frames in several chunks.
type chains struct {
	joined [8 * maxPieces]uint64 // chunks whose bytes were copied, and whose entries are not released yet
	n      int                   // of joined
	passed bool                  // the last entry taken belonged to a frame without an end: what follows is the rest of it
	lost   Lost
}

// Lost are frames that came in several chunks and were given up.
type Lost struct {
	NoBuffer uint64 // all buffers were in use
	Broken   uint64 // longer than a buffer, or not what the kernel may make
}

// Lost returns what was given up since the socket was opened. Like Recv it is for the socket's goroutine.
func (s *Socket) Lost() Lost { return s.chain.lost }

// recvChains is Recv where frames may come in several chunks.
func (s *Socket) recvChains(d []Desc) (n int) {
	c := &s.chain
	c.n = 0
	taken := false
	for n < len(d) && c.n+maxPieces <= len(c.joined) {
		pieces, whole := s.rx.nextFrame()
		if pieces == 0 {
			break
		}
		if s.takeFrame(pieces, whole && !c.passed, &d[n]) {
			n++
		}
		c.passed = !whole
		taken = true
	}
	if taken {
		s.rx.release()
	}
	for _, a := range c.joined[:c.n] {
		s.umem.give(a)
	}
	return n
}

// nextFrame is how many entries the next frame has. 0: it is not there, or not all of it. whole is false for a frame that goes on for longer
// than one can; these are its first entries.
func (r *descRing) nextFrame() (pieces uint32, whole bool) {
	for n := uint32(0); r.ready(n+1) > n; {
		e := &r.entries[(r.cachedC+n)&r.mask]
		if n++; e.options&unix.XDP_PKT_CONTD == 0 {
			return n, true
		}
		if n == maxPieces || n == r.size {
			return n, false
		}
	}
	return 0, false
}

// takeFrame takes the entries of the next frame, and reports whether it has become to. good: the frame may be used.
func (s *Socket) takeFrame(pieces uint32, good bool, to *Desc) bool {
	length, broken := uint64(0), !good
	for i := range pieces {
		e := &s.rx.entries[(s.rx.cachedC+i)&s.rx.mask]
		ours := s.umem.received(e.addr)
		if ours && (pieces > 1 || !good) {
			s.chain.joined[s.chain.n] = e.addr
			s.chain.n++
		}
		if pieces > 1 && (!ours || e.length > 0 && s.umem.frame(Desc{e.addr, e.length}) == nil) {
			broken = true
		}
		if pieces == 1 && good {
			s.rx.cachedC++
			if *to = (Desc{Addr: e.addr, Len: e.length}); !ours {
				*to = Desc{Addr: nowhere}
			}
			return true
		}
		length += uint64(e.length)
	}
	first := s.rx.cachedC
	s.rx.cachedC += pieces
	if broken || length > s.umem.large.size-frameHead {
		if !s.chain.passed { // the rest of one that is counted
			s.chain.lost.Broken++
		}
		return false
	}
	b, ok := s.umem.large.take()
	if !ok {
		s.chain.lost.NoBuffer++
		return false
	}
	*to = Desc{Addr: b.Addr, Len: uint32(length)}
	s.join(first, pieces, to)
	return true
}

// join copies a frame's pieces, and what XDP has written in front of the first one, into a buffer.
func (s *Socket) join(first, pieces uint32, to *Desc) {
	u := s.umem
	at := to.Addr
	for i := range pieces {
		e := &s.rx.entries[(first+i)&s.rx.mask]
		d := Desc{e.addr, e.length}
		if i == 0 {
			clear(u.meta(*to))
			copy(u.meta(*to), u.meta(d))
		}
		at += uint64(copy(u.mem[at:], u.frame(d)))
	}
}

// ChunkRoom is how long a frame may be that AllocTx has room for.
func (s *Socket) ChunkRoom() int { return s.umem.chunkSize() - Headroom }

// LargeRoom is how many frames AllocLarge takes now.
func (s *Socket) LargeRoom() int { return len(s.umem.large.free) }

// AllocLarge is AllocTx for a frame that no chunk holds. ok is false when all buffers are in use.
func (s *Socket) AllocLarge() (buf []byte, d Desc, ok bool) {
	if d, ok = s.umem.large.take(); !ok {
		return nil, d, false
	}
	return s.umem.frame(d), d, true
}

// sendChain is Send for a frame in a buffer. All of it is shown to the kernel at once, by Publish.
func (s *Socket) sendChain(d Desc) bool {
	frame, room := s.umem.frame(d), s.ChunkRoom()
	pieces := (len(frame) + room - 1) / room
	if pieces == 0 || int(s.tx.room(uint32(pieces))) < pieces || len(s.umem.free) < pieces {
		return false
	}
	for len(frame) > 0 {
		a, _ := s.umem.top()
		p := Desc{Addr: a + Headroom, Len: uint32(min(len(frame), room))}
		copy(s.umem.frame(p), frame)
		frame = frame[p.Len:]
		s.umem.lend(a, inTX, s.tx.cachedP)
		s.tx.put(p)
		if len(frame) > 0 {
			s.tx.entries[(s.tx.cachedP-1)&s.tx.mask].options = unix.XDP_PKT_CONTD
		}
		s.txPending++
	}
	s.txQueued = true
	s.umem.large.give(d.Addr)
	return true
}
