package vring

import "encoding/binary"

// MaxSegments is the most pieces a chain may have, buffers that cross regions counted piece by piece, and the most
// entries of an indirect table. It is the kernel's UIO_MAXIOV, the limit of vhost-net.
const MaxSegments = 1024

// Chain is one descriptor chain as slices of guest memory. The zero value is ready. A Chain is large (24 KiB) and meant
// to be reused: [Device.Next] overwrites it, and with it the slices of the call before.
type Chain struct {
	Head               Head     // to be given to Push
	At                 Position // the ring's before Next: Rewind to it gives this chain back
	Readable, Writable [][]byte // what the device reads and what it writes, in order; no slice is empty
	ReadLen, WriteLen  int      // their bytes; together at most 4294967295
	// WritableGPA are the guest physical addresses of the pieces of Writable, for the log of pages that the device wrote
	// while the guest migrates (VHOST_LOG). They are there with LOG_ALL only: nobody else asks, and a chain of 1024
	// pieces would drag 8 KiB more through the cache.
	WritableGPA []uint64
	Table       int // entries of the indirect table that was copied, used or not; 0: there was none

	segs [MaxSegments][]byte // behind Readable and Writable, so that no chain allocates
	gpas []uint64            // behind WritableGPA, likewise; made with the first chain that is logged
}

// Walked is what it took to collect the chain, in descriptors: the copy of an indirect table takes as long as looking at a part of
// its entries.
func (c *Chain) Walked() int { return len(c.Readable) + len(c.Writable) + c.Table/entriesPerPiece }

// entriesPerPiece is how many entries of a table are copied while a descriptor is looked at: 128 bytes.
const entriesPerPiece = 8

func (c *Chain) reset() {
	c.Head = 0
	c.Readable, c.Writable, c.WritableGPA = nil, nil, nil
	c.ReadLen, c.WriteLen, c.Table = 0, 0, 0
}

// startLog makes room for addresses, once in a chain's life.
func (c *Chain) startLog() {
	if c.gpas == nil {
		c.gpas = make([]uint64, 0, MaxSegments)
	}
	c.WritableGPA = c.gpas
}

// logPieces notes the address of each piece of one writable buffer. A buffer is contiguous for the guest also where it
// runs on from one region of ours into the next.
func (c *Chain) logPieces(gpa uint64, pieces [][]byte) {
	for _, p := range pieces {
		c.WritableGPA = append(c.WritableGPA, gpa)
		gpa += uint64(len(p))
	}
}

// descriptor is a private copy of one. Each field is read from shared memory once; the Go memory model forbids the
// compiler to read it again behind our back ("a single read to observe multiple values"), so what was checked is what is used.
type descriptor struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

func readDescriptor(table []byte, i int) descriptor {
	b := table[i*descSize : i*descSize+descSize]
	return descriptor{
		addr:  binary.LittleEndian.Uint64(b[0:8]),
		len:   binary.LittleEndian.Uint32(b[8:12]),
		flags: binary.LittleEndian.Uint16(b[12:14]),
		next:  binary.LittleEndian.Uint16(b[14:16]),
	}
}

// collect fills c with the chain that begins at head; after an error c is in no defined state. Whatever the descriptors say, it visits at most as many as the
// table has, and then as many as the indirect table has.
func (d *splitDevice) collect(c *Chain, head uint16) error {
	if int(head) >= d.num {
		return ErrHeadRange
	}
	x := readDescriptor(d.desc, int(head))
	if x.flags&(DescNext|DescIndirect|DescWrite) == DescWrite && !d.log && x.len > 0 {
		// One descriptor, which the device writes: of nearly all drivers what a receive queue is made of.
		if buf, err := d.mem.Slice(x.addr, uint64(x.len)); err == nil {
			c.segs[0] = buf
			c.Head, c.Readable, c.Writable, c.WritableGPA = Head(head), nil, c.segs[:1], nil
			c.ReadLen, c.WriteLen, c.Table = 0, len(buf), 0
			return nil
		}
	}
	return d.walk(c, head, x)
}

// walk fills c with the chain that begins with the descriptor x at head.
func (d *splitDevice) walk(c *Chain, head uint16, x descriptor) error {
	var (
		table    = d.desc
		size     = d.num
		indirect = false
		visited  = 0 // descriptors of table, with x
		segs     = c.segs[:0]
		readable = -1 // pieces before the first writable one; -1 while none is
		bytes    [2]uint64
	)
	c.WritableGPA, c.Table = nil, 0 // c may have held another chain
	if d.log {
		c.startLog()
	}
	for {
		visited++
		if x.flags&DescIndirect != 0 {
			// A chain may end in an indirect table (section 2.7.5.3.2), and there it ends.
			if indirect {
				return ErrIndirectNested
			}
			n, err := d.copyTable(c, len(segs), x)
			if err != nil {
				return err
			}
			table, size, indirect, visited = d.table, n, true, 0
			c.Table = n
			x = readDescriptor(table, 0)
			continue
		}
		if x.len == 0 {
			return ErrZeroLength
		}
		dir := x.flags & DescWrite >> 1
		if dir != 0 && readable < 0 {
			readable = len(segs)
		} else if dir == 0 && readable >= 0 {
			return ErrOrder // section 2.7.4.2
		}
		bytes[dir] += uint64(x.len) // no overflow: at most MaxSegments times 2^32
		if bytes[0]+bytes[1] > 1<<32-1 {
			return ErrChainTooLong
		}
		var err error
		if segs, err = d.mem.Append(segs, x.addr, uint64(x.len)); err != nil {
			return ErrOutOfRegion
		}
		if len(segs) > MaxSegments {
			return ErrTooManySegments
		}
		if d.log && dir != 0 {
			c.logPieces(x.addr, segs[readable+len(c.WritableGPA):])
		}
		if x.flags&DescNext == 0 {
			break
		}
		if int(x.next) >= size {
			return ErrNextRange
		}
		if len(segs) == MaxSegments {
			return ErrTooManySegments // here and not after Append, so that not even a hostile chain allocates much
		}
		if visited == size {
			return ErrLoop // a chain of distinct descriptors cannot be longer than its table
		}
		x = readDescriptor(table, int(x.next))
	}
	if readable < 0 {
		readable = len(segs)
	}
	c.Head = Head(head)
	c.Readable, c.Writable = segs[:readable:readable], segs[readable:]
	c.ReadLen, c.WriteLen = int(bytes[0]), int(bytes[1])
	return nil
}

// copyTable copies the indirect table that x points at into d.table and returns its number of entries. It is copied
// whole before any of it is looked at, because it may lie across regions and because the driver may still write to it.
// The WRITE flag of x is ignored (section 2.7.5.3.2). The standard allows a table of up to N entries; Linux posts more
// on small rings, so the limit is what a chain may have.
func (d *splitDevice) copyTable(c *Chain, used int, x descriptor) (entries int, err error) {
	switch {
	case !d.indirect:
		return 0, ErrIndirectOff
	case x.flags&DescNext != 0:
		return 0, ErrIndirectNext
	case x.len == 0, x.len%descSize != 0:
		return 0, ErrIndirectLength
	case x.len > MaxSegments*descSize:
		return 0, ErrIndirectTooLong
	}
	pieces, err := d.mem.Append(c.segs[used:used], x.addr, uint64(x.len)) // the chain's unused slices serve as scratch
	if err != nil {
		return 0, ErrOutOfRegion
	}
	n := 0
	for _, p := range pieces {
		n += copy(d.table[n:], p)
	}
	return n / descSize, nil
}
