package xsk

import (
	"runtime"
	"sync"
	"testing"
)

func TestFramesArriveInOrderThroughWrappingRings(t *testing.T) {
	s, k := fakeSocket(32, 2048, 8, 4)
	// Indices run through 32 bits: start just before they wrap.
	for _, x := range []*index{&s.fill.index, &k.fill.index, &s.rx.index, &k.rx.index} {
		*x.producer, *x.consumer = 0xfffffffa, 0xfffffffa
		x.cachedP, x.cachedC = 0xfffffffa, 0xfffffffa
	}
	var d [3]Desc
	want := byte(0)
	for range 200 {
		s.Refill()
		k.receive(3, 100)
		n := s.Recv(d[:])
		if n != 3 {
			t.Fatalf("got %d frames, want 3", n)
		}
		for _, d := range d[:n] {
			want++
			f := frameOf(s, d)
			if len(f) != 100 || f[0] != want || f[99] != want {
				t.Fatalf("frame %d: %d bytes, starts with %d", want, len(f), f[0])
			}
			s.Free(d.Addr)
		}
		mustConserve(t, s, 32)
	}
}

func TestRefillKeepsTheReserve(t *testing.T) {
	for _, c := range []struct {
		name                  string
		chunks, ring, reserve int
		want                  int
	}{
		{"the ring is the bound", 32, 8, 4, 8},
		{"the reserve is the bound", 8, 16, 3, 5},
		{"all is reserved", 4, 16, 4, 0},
		{"more than one batch", 512, 256, 4, 256},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := fakeSocket(c.chunks, 2048, c.ring, c.reserve)
			if n := s.Refill(); n != c.want {
				t.Errorf("refilled %d, want %d", n, c.want)
			}
			if n := s.Refill(); n != 0 {
				t.Errorf("refilled %d more", n)
			}
			if s.FreeChunks() != c.chunks-c.want {
				t.Errorf("%d free, want %d", s.FreeChunks(), c.chunks-c.want)
			}
		})
	}
}

func TestFramesOnTheirWayOutCountAsReserve(t *testing.T) {
	s, k := fakeSocket(8, 2048, 16, 4)
	for range 3 {
		_, d, _ := s.AllocTx()
		s.Send(d, 60)
	}
	if n := s.Refill(); n != 4 { // 5 free, of which 4-3 stay
		t.Errorf("refilled %d, want 4", n)
	}
	s.Flush()
	k.send(16)
	s.Flush()
	if s.TxPending() != 0 || s.FreeChunks() != 4 {
		t.Errorf("%d pending, %d free", s.TxPending(), s.FreeChunks())
	}
}

func TestTxRingFullLeavesTheChunkWithTheCaller(t *testing.T) {
	s, k := fakeSocket(16, 2048, 4, 0)
	sent := 0
	var last Desc
	for {
		buf, d, ok := s.AllocTx()
		if !ok {
			t.Fatal("no chunk")
		}
		if len(buf) != 2048-Headroom {
			t.Fatalf("buffer of %d bytes", len(buf))
		}
		buf[0] = byte(sent)
		if !s.Send(d, 64) {
			last = d
			break
		}
		sent++
	}
	if sent != 4 || s.TxRoom() != 0 {
		t.Errorf("sent %d, room %d", sent, s.TxRoom())
	}
	s.Free(last.Addr)
	if got := k.send(16); len(got) != 0 {
		t.Errorf("%d frames visible before Flush", len(got))
	}
	s.Flush()
	got := k.send(16)
	for i, d := range got {
		if f := frameOf(s, d); len(f) != 64 || f[0] != byte(i) {
			t.Errorf("frame %d: %d bytes, starts with %d", i, len(f), f[0])
		}
	}
	s.Flush()
	if s.FreeChunks() != 16 || s.TxRoom() != 4 {
		t.Errorf("after completion %d free, room %d", s.FreeChunks(), s.TxRoom())
	}
}

