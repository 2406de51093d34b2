package guestmem

import (
	"bytes"
	"errors"
	"testing"
)

// twoAndOne is memory with a border at 0x3000, a hole from 0x4000 and a last region that ends below 2^64.
func twoAndOne(t testing.TB) *Table {
	t.Helper()
	fill := func(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }
	tab, err := FromParts(
		Part{GPA: 0x3000, UVA: 0x903000, Mem: fill(0x1000, 3)},
		Part{GPA: 0x1000, UVA: 0x501000, Mem: fill(0x2000, 1)},
		Part{GPA: ^uint64(0) - 0x1000, UVA: 0x701000, Mem: fill(0x1000, 9)},
	)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func TestTranslationStaysInsideRegions(t *testing.T) {
	tab := twoAndOne(t)
	tests := []struct {
		name   string
		gpa, n uint64
		pieces []int // lengths; nil means an error
		slice  bool  // whether one slice can hold it
	}{
		{"first byte", 0x1000, 1, []int{1}, true},
		{"whole region", 0x1000, 0x2000, []int{0x2000}, true},
		{"before", 0xfff, 1, nil, false},
		{"into the beginning", 0xfff, 2, nil, false},
		{"over the border", 0x2fff, 2, []int{1, 1}, false},
		{"both regions", 0x1000, 0x3000, []int{0x2000, 0x1000}, false},
		{"last byte", 0x3fff, 1, []int{1}, true},
		{"into the hole", 0x3fff, 2, nil, false},
		{"in the hole", 0x4000, 1, nil, false},
		{"over the border and into the hole", 0x2fff, 0x1002, nil, false},
		{"top of the address space", ^uint64(0) - 1, 1, []int{1}, true},
		{"around the address space", ^uint64(0) - 1, 0x2000, nil, false},
		{"longest length", 0x1000, ^uint64(0), nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			keep := [][]byte{{7}}
			got, err := tab.Append(keep, tt.gpa, tt.n)
			if tt.pieces == nil {
				if !errors.Is(err, ErrRange) || len(got) != 1 {
					t.Fatalf("got %d pieces, %v", len(got), err)
				}
			} else {
				if err != nil || len(got) != 1+len(tt.pieces) {
					t.Fatalf("got %d pieces, %v", len(got), err)
				}
				for i, n := range tt.pieces {
					if len(got[1+i]) != n || cap(got[1+i]) != n {
						t.Errorf("piece %d has %d bytes of %d", i, len(got[1+i]), cap(got[1+i]))
					}
				}
			}
			b, err := tab.Slice(tt.gpa, tt.n)
			if (err == nil) != tt.slice || err == nil && (uint64(len(b)) != tt.n || cap(b) != len(b)) {
				t.Errorf("Slice: %d bytes, %v", len(b), err)
			}
		})
	}
}

func TestFrontEndAddressesAreTheirOwnSpace(t *testing.T) {
	tab := twoAndOne(t)
	b, err := tab.SliceUVA(0x903000, 0x1000)
	if err != nil || len(b) != 0x1000 || b[0] != 3 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	for _, tt := range []struct{ uva, n uint64 }{{0x3000, 1}, {0x903fff, 2}, {0x502fff, 2}, {0x500fff, 2}, {0x501000, ^uint64(0)}} {
		if _, err := tab.SliceUVA(tt.uva, tt.n); !errors.Is(err, ErrRange) {
			t.Errorf("%#x+%#x: %v", tt.uva, tt.n, err)
		}
	}
}

func TestTranslationDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	tab := twoAndOne(t)
	dst := make([][]byte, 0, 4)
	n := testing.AllocsPerRun(100, func() {
		dst, _ = tab.Append(dst[:0], 0x2fff, 2)
		_, _ = tab.Slice(0x1000, 64)
		_, _ = tab.Append(dst[:0], 0x3fff, 2)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Translation agrees with a map of single bytes.
func FuzzTranslate(f *testing.F) {
	f.Add([]byte{0, 4, 4, 4, 20, 9}, uint16(2), uint16(5))
	f.Add([]byte{9, 1, 8, 1, 7, 1}, uint16(7), uint16(3))
	f.Fuzz(func(t *testing.T, layout []byte, gpa, n uint16) {
		tab := new(Table)
		model := map[uint64]*byte{}
		for i := 0; i+1 < len(layout) && i < 40; i += 2 {
			mem := make([]byte, layout[i+1])
			r := region{gpa: uint64(layout[i]), size: uint64(len(mem)), mem: mem}
			if checkRange(r.gpa, r.size, 0, 0) != nil || tab.insert(r) != nil {
				continue
			}
			for j := range mem {
				model[r.gpa+uint64(j)] = &mem[j]
			}
		}
		whole := true
		for i := range uint64(n) {
			whole = whole && model[uint64(gpa)+i] != nil
		}
		got, err := tab.Append(nil, uint64(gpa), uint64(n))
		if (err == nil) != whole {
			t.Fatalf("%v, the model says %v", err, whole)
		}
		at := uint64(gpa)
		for _, p := range got {
			for i := range p {
				if model[at] != &p[i] {
					t.Fatalf("byte %d is another", at)
				}
				at++
			}
		}
		if err == nil && at != uint64(gpa)+uint64(n) {
			t.Fatalf("%d bytes", at-uint64(gpa))
		}
	})
}

// Whatever a front-end says, Map maps no byte beyond the file and leaves nothing behind.
func FuzzMap(f *testing.F) {
	f.Add(uint64(0), uint64(4096), uint64(0), uint64(0), uint64(4096), uint64(100))
	f.Add(^uint64(0), uint64(1), uint64(1<<63), uint64(1), uint64(1<<63), uint64(1<<62))
	f.Fuzz(func(t *testing.T, gpa, size, offset, gpa2, size2, offset2 uint64) {
		const file = 3*4096 + 100
		fd := memfd(t, file)
		tab, err := Map([]Region{{GPA: gpa, Size: size, Offset: offset, FD: fd}, {GPA: gpa2, Size: size2, Offset: offset2, FD: fd}})
		if err != nil {
			return
		}
		for _, r := range tab.Regions() {
			b, err := tab.Slice(r.GPA, r.Size)
			if err != nil || r.Offset+r.Size > file {
				t.Fatalf("%+v: %v", r, err)
			}
			b[0], b[len(b)-1] = 1, 1 // a fault ends the test
		}
		if err := tab.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
