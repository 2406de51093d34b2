package xsk

import (
	"errors"
	"testing"
)

func TestPoolIsLastInFirstOut(t *testing.T) {
	u := newUmem(make([]byte, 4*4096), 4096, 0, make(owners, 4))
	a, _ := u.take()
	b, _ := u.take()
	if a != 0 || b != 4096 {
		t.Fatalf("took %d and %d", a, b)
	}
	u.give(a)
	if c, _ := u.take(); c != a {
		t.Errorf("took %d, want the chunk used last, %d", c, a)
	}
}

func TestAChunkIsNeverInThePoolTwice(t *testing.T) {
	u := newUmem(make([]byte, 4*2048), 2048, 0, make(owners, 4))
	a, _ := u.take()
	for _, addr := range []uint64{a + 256, a, a + 2047, 1 << 40, 4 * 2048, 2048} { // 2048: never taken
		u.give(addr)
	}
	if len(u.free) != 4 {
		t.Errorf("%d chunks in the pool of 4", len(u.free))
	}
	seen := map[uint64]bool{}
	for {
		a, ok := u.take()
		if !ok {
			break
		}
		if seen[a] {
			t.Errorf("chunk %d twice", a)
		}
		seen[a] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d different chunks", len(seen))
	}
}

// Chunks say of a frame what the pool says, or nothing: the two bounds are one promise.
func TestChunksHaveTheFramesThatThePoolHas(t *testing.T) {
	const chunk, chunks = 2048, 4
	u := newUmem(make([]byte, chunks*chunk+8192), chunk, 4096, make(owners, chunks)) // two buffers behind the chunks
	c := NewChunks(u.mem[:u.end], chunk)
	has := 0
	try := func(d Desc) {
		frame, meta := c.Frame(d)
		wantFrame, wantMeta := u.frame(d), u.meta(d)
		switch {
		case frame == nil && meta == nil:
			if wantFrame != nil && wantMeta != nil && d.Addr < u.end {
				t.Fatalf("%+v: nothing", d)
			}
		case frame == nil || meta == nil || len(wantFrame) != len(frame) || cap(frame) != cap(wantFrame) || &frame[0] != &wantFrame[0] || &meta[0] != &wantMeta[0]:
			t.Fatalf("%+v: a frame of %d bytes, the pool has %d", d, len(frame), len(wantFrame))
		default:
			has++
		}
	}
	lens := []uint32{0, 1, 66, 1500, chunk - MetaSize, chunk - MetaSize + 1, chunk, chunk + 1, 1<<32 - 1}
	for addr := range uint64(len(u.mem) + chunk) {
		for _, n := range lens {
			try(Desc{addr, n})
		}
	}
	for _, addr := range []uint64{1 << 40, ^uint64(0), ^uint64(0) - 65, 1<<63 + 256, 1<<63 - 1} {
		for _, n := range lens {
			try(Desc{addr, n})
		}
	}
	if has == 0 {
		t.Error("no frame at all")
	}
	if frame, meta := new(Chunks).Frame(Desc{256, 100}); frame != nil || meta != nil {
		t.Error("the zero Chunks have a frame")
	}
}

func TestFrameLiesInOneChunk(t *testing.T) {
	u := newUmem(make([]byte, 4*2048), 2048, 0, make(owners, 4))
	for _, c := range []struct {
		name string
		d    Desc
		want int // -1: nil
	}{
		{"behind the headroom", Desc{256, 1500}, 1500},
		{"to the last byte", Desc{256, 1792}, 1792},
		{"over the edge of the chunk", Desc{256, 1793}, -1},
		{"over the end of the memory", Desc{3*2048 + 256, 4000}, -1},
		{"outside", Desc{1 << 40, 10}, -1},
		{"an address that wraps", Desc{^uint64(0) - 4, 10}, -1},
		{"empty", Desc{256, 0}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := u.frame(c.d)
			if c.want < 0 && f != nil || c.want >= 0 && (len(f) != c.want || cap(f) != c.want) {
				t.Errorf("%d bytes, capacity %d", len(f), cap(f))
			}
		})
	}
}

