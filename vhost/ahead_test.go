package vhost_test

import (
	"fmt"
	"slices"
	"testing"
)

// Whoever copies hears what is next: of each payload behind the first, in order, also where one crosses buffers, and of places that are written later
// or are free in the same buffer, none outside the guest's buffers.
func TestWhoCopiesHearsWhatIsNext(t *testing.T) {
	for _, size := range []int{1536, 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { hearsWhatIsNext(t, size) })
	}
}

func hearsWhatIsNext(t *testing.T, size int) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	load := newRxLoad(t, g, size)
	f := superframe(8)
	f.Frags = append([][]byte{f.Frags[0][:66], f.Frags[0][66:]}, f.Frags[1:]...)
	f.Sums = slices.Repeat([]uint16{0xffff}, len(f.Frags)-1)
	var (
		at      int                // the payload that is copied
		told    = map[int]bool{}   // payloads that were told
		written = map[*byte]bool{} // all that was copied to
		writes  []*byte            // places that were told and had not been written
	)
	f.Copy = func(dst, src []byte, initial uint32, read, write *byte) uint16 {
		is := func(first *byte) func([]byte) bool {
			return func(b []byte) bool { return &b[0] == first }
		}
		if i := slices.IndexFunc(f.Frags, is(&src[0])); i >= 0 {
			at = i
		}
		if read != nil {
			told[at+1] = true
			if slices.IndexFunc(f.Frags, is(read)) != at+1 {
				t.Errorf("payload %d was told as another one", at+1)
			}
		}
		for i := range dst {
			written[&dst[i]] = true
		}
		if write != nil && !among(dst[:cap(dst)], write) {
			if written[write] {
				t.Errorf("payload %d: what was written before is said to be written again", at)
			}
			writes = append(writes, write)
		}
		copy(dst, src)
		return uint16(initial) // as if all payloads summed up to 0: a piece adds nothing, and 0xffff stays what it is
	}
	q := p.RX(0)
	if !q.Begin() {
		t.Fatal("not running")
	}
	if err := q.Put(f); err != nil {
		t.Fatal(err)
	}
	if err := q.Commit(); err != nil {
		t.Fatal(err)
	}
	load.repost(t)
	if len(told) != len(f.Frags)-2 || told[1] || told[len(f.Frags)] {
		t.Errorf("told of %d payloads of %d: %v", len(told), len(f.Frags)-1, told)
	}
	if len(writes) == 0 {
		t.Error("told of no other buffer")
	}
	for _, w := range writes {
		if !written[w] {
			t.Error("a place was told to which nothing was written")
		}
	}
}

// among tells whether a byte is one of b's.
func among(b []byte, one *byte) bool {
	for i := range b {
		if &b[i] == one {
			return true
		}
	}
	return false
}
