// Package vringtest is a guest for tests: memory with a ring in it, a well-behaved driver on that ring, and knobs to
// misbehave that write any descriptor, head or index by hand. By default its memory is Go heap, so that the race
// detector sees both sides.
package vringtest

import (
	"encoding/binary"
	"fmt"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// Where the guest's memory begins by default. The two differ so that a mix-up of address spaces shows.
const (
	DefaultGPA = 0x100000
	DefaultUVA = 0x7f0000000000
)

// Options shape a guest. The zero value is a ring of 256 in 1 MiB of heap, all features off.
type Options struct {
	Num      int             // ring size; 0 is 256
	Features virtio.Features // INDIRECT_DESC and EVENT_IDX matter
	Indirect int             // longest indirect chain of Driver; 0 posts direct chains
	Data     int             // bytes for buffers behind the ring; 0 is 1 MiB
	Split    int             // cut the buffers into adjacent regions of this many bytes; 0 is one region
	Mem      []byte          // use this memory (a mapping, say) instead of heap; at least [Size] bytes, aligned to 64
}

// Guest is a ring with its memory.
type Guest struct {
	Layout   vring.Layout
	Table    *guestmem.Table
	Features virtio.Features
	Mem      []byte // everything: ring, indirect tables, buffers; Split gives the buffers other memory
	RingGPA  uint64 // of the descriptor table; UVA is RingGPA - DefaultGPA + DefaultUVA

	DataGPA, DataEnd uint64 // buffers
	next             uint64 // first free byte of them
	area             vring.IndirectArea
}

// Size is the memory that a guest of these options needs in one piece.
func Size(o Options) int {
	o = o.defaults()
	return vring.Bytes(o.Num) + roundUp(vring.IndirectBytes(o.Num, o.Indirect)) + o.Data
}

func (o Options) defaults() Options {
	if o.Num == 0 {
		o.Num = 256
	}
	if o.Data == 0 {
		o.Data = 1 << 20
	}
	return o
}

func roundUp(n int) int { return (n + 63) &^ 63 }

// New makes a guest. It panics on impossible options, being for tests.
func New(o Options) *Guest {
	o = o.defaults()
	if o.Mem == nil {
		o.Mem = Heap(Size(o))
	}
	g := &Guest{Mem: o.Mem, Features: o.Features, RingGPA: DefaultGPA}
	var err error
	if g.Layout, err = vring.Split(g.Mem, o.Num); err != nil {
		panic(err)
	}
	fixed := vring.Bytes(o.Num)
	if o.Indirect > 0 {
		n := roundUp(vring.IndirectBytes(o.Num, o.Indirect))
		g.area = vring.IndirectArea{Mem: g.Mem[fixed : fixed+n], GPA: DefaultGPA + uint64(fixed), Entries: o.Indirect}
		fixed += n
	}
	g.DataGPA, g.DataEnd = DefaultGPA+uint64(fixed), DefaultGPA+uint64(fixed+o.Data)
	g.next = g.DataGPA
	if o.Split == 0 {
		g.Table = guestmem.FromBytes(DefaultGPA, DefaultUVA, g.Mem[:fixed+o.Data])
		return g
	}
	parts := []guestmem.Part{{GPA: DefaultGPA, UVA: DefaultUVA, Mem: g.Mem[:fixed]}}
	for off := 0; off < o.Data; off += o.Split {
		gpa := g.DataGPA + uint64(off) // a region of its own somewhere else in our memory
		parts = append(parts, guestmem.Part{GPA: gpa, UVA: gpa - DefaultGPA + DefaultUVA, Mem: Heap(min(o.Split, o.Data-off))})
	}
	if g.Table, err = guestmem.FromParts(parts...); err != nil {
		panic(err)
	}
	return g
}

// Device makes the device side at base 0.
func (g *Guest) Device() (vring.Device, error) {
	return vring.NewDevice(g.Table, g.Layout, g.Features, vring.Position{})
}

// At is the place of a split ring at which avail entry base is taken next. Device.Base is one of these.
func At(base uint16) vring.Position {
	p, err := vring.ParseBase(0, uint32(base))
	if err != nil {
		panic(err)
	}
	return p
}

// Driver makes the well-behaved driver side, which clears the ring. Make it before the device.
func (g *Guest) Driver() (*vring.Driver, error) { return vring.NewDriver(g.Layout, g.Features, g.area) }

// Alloc takes n bytes of buffer space and returns their guest address. Space is taken round and round: what was got
// long ago is given out again. It panics if n bytes are never there.
func (g *Guest) Alloc(n int) uint64 {
	if uint64(n) > g.DataEnd-g.DataGPA {
		panic(fmt.Sprintf("vringtest: %d bytes asked, %d there", n, g.DataEnd-g.DataGPA))
	}
	if uint64(n) > g.DataEnd-g.next {
		g.next = g.DataGPA
	}
	gpa := g.next
	g.next += uint64(n)
	return gpa
}

// Pieces is the guest memory at an address as slices, several where regions meet.
func (g *Guest) Pieces(gpa uint64, n int) [][]byte {
	out, err := g.Table.Append(nil, gpa, uint64(n))
	if err != nil {
		panic(err)
	}
	return out
}

// Read copies n bytes out of guest memory.
func (g *Guest) Read(gpa uint64, n int) []byte {
	out := make([]byte, 0, n)
	for _, p := range g.Pieces(gpa, n) {
		out = append(out, p...)
	}
	return out
}

// Write copies b into guest memory.
func (g *Guest) Write(gpa uint64, b []byte) {
	for _, p := range g.Pieces(gpa, len(b)) {
		b = b[copy(p, b):]
	}
}

// Desc is a descriptor as it lies in the ring or in an indirect table.
type Desc struct {
	Addr        uint64
	Len         uint32
	Flags, Next uint16
}

// Encode writes the descriptor's 16 bytes to the front of b.
func (d Desc) Encode(b []byte) {
	binary.LittleEndian.PutUint64(b[0:8], d.Addr)
	binary.LittleEndian.PutUint32(b[8:12], d.Len)
	binary.LittleEndian.PutUint16(b[12:14], d.Flags)
	binary.LittleEndian.PutUint16(b[14:16], d.Next)
}

// Set writes descriptor i of the ring.
func (g *Guest) Set(i int, d Desc) { d.Encode(g.Layout.Desc[16*i:]) }

// Indirect writes a table of descriptors into buffer space, checks nothing, and returns its address and its length in
// bytes.
func (g *Guest) Indirect(ds ...Desc) (gpa uint64, n uint32) {
	b := make([]byte, 16*len(ds))
	for i, d := range ds {
		d.Encode(b[16*i:])
	}
	gpa = g.Alloc(roundUp(len(b)))
	g.Write(gpa, b)
	return gpa, uint32(len(b))
}

// SetHead writes entry slot of the avail ring.
func (g *Guest) SetHead(slot int, head uint16) {
	binary.LittleEndian.PutUint16(g.Layout.Avail[4+2*slot:], head)
}

// SetAvail writes avail.flags and avail.idx, without any ordering: not for use beside a running device.
func (g *Guest) SetAvail(flags, idx uint16) {
	binary.LittleEndian.PutUint16(g.Layout.Avail[0:], flags)
	binary.LittleEndian.PutUint16(g.Layout.Avail[2:], idx)
}

// Post makes a head available: the next entry of the avail ring, whatever it holds, and then avail.idx.
func (g *Guest) Post(head uint16) {
	flags, idx := binary.LittleEndian.Uint16(g.Layout.Avail[0:]), binary.LittleEndian.Uint16(g.Layout.Avail[2:])
	g.SetHead(int(idx)&(g.Layout.Num-1), head)
	g.SetAvail(flags, idx+1)
}

// UsedIdx is used.idx, and UsedFlags used.flags.
func (g *Guest) UsedIdx() uint16   { return binary.LittleEndian.Uint16(g.Layout.Used[2:]) }
func (g *Guest) UsedFlags() uint16 { return binary.LittleEndian.Uint16(g.Layout.Used[0:]) }

// UsedElem is entry slot of the used ring.
func (g *Guest) UsedElem(slot int) (id, n uint32) {
	e := g.Layout.Used[4+8*slot:]
	return binary.LittleEndian.Uint32(e[0:4]), binary.LittleEndian.Uint32(e[4:8])
}
