package user

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/vring"
)

// mapsOf counts the mappings of the file of that name in this process.
func mapsOf(t testing.TB, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Skip("needs /proc:", err)
	}
	return bytes.Count(b, []byte(name))
}

// A front-end gives new memory while rings run, and the new memory faults when they start on it. Neither the old table
// nor the new one stays mapped: a front-end could do this again and again until the process has no address space left.
func TestMemoryThatFaultsWhenItIsGivenLeavesNoTableBehind(t *testing.T) {
	for how, give := range map[string]func(p *peer, fd int){
		"table": func(p *peer, fd int) {
			p.send(SetMemTable, 0, AppendMemTable(nil, []MemRegion{region()}), fd)
		},
		"another region": func(p *peer, fd int) {
			r := MemRegion{GPA: memSize, Size: memSize, UVA: testUVA + memSize}
			p.send(AddMemReg, 0, AppendSingleRegion(nil, r), fd)
		},
	} {
		for at := int64(1); at <= 2; at++ { // of the touches after the change: one for each ring
			var n, fail atomic.Int64
			fail.Store(-1)
			fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.Ftruncate(fd, memSize); err != nil {
				t.Fatal(err)
			}
			var rings atomic.Int64 // the memory that they are in at first
			rings.Store(-1)
			p := newPeerWith(t, guestmem.Options{Touching: func() {
				if n.Add(1) == fail.Load() {
					_ = unix.Ftruncate(fd, 0)
					_ = unix.Ftruncate(int(rings.Load()), 0)
				}
			}})
			rings.Store(int64(p.mem))
			p.send(SetMemTable, 0, AppendMemTable(nil, []MemRegion{region()}), p.mem)
			p.startRing(0, 0)
			p.startRing(1, 0)
			p.settle()
			if m := mapsOf(t, "memfd:test"); m != 1 {
				t.Fatalf("%d mappings while running", m)
			}
			fail.Store(n.Load() + at)
			give(p, fd)
			if err := p.wait(); !errors.Is(err, ErrMemoryFault) {
				t.Errorf("%s, touch %d: %v", how, at, err)
			}
			if m := mapsOf(t, "memfd:test"); m != 0 {
				t.Errorf("%s, touch %d: %d mappings left", how, at, m)
			}
			if len(p.dev.rings) != 0 {
				t.Errorf("%s, touch %d: %d rings run", how, at, len(p.dev.rings))
			}
		}
	}
}

// ring writes what a guest's driver has left in a ring: so many chains posted, so many of them completed in order.
func (p *peer) ring(i uint32, posted, completed uint16) {
	p.t.Helper()
	avail, used := vring.Offsets(256)
	write := func(at int, b []byte) {
		p.t.Helper()
		if _, err := unix.Pwrite(p.mem, b, int64(i)*0x10000+int64(at)); err != nil {
			p.t.Fatal(err)
		}
	}
	for n := range posted {
		write(avail+4+2*int(n%256), binary.LittleEndian.AppendUint16(nil, n%256))
	}
	for n := range completed {
		write(used+4+8*int(n%256), binary.LittleEndian.AppendUint64(nil, uint64(n%256)))
	}
	write(avail+2, binary.LittleEndian.AppendUint16(nil, posted))
	write(used+2, binary.LittleEndian.AppendUint16(nil, completed))
}

// Cloud Hypervisor, which finds its back-end again, names avail.idx as the base of every ring.
func TestABaseAtAvailResumesAtUsed(t *testing.T) {
	p := newPeer(t)
	p.send(SetMemTable, 0, AppendMemTable(nil, []MemRegion{region()}), p.mem)
	p.ring(0, 300, 44) // receive buffers: all 256 posted
	p.ring(1, 70, 70)
	p.startRing(0, 300)
	p.startRing(1, 70)
	p.settle()
	p.want("start", "( start0:256@44 ) call0:true ( start1:256@70 ) call1:true")
	if w := p.s.Info().Warning; w != "" {
		t.Error(w)
	}
	_ = p.end()
}

// Where the ring does not prove it, the base stays what the front-end said, and somebody is told.
func TestARingThatCannotMoveIsSaidToBeOne(t *testing.T) {
	p := newPeer(t)
	p.send(SetMemTable, 0, AppendMemTable(nil, []MemRegion{region()}), p.mem)
	p.ring(0, 256, 0)
	avail, _ := vring.Offsets(256)
	if _, err := unix.Pwrite(p.mem, []byte{7, 0}, int64(avail+4)); err != nil { // head 7 twice
		t.Fatal(err)
	}
	p.startRing(0, 256)
	p.settle()
	p.want("start", "( start0:256@256 ) call0:true")
	if w := p.s.Info().Warning; !strings.Contains(w, "ring 0 can never move") {
		t.Errorf("warning %q", w)
	}
	p.send(GetVringBase, 0, state(0, 0))
	p.reply(GetVringBase, 8)
	if w := p.s.Info().Warning; w != "" {
		t.Errorf("a stopped ring: %q", w)
	}
	_ = p.end()
}
