package vhost_test

import (
	"fmt"
	"slices"
	"testing"
)

// Whoever copies gets every payload behind the first, in order, and memory for them behind what is written already: in the guest's buffers, in
// their order, each to its end but the last.
func TestWhoCopiesGetsAllAtOnce(t *testing.T) {
	for _, size := range []int{1536, 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { getsAllAtOnce(t, size) })
	}
}

func getsAllAtOnce(t *testing.T, size int) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	load := newRxLoad(t, g, size)
	f := superframe(8)
	f.Frags = append([][]byte{f.Frags[0][:66], f.Frags[0][66:]}, f.Frags[1:]...)
	f.Sums = slices.Repeat([]uint16{0xffff}, len(f.Frags)-1)
	calls := 0
	f.Copy = func(dst, src [][]byte, sums []uint16) bool {
		calls++
		if !slices.EqualFunc(src, f.Frags[1:], func(a, b []byte) bool { return &a[0] == &b[0] && len(a) == len(b) }) || &sums[0] != &f.Sums[0] || len(sums) != len(src) {
			t.Error("other payloads or sums than the frame's")
		}
		for i, d := range dst {
			if want := size; i > 0 && len(d) != want || i == 0 && len(d) != want-12-66 || cap(d) != len(d) {
				t.Errorf("buffer %d has %d bytes of room", i, len(d))
			}
		}
		room := slices.Clone(dst)
		for _, b := range src {
			for len(b) > 0 {
				n := copy(room[0], b)
				b = b[n:]
				if room[0] = room[0][n:]; len(room[0]) == 0 {
					room = room[1:]
				}
			}
		}
		if len(room) != 1 || len(room[0]) == size {
			t.Error("a buffer was told that nothing is written to")
		}
		return true
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
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
	load.repost(t)
}
