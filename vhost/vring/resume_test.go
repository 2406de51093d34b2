package vring_test

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

// history drives a ring by hand: a driver that posts heads in any order, and a device before us that completes them in
// order or not.
type history struct {
	g           *vringtest.Guest
	num         int
	free        []vring.Head
	open        []vring.Head // in avail order
	avail, used uint16
}

func newHistory(num int, at uint16) *history {
	h := &history{g: vringtest.New(vringtest.Options{Num: num}), num: num, avail: at, used: at}
	for i := range num {
		h.free = append(h.free, vring.Head(i))
		h.g.Set(i, vringtest.Desc{Addr: h.g.DataGPA + uint64(64*i), Len: 64, Flags: write})
	}
	h.g.SetAvail(0, at)
	binary.LittleEndian.PutUint16(h.g.Layout.Used[2:], at)
	return h
}

func (h *history) post(n int, rnd *rand.Rand) {
	for ; n > 0 && len(h.free) > 0; n-- {
		i := rnd.IntN(len(h.free))
		head := h.free[i]
		h.free = slices.Delete(h.free, i, i+1)
		h.open = append(h.open, head)
		h.g.Post(uint16(head))
		h.avail++
	}
}

// complete returns the i-th of the open chains.
func (h *history) complete(i int) {
	head := h.open[i]
	h.open = slices.Delete(h.open, i, i+1)
	h.free = append(h.free, head)
	e := h.g.Layout.Used[4+8*(int(h.used)&(h.num-1)):]
	binary.LittleEndian.PutUint32(e, uint32(head))
	h.used++
	binary.LittleEndian.PutUint16(h.g.Layout.Used[2:], h.used)
}

func (h *history) device(t *testing.T, base uint16) (vring.Device, vring.Resumption) {
	t.Helper()
	d, err := vring.NewDevice(h.g.Table, h.g.Layout, 0, vringtest.At(base))
	if err != nil {
		t.Fatal(err)
	}
	return d, d.Resume()
}

// After a device that completed in order, every open chain is given again, in order, whatever base the front-end names.
func TestARingServedInOrderIsResumedWhereItStands(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		num := 1 << (1 + rnd.IntN(8))
		h := newHistory(num, uint16(rnd.IntN(3))-1) // before, at and after the wrap
		for range rnd.IntN(40) {
			h.post(rnd.IntN(num+1), rnd)
			for n := rnd.IntN(len(h.open) + 1); n > 0; n-- {
				h.complete(0)
			}
		}
		h.post(rnd.IntN(num+1), rnd)
		for base := h.used; ; base++ {
			d, r := h.device(t, base)
			want := vring.Resumption{Open: len(h.open), Moved: int(base - h.used)}
			if r != want {
				t.Fatalf("seed %d, base used + %d: %+v, want %+v", seed, base-h.used, r, want)
			}
			if got := take(t, d, len(h.open)); !slices.Equal(got, h.open) {
				t.Fatalf("seed %d: heads %v, open are %v", seed, got, h.open)
			}
			if base == h.avail {
				break
			}
		}
	}
}

// After a device that completed out of order, used.idx says nothing about the avail ring: whenever going on there would give
// a chain that is not open, or leave one out, it is not done.
func TestARingServedOutOfOrderIsNotResumedByGuess(t *testing.T) {
	kept, moved := 0, 0
	for seed := range uint64(1000) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		num := 1 << (1 + rnd.IntN(5))
		h := newHistory(num, uint16(rnd.IntN(3))-1)
		for range 1 + rnd.IntN(30) {
			h.post(rnd.IntN(num+1), rnd)
			for n := rnd.IntN(len(h.open) + 1); n > 0; n-- {
				i := 0
				if rnd.IntN(4) == 0 {
					i = rnd.IntN(len(h.open))
				}
				h.complete(i)
			}
		}
		if len(h.open) == 0 {
			continue
		}
		d, r := h.device(t, h.avail)
		if r.Moved == 0 {
			kept++
			if r.Lost != len(h.open) || r.Still != (len(h.open) == num) {
				t.Fatalf("seed %d: %+v with %d of %d open", seed, r, len(h.open), num)
			}
			continue
		}
		moved++
		got := take(t, d, len(h.open))
		slices.Sort(got)
		slices.Sort(h.open)
		if !slices.Equal(got, h.open) {
			t.Fatalf("seed %d: heads %v, open are %v", seed, got, h.open)
		}
	}
	if kept == 0 || moved == 0 {
		t.Errorf("%d kept, %d moved: this shows nothing", kept, moved)
	}
}