func TestPublishShowsFramesAndWakesNobody(t *testing.T) {
	s, k := fakeSocket(4, 2048, 4, 0)
	k.wantWakeup(&k.tx.index, true)
	_, d, _ := s.AllocTx()
	s.Send(d, 60)
	s.Publish()
	if got := k.send(4); len(got) != 1 || got[0].Addr != d.Addr {
		t.Errorf("the kernel sees %v", got)
	}
	s.Publish() // nothing new
	if got := k.send(4); len(got) != 0 || s.TxPending() != 1 {
		t.Errorf("the kernel sees %v more, %d pending", got, s.TxPending())
	}
	k.wantWakeup(&k.tx.index, false)
	s.unwoken = true
	if err := s.Flush(); err == nil { // there is no socket to wake
		t.Error("an heir's first Flush wakes nobody")
	}
}

// A call that sends is made while there is something to send, not while all of it is on its way; of zero-copy the driver says when. The fake
// socket's descriptor makes a call an error.
func TestNoCallForWhatIsOnItsWay(t *testing.T) {
	for _, zeroCopy := range []bool{false, true} {
		s, k := fakeSocket(16, 2048, 8, 4)
		s.zeroCopy, s.alwaysWake = zeroCopy, true
		_, d, _ := s.AllocTx()
		if !s.Send(d, 60) || s.Flush() == nil {
			t.Fatal("no call for a frame to send")
		}
		if n := consume(&k.tx, make([]Desc, 1)); n != 1 {
			t.Fatalf("%d frames to send, of 1", n)
		}
		if err := s.Flush(); s.TxPending() != 1 || (err != nil) != zeroCopy {
			t.Errorf("zero-copy %t: %d frames on their way: %v", zeroCopy, s.TxPending(), err)
		}
		if s.unwoken = true; s.Flush() == nil {
			t.Error("no call for what somebody before has sent")
		}
	}
}

func TestSendRefusesLengthsBeyondTheChunk(t *testing.T) {
	s, _ := fakeSocket(4, 2048, 4, 0)
	_, d, _ := s.AllocTx()
	for _, n := range []int{-1, 0, 2048 - Headroom + 1, 1 << 30} {
		if s.Send(d, n) {
			t.Errorf("%d bytes sent", n)
		}
	}
	if !s.Send(d, 2048-Headroom) {
		t.Error("a full chunk was refused")
	}
}

func TestNeedsRxWakeupIsTheFillRingsFlag(t *testing.T) {
	s, k := fakeSocket(4, 2048, 4, 0)
	if s.NeedsRxWakeup() {
		t.Error("wanted without the flag")
	}
	k.wantWakeup(&k.fill.index, true)
	if !s.NeedsRxWakeup() {
		t.Error("not wanted with the flag")
	}
}

// The race detector watches both sides of the rings at once.
func TestRingsBetweenTwoGoroutines(t *testing.T) {
	const frames = 20000
	s, k := fakeSocket(64, 2048, 16, 8)
	var wg sync.WaitGroup
	wg.Go(func() {
		for got := 0; got < frames; {
			n := k.receive(4, 64)
			got += n
			if n == 0 {
				runtime.Gosched()
			}
		}
	})
	var d [8]Desc
	want := byte(0)
	for got := 0; got < frames; {
		s.Refill()
		n := s.Recv(d[:])
		if n == 0 {
			runtime.Gosched()
		}
		for _, d := range d[:n] {
			want++
			if f := frameOf(s, d); f[0] != want || f[63] != want {
				t.Fatalf("frame %d reads %d", want, f[0])
			}
			s.Free(d.Addr)
		}
		got += n
	}
	wg.Wait()
	mustConserve(t, s, 64)
}

func TestDataPathDoesNotAllocate(t *testing.T) {
	s, k := fakeSocket(64, 2048, 16, 8)
	var d [16]Desc
	var one [1]uint64
	n := testing.AllocsPerRun(200, func() {
		s.Refill()
		for k.rx.room(1) > 0 && consume(&k.fill, one[:]) == 1 {
			k.rx.put(Desc{Addr: one[0] + Headroom, Len: 1500})
		}
		k.rx.publish()
		for _, d := range d[:s.Recv(d[:])] {
			_, _ = s.Received(d)
			s.Free(d.Addr)
		}
		if _, d, ok := s.AllocTx(); ok {
			s.Send(d, 60)
		}
		_ = s.Flush()
		m := consume(&k.tx, d[:])
		for _, d := range d[:m] {
			k.comp.entries[k.comp.cachedP&k.comp.mask] = d.Addr
			k.comp.cachedP++
		}
		k.comp.publish()
	})
	if n != 0 {
		t.Errorf("%v allocations per burst", n)
	}
}
