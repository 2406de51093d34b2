package vring_test

import (
	"bytes"
	"errors"
	"testing"
	"unsafe"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

// The fuzzer's guest: a ring of 8 and 512 bytes of buffers in two regions with a hole behind them, all of it written
// by the fuzzer, and between the calls written again.
const (
	fuzzNum   = 8
	fuzzData  = 512
	fuzzGuard = 64
)

// FuzzDevice: whatever a guest writes, the device never panics, never hands out a byte outside of the guest's memory,
// and never writes outside of its used ring.
func FuzzDevice(f *testing.F) {
	desc := func(ds ...vringtest.Desc) []byte {
		b := make([]byte, 16*fuzzNum)
		for i, d := range ds {
			d.Encode(b[16*i:])
		}
		return b
	}
	avail := []byte{0, 0, 2, 0, 0, 0, 1, 0}
	f.Add(desc(vringtest.Desc{Addr: 0x1000, Len: 300, Flags: next, Next: 1}, vringtest.Desc{Addr: 0x1000, Len: 5, Flags: write}), avail, []byte{}, []byte{0, 0, 1, 2, 3, 4, 5}, uint8(3), uint16(0))
	f.Add(desc(vringtest.Desc{Addr: 0x1000, Len: 32, Flags: indirect}), avail, desc(vringtest.Desc{Addr: 0x1010, Len: 16, Flags: write}), []byte{0, 1, 2, 6, 0}, uint8(1), uint16(0xfffe))
	f.Add(desc(vringtest.Desc{Addr: 0xfff, Len: 2}), avail, []byte{}, []byte{0}, uint8(2), uint16(0))
	f.Fuzz(func(t *testing.T, descs, avails, data, calls []byte, bits uint8, base uint16) {
		mem := vringtest.Heap(vring.Bytes(fuzzNum) + fuzzGuard)
		l, err := vring.Split(mem, fuzzNum)
		if err != nil {
			t.Fatal(err)
		}
		_, used := vring.Offsets(fuzzNum)
		end := used + vring.UsedBytes(fuzzNum)
		first, second := make([]byte, fuzzData/2), make([]byte, fuzzData/2)
		table, err := guestmem.FromParts(guestmem.Part{GPA: 0x1000, Mem: first}, guestmem.Part{GPA: 0x1000 + fuzzData/2, Mem: second})
		if err != nil {
			t.Fatal(err)
		}
		copy(l.Desc, descs)
		copy(l.Avail, avails)
		copy(second, data[copy(first, data):])
		for i := range mem[end:] {
			mem[end+i] = 0xa5
		}
		var set virtio.Features
		if bits&1 != 0 {
			set |= 1 << virtio.FIndirectDesc
		}
		if bits&2 != 0 {
			set |= 1 << virtio.FEventIdx
		}
		if bits&4 != 0 {
			set |= 1 << virtio.FLogAll
		}
		d, err := vring.NewDevice(table, l, set, vringtest.At(base))
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(mem[:used])
		var c vring.Chain
		m := d.Mark()
		for i, call := range calls[:min(len(calls), 64)] {
			switch call % 8 {
			case 0, 1:
				ok, err := d.Next(&c)
				checkChain(t, &c, ok, err, first, second)
				checkAddresses(t, &c, table, set.Has(virtio.FLogAll))
			case 2:
				d.Push([]vring.Used{{Head: c.Head, Written: uint32(call)}})
			case 3:
				d.Publish()
				m = d.Mark()
			case 4:
				d.EnableNotify()
			case 5:
				d.DisableNotify()
			case 6:
				d.Rewind(m)
			case 7: // the guest writes in between
				at := int(call>>3)*11 + i
				l.Desc[at%len(l.Desc)] ^= call
				l.Avail[at%len(l.Avail)] ^= call
				copy(before, mem[:used])
			}
		}
		if !bytes.Equal(mem[:used], before) {
			t.Error("the device wrote to the driver's part of the ring")
		}
		for _, b := range mem[end:] {
			if b != 0xa5 {
				t.Fatal("the device wrote behind the used ring")
			}
		}
	})
}

func checkChain(t *testing.T, c *vring.Chain, ok bool, err error, parts ...[]byte) {
	if err != nil && (ok || !errors.Is(err, vring.ErrBadIndex) && !errors.Is(err, vring.ErrBadChain) && !errors.Is(err, vring.ErrOutOfRegion)) {
		t.Fatalf("%v with %v", ok, err)
	}
	if !ok && len(c.Readable)+len(c.Writable) > 0 {
		t.Fatal("no chain, but pieces")
	}
	if ok && (int(c.Head) >= fuzzNum || len(c.Readable)+len(c.Writable) == 0) {
		t.Fatalf("head %d, %d pieces", c.Head, len(c.Readable)+len(c.Writable))
	}
	for i, pieces := range [][][]byte{c.Readable, c.Writable} {
		total := 0
		for _, p := range pieces {
			total += len(p)
			if !within(p, parts) || len(p) != cap(p) {
				t.Fatal("a piece outside of guest memory")
			}
		}
		if total != [...]int{c.ReadLen, c.WriteLen}[i] {
			t.Fatalf("%d bytes, %d and %d counted", total, c.ReadLen, c.WriteLen)
		}
	}
}

func within(p []byte, parts [][]byte) bool {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	for _, part := range parts {
		start := uintptr(unsafe.Pointer(unsafe.SliceData(part)))
		if len(p) > 0 && at >= start && at+uintptr(len(p)) <= start+uintptr(len(part)) {
			return true
		}
	}
	return false
}

// FuzzDriver: whatever a device writes into the used ring, the driver neither panics nor hands a token out twice.
func FuzzDriver(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0}, uint8(3))
	f.Add([]byte{1, 0, 2, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0}, uint8(0))
	f.Fuzz(func(t *testing.T, used []byte, bits uint8) {
		g := vringtest.New(vringtest.Options{Num: fuzzNum, Features: virtio.Features(bits&1) << virtio.FEventIdx, Data: 64})
		d, err := g.Driver()
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			if err := d.Add([]vring.Buffer{{Addr: g.DataGPA, Len: 8}, {Addr: g.DataGPA, Len: 8, Writable: true}}[:1+i&1], uint64(i)); err != nil {
				t.Fatal(err)
			}
		}
		d.Publish()
		copy(g.Layout.Used, used)
		seen := make(map[uint64]bool)
		for {
			token, _, ok := d.Used()
			if !ok {
				break
			}
			if token > 3 || seen[token] {
				t.Fatalf("token %d", token)
			}
			seen[token] = true
		}
		if d.Err() == nil && d.Outstanding() != 4-len(seen) {
			t.Errorf("%d out, %d seen", d.Outstanding(), len(seen))
		}
	})
}
