package user

import (
	"bytes"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/guestmem"
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