func TestMetaLiesInTheFramesChunk(t *testing.T) {
	u := newUmem(make([]byte, 2*2048), 2048, 0, make(owners, 2))
	for _, c := range []struct {
		addr uint64
		ok   bool
	}{{256, true}, {32, true}, {31, false}, {0, false}, {2048, false}, {2048 + 31, false}, {2048 + 32, true}, {2 * 2048, false}} {
		if m := u.meta(Desc{c.addr, 60}); (m != nil) != c.ok || c.ok && len(m) != MetaSize {
			t.Errorf("at %d: %d bytes", c.addr, len(m))
		}
	}
}

func TestOldMetadataIsGoneFromARefilledChunk(t *testing.T) {
	s, k := fakeSocket(1, 2048, 4, 0)
	var d [1]Desc
	s.Refill()
	k.receive(1, 60)
	s.Recv(d[:])
	copy(metaOf(s, d[0]), "RSC1 left by the program")
	s.Free(d[0].Addr)
	s.Refill()
	k.receive(1, 60)
	if s.Recv(d[:]) != 1 {
		t.Fatal("no frame")
	}
	if m := metaOf(s, d[0]); m[0]|m[1]|m[2]|m[3] != 0 {
		t.Errorf("the next frame finds %q", m[:4])
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Ifindex: 1, Chunks: 64, ChunkSize: 2048, RxSize: 16, TxSize: 16, FillSize: 16, CompSize: 16}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"chunk of 3000":      func(c *Config) { c.ChunkSize = 3000 },
		"no chunks":          func(c *Config) { c.Chunks = 0 },
		"ring of 3":          func(c *Config) { c.RxSize = 3 },
		"ring of 0":          func(c *Config) { c.CompSize = 0 },
		"no interface":       func(c *Config) { c.Ifindex = 0 },
		"queue below 0":      func(c *Config) { c.Queue = -1 },
		"reserve above UMEM": func(c *Config) { c.TxReserve = 65 },
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			change(&c)
			if _, err := Open(c); !errors.Is(err, ErrConfig) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAClosedSocketDoesNothing(t *testing.T) {
	s, k := fakeSocket(8, 2048, 4, 0)
	s.Refill()
	k.receive(2, 60)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var d [4]Desc
	if n := s.Recv(d[:]); n != 0 || s.Refill() != 0 || s.TxRoom() != 0 || s.FreeChunks() != 0 {
		t.Error("something was left")
	}
	if _, _, ok := s.AllocTx(); ok || frameOf(s, Desc{256, 60}) != nil || metaOf(s, Desc{256, 60}) != nil {
		t.Error("memory was left")
	}
	s.Free(0)
	if err := s.Flush(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A driver that gives a chunk which it does not have, as igb does behind the end of its ring, puts it in no second hand: the entry has no
// frame, whoever has the chunk, and an heir goes on all the same.
func TestAChunkThatTheKernelDoesNotHaveBringsNoFrame(t *testing.T) {
	const chunks, ring = 16, 16
	m := heap(chunks, SmallChunk, ring)
	s := m.socket(ring, 1)
	k := m.kernel(s)
	var d [4]Desc
	again := func(e Desc) {
		k.rx.put(e)
		k.rx.publish()
	}
	nothing := func(s *Socket, whose string) {
		t.Helper()
		if n := s.Recv(d[:]); n != 1 {
			t.Fatalf("%s: %d entries", whose, n)
		}
		if frame, meta := s.Received(d[0]); frame != nil || meta != nil {
			t.Errorf("%s: it has a frame: %x, %x", whose, frame, meta)
		}
		free := s.FreeChunks()
		if s.Free(d[0].Addr); s.FreeChunks() != free {
			t.Errorf("%s: it was freed", whose)
		}
		mustConserve(t, s, chunks)
	}
	s.Refill()
	k.receive(1, 100)
	if n := s.Recv(d[:]); n != 1 {
		t.Fatalf("%d entries", n)
	}
	e := d[0]
	again(e)
	nothing(s, "in hand")
	s.Free(e.Addr)
	again(e)
	nothing(s, "in the pool")
	_, tx, _ := s.AllocTx()
	s.Send(tx, 100)
	s.Publish()
	again(tx)
	nothing(s, "to be sent")

	again(tx)
	heir := m.socket(ring, 1)
	sent, err := heir.umem.owner.settle(heir.umem.shift, &heir.rx, &heir.tx, &heir.fill, &heir.comp)
	if err != nil || sent != 1 {
		t.Fatalf("the heir's account: %d sent, %v", sent, err)
	}
	nothing(m.socket(ring, 1), "the heir's")
}