func TestARingInNoStateAtAllIsLeftAlone(t *testing.T) {
	h := newHistory(8, 0)
	h.g.SetAvail(0, 100)
	if d, r := h.device(t, 50); r != (vring.Resumption{}) || d.Base() != vringtest.At(50) {
		t.Errorf("%+v at %d", r, d.Base().Num())
	}
	h = newHistory(8, 0) // a base beyond what was posted
	if d, r := h.device(t, 3); r != (vring.Resumption{}) || d.Base() != vringtest.At(3) {
		t.Errorf("%+v at %d", r, d.Base().Num())
	}
	h = newHistory(8, 0) // heads that no driver posts
	for range 4 {
		h.g.Post(9)
	}
	if d, r := h.device(t, 4); r != (vring.Resumption{Open: 4, Lost: 4}) || d.Base() != vringtest.At(4) {
		t.Errorf("%+v at %d", r, d.Base().Num())
	}
}

// A device that died had taken chains, filled used entries and published some of them: the next one goes on behind what was
// published, whatever base it was given.
func TestARejoinedRingGoesOnBehindWhatWasPublished(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		num := 1 << (1 + rnd.IntN(6))
		h := newHistory(num, uint16(rnd.IntN(3))-1)
		h.post(num, rnd)
		for round := range 5 {
			d, err := vring.NewDevice(h.g.Table, h.g.Layout, 0, vringtest.At(uint16(rnd.IntN(1<<16))))
			if err != nil {
				t.Fatal(err)
			}
			d.Rejoin(0)
			n := rnd.IntN(len(h.open) + 1)
			if got := take(t, d, n); !slices.Equal(got, h.open[:n]) {
				t.Fatalf("seed %d, round %d: heads %v, open are %v", seed, round, got, h.open)
			}
			done := rnd.IntN(n + 1)
			for i, head := range h.open[:n] {
				if i == done {
					d.Publish()
				}
				d.Push([]vring.Used{{Head: head}})
			}
			if done == n {
				d.Publish()
			}
			for range done {
				h.complete(0)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			h.post(rnd.IntN(num+1), rnd)
		}
	}
}

// What a base left behind stays behind, and what comes after it is right.
func TestARejoinedRingLeavesBehindWhatWasLeftBehind(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 4))
	h := newHistory(8, 100)
	h.post(8, rnd)
	h.complete(1) // out of order: no proof
	h.complete(0)
	h.post(1, rnd)
	d, was := h.device(t, h.used+3)
	if was.Lost != 3 {
		t.Fatalf("%+v", was)
	}
	if got := take(t, d, 2); !slices.Equal(got, h.open[3:5]) {
		t.Fatalf("heads %v, open are %v", got, h.open)
	}
	d.Push([]vring.Used{{Head: h.open[3]}})
	d.Publish()
	d, err := vring.NewDevice(h.g.Table, h.g.Layout, 0, vringtest.At(0))
	if err != nil {
		t.Fatal(err)
	}
	d.Rejoin(was.Lost)
	if got := take(t, d, 2); !slices.Equal(got, h.open[4:6]) {
		t.Errorf("heads %v, open are %v", got, h.open)
	}
}

// A device that died while it wanted no kicks has left that in the ring: the driver kicks again once the next one wants kicks.
func TestKicksThatADeadDeviceSwitchedOffComeBack(t *testing.T) {
	h := newHistory(8, 0)
	flags := func() uint16 { return binary.LittleEndian.Uint16(h.g.Layout.Used) }
	d, _ := h.device(t, 0)
	if d.DisableNotify(); flags() != 1 {
		t.Fatalf("flags %d", flags())
	}
	d, _ = h.device(t, 0)
	if d.EnableNotify(); flags() != 0 {
		t.Errorf("flags %d with a device that wants kicks", flags())
	}
}
