package vring_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

// newRing is a ring whose descriptor i is a writable buffer of 64 bytes.
func newRing(t *testing.T, num int, f virtio.Features, base uint16) (*vringtest.Guest, vring.Device) {
	t.Helper()
	g := vringtest.New(vringtest.Options{Num: num, Features: f})
	for i := range num {
		g.Set(i, vringtest.Desc{Addr: g.DataGPA + uint64(64*i), Len: 64, Flags: write})
		g.SetHead(i, uint16(i))
	}
	g.SetAvail(0, base)
	d, err := vring.NewDevice(g.Table, g.Layout, f, vringtest.At(base))
	if err != nil {
		t.Fatal(err)
	}
	return g, d
}

func take(t *testing.T, d vring.Device, n int) (heads []vring.Head) {
	t.Helper()
	var c vring.Chain
	for range n {
		ok, err := d.Next(&c)
		if !ok || err != nil {
			t.Fatalf("chain %d: %v, %v", len(heads), ok, err)
		}
		heads = append(heads, c.Head)
	}
	return heads
}

func TestUsedElementsStayHiddenUntilPublish(t *testing.T) {
	g, d := newRing(t, 8, 0, 0)
	g.SetAvail(0, 3)
	for i, h := range take(t, d, 3) {
		d.Push([]vring.Used{{Head: h, Written: uint32(10 + i)}})
	}
	if g.UsedIdx() != 0 {
		t.Fatalf("used.idx is %d before Publish", g.UsedIdx())
	}
	d.Publish()
	if g.UsedIdx() != 3 {
		t.Fatalf("used.idx is %d after Publish", g.UsedIdx())
	}
	for i := range 3 {
		if id, n := g.UsedElem(i); id != uint32(i) || n != uint32(10+i) {
			t.Errorf("element %d is %d, %d", i, id, n)
		}
	}
	if d.Publish() {
		t.Error("a call without anything new")
	}
}

func TestIndexWrapKeepsSlots(t *testing.T) {
	g, d := newRing(t, 8, 0, 0xfffe)
	g.SetAvail(0, 4) // 6 chains over the wrap
	heads := take(t, d, 6)
	if want := []vring.Head{6, 7, 0, 1, 2, 3}; !slices.Equal(heads, want) {
		t.Errorf("heads %v, want %v", heads, want)
	}
	if ok, err := d.Next(new(vring.Chain)); ok || err != nil {
		t.Errorf("a seventh chain: %v, %v", ok, err)
	}
	if d.Base() != vringtest.At(4) {
		t.Errorf("base %d", d.Base().Num())
	}
}

func TestRewindLeavesNoTrace(t *testing.T) {
	g, d := newRing(t, 8, 0, 0)
	g.SetAvail(0, 5)
	d.Push([]vring.Used{{Head: take(t, d, 1)[0], Written: 1}})
	before := bytes.Clone(g.Layout.Used)
	m := d.Mark()
	for _, h := range take(t, d, 4) {
		d.Push([]vring.Used{{Head: h, Written: 64}})
	}
	d.Rewind(m)
	if d.Base() != vringtest.At(1) || d.Mark() != m {
		t.Errorf("base %d", d.Base().Num())
	}
	d.Publish()
	if g.UsedIdx() != 1 {
		t.Errorf("used.idx %d: the chains given back were published", g.UsedIdx())
	}
	if !bytes.Equal(before[:2], g.Layout.Used[:2]) {
		t.Error("flags changed")
	}
	if heads := take(t, d, 4); !slices.Equal(heads, []vring.Head{1, 2, 3, 4}) {
		t.Errorf("taken again: %v", heads)
	}
}

func TestCallFollowsTheFlagWithoutEventIdx(t *testing.T) {
	g, d := newRing(t, 8, 0, 0)
	g.SetAvail(0, 1)
	d.Push([]vring.Used{{Head: take(t, d, 1)[0]}})
	if !d.Publish() {
		t.Error("no call although the flag is clear")
	}
	g.SetAvail(1, 2)
	d.Push([]vring.Used{{Head: take(t, d, 1)[0]}})
	if d.Publish() {
		t.Error("a call although the driver asked for none")
	}
}

// The first Publish calls whatever used_event says, since nobody knows what the driver has seen; then the event counts.
func TestCallFollowsUsedEvent(t *testing.T) {
	const num = 8
	g, d := newRing(t, num, virtio.Mask(virtio.FEventIdx), 0)
	event := func(v uint16) { binary.LittleEndian.PutUint16(g.Layout.Avail[4+2*num:], v) }
	idx := uint16(0)
	step := func(n int) bool {
		idx += uint16(n)
		g.SetAvail(1, idx) // the flag means nothing now
		for _, h := range take(t, d, n) {
			d.Push([]vring.Used{{Head: h}})
		}
		return d.Publish()
	}
	tests := []struct {
		name  string
		event uint16
		n     int
		want  bool
	}{
		{"first, event far away", 1000, 1, true},
		{"event not reached", 5, 2, false},        // 1 -> 3
		{"event is the last element", 4, 2, true}, // 3 -> 5 passes 4
		{"event already passed", 4, 1, false},     // 5 -> 6
		{"event is the next element", 6, 1, true}, // 6 -> 7
		{"event inside a long burst", 9, 8, true}, // 7 -> 15
		{"event just behind a burst", 18, 3, false},
	}
	for _, tt := range tests {
		event(tt.event)
		if got := step(tt.n); got != tt.want {
			t.Errorf("%s: call %v", tt.name, got)
		}
	}
}

func TestNotifyRechecksAfterAsking(t *testing.T) {
	const num = 8
	for _, f := range []virtio.Features{0, virtio.Mask(virtio.FEventIdx)} {
		g, d := newRing(t, num, f, 0)
		if d.EnableNotify() {
			t.Error("something is available in an empty ring")
		}
		g.SetAvail(0, 2)
		if !d.EnableNotify() {
			t.Error("chains that came meanwhile are overlooked")
		}
		take(t, d, 2)
		d.DisableNotify()
		if want := uint16(1); f == 0 && g.UsedFlags() != want {
			t.Error("kicks are not switched off")
		}
		if d.EnableNotify() {
			t.Error("taken chains count as available")
		}
		if g.UsedFlags() != 0 {
			t.Error("kicks are not switched on")
		}
		if got := binary.LittleEndian.Uint16(g.Layout.Used[4+8*num:]); f != 0 && got != 2 {
			t.Errorf("avail_event is %d, want 2", got)
		}
	}
}

// A flag written between Push and Publish must not carry unpublished elements with it.
func TestNotifyFlagsDoNotPublish(t *testing.T) {
	g, d := newRing(t, 8, 0, 0)
	g.SetAvail(0, 1)
	d.Push([]vring.Used{{Head: take(t, d, 1)[0]}})
	d.DisableNotify()
	d.EnableNotify()
	if g.UsedIdx() != 0 {
		t.Error("used.idx moved")
	}
}

func TestUsedIndexIsReadFromTheRing(t *testing.T) {
	g := vringtest.New(vringtest.Options{Num: 8})
	binary.LittleEndian.PutUint16(g.Layout.Used[2:], 0xffff)
	g.Set(0, vringtest.Desc{Addr: g.DataGPA, Len: 4, Flags: write})
	g.SetAvail(0, 1)
	d, _ := g.Device()
	d.Push([]vring.Used{{Head: take(t, d, 1)[0], Written: 4}})
	d.Publish()
	if g.UsedIdx() != 0 {
		t.Errorf("used.idx %d, want the wrap to 0", g.UsedIdx())
	}
	if id, n := g.UsedElem(7); id != 0 || n != 4 {
		t.Errorf("element in slot 7: %d, %d", id, n)
	}
}

// What Base says is all that the next device needs, on the same ring in other memory.
func TestTheNextDeviceGoesOnAtTheBase(t *testing.T) {
	g, d := newRing(t, 8, 0, 0xffff)
	g.SetAvail(0, 2)
	d.Push([]vring.Used{{Head: take(t, d, 1)[0], Written: 1}})
	d.Publish()
	mem := vringtest.Heap(len(g.Mem))
	copy(mem, g.Mem)
	l, err := vring.Split(mem, 8)
	if err != nil {
		t.Fatal(err)
	}
	base, err := vring.ParseBase(0, d.Base().Num())
	if err != nil || base != d.Base() {
		t.Fatalf("%d is read as %d, %v", d.Base().Num(), base.Num(), err)
	}
	if d, err = vring.NewDevice(guestmem.FromBytes(vringtest.DefaultGPA, vringtest.DefaultUVA, mem), l, 0, base); err != nil {
		t.Fatal(err)
	}
	heads := take(t, d, 2)
	if !slices.Equal(heads, []vring.Head{0, 1}) {
		t.Errorf("heads %v", heads)
	}
	d.Push([]vring.Used{{Head: heads[0], Written: 5}})
	d.Publish()
	if got := binary.LittleEndian.Uint16(l.Used[2:]); got != 2 || g.UsedIdx() != 1 {
		t.Errorf("used.idx new %d, old %d", got, g.UsedIdx())
	}
}

func TestABaseThatIsNoIndexOfASplitRingIsRefused(t *testing.T) {
	if _, err := vring.ParseBase(0, 0x10000); err != vring.ErrBase {
		t.Error(err)
	}
}

// A caller that found too little waits for news behind what it saw, not for what it gave back.
func TestAvailableIsWhatCameBehindAPlace(t *testing.T) {
	g, d := newRing(t, 8, 0, 0xfffe)
	g.SetAvail(0, 1)
	m := d.Mark()
	take(t, d, 3)
	end := d.Base()
	d.Rewind(m)
	if d.Available(end) {
		t.Error("what was given back counts as news")
	}
	g.SetAvail(0, 2)
	if !d.Available(end) || d.Mark() != m {
		t.Error("a new chain was not seen, or one was taken")
	}
	g.SetAvail(0, 100) // no driver does
	if !d.Available(end) || d.Err() != vring.ErrAvailJump {
		t.Errorf("a broken ring keeps its caller waiting: %v", d.Err())
	}
}

func TestBuffersAcrossRegionsComeInPieces(t *testing.T) {
	g := vringtest.New(vringtest.Options{Num: 4, Data: 1000, Split: 100, Features: virtio.Mask(virtio.FIndirectDesc)})
	table := make([]byte, 32) // an indirect table that crosses a border
	vringtest.Desc{Addr: g.DataGPA + 250, Len: 120, Flags: next, Next: 1}.Encode(table)
	vringtest.Desc{Addr: g.DataGPA + 400, Len: 100, Flags: write}.Encode(table[16:])
	g.Write(g.DataGPA+84, table)
	g.Set(0, vringtest.Desc{Addr: g.DataGPA + 84, Len: 32, Flags: indirect})
	g.Post(0)
	d, _ := g.Device()
	var c vring.Chain
	if ok, err := d.Next(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if len(c.Readable) != 2 || len(c.Readable[0]) != 50 || len(c.Readable[1]) != 70 || len(c.Writable) != 1 || c.ReadLen != 120 || c.WriteLen != 100 {
		t.Errorf("%d and %d pieces, %d and %d bytes", len(c.Readable), len(c.Writable), c.ReadLen, c.WriteLen)
	}
}

func TestBadLayoutsAreRefused(t *testing.T) {
	mem := vringtest.Heap(vring.Bytes(8) + 64)
	good, err := vring.Split(mem, 8)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		edit func(l *vring.Layout)
		want error
	}{
		{"guard", func(*vring.Layout) {}, nil},
		{"size 0", func(l *vring.Layout) { l.Num = 0 }, vring.ErrRingSize},
		{"size -8", func(l *vring.Layout) { l.Num = -8 }, vring.ErrRingSize},
		{"size 6", func(l *vring.Layout) { l.Num = 6 }, vring.ErrRingSize},
		{"size 65536", func(l *vring.Layout) { l.Num = 65536 }, vring.ErrRingSize},
		{"descriptors short", func(l *vring.Layout) { l.Desc = l.Desc[:127] }, vring.ErrRingShort},
		{"avail short", func(l *vring.Layout) { l.Avail = l.Avail[:21] }, vring.ErrRingShort},
		{"used short", func(l *vring.Layout) { l.Used = l.Used[:69] }, vring.ErrRingShort},
		{"descriptors at 8", func(l *vring.Layout) { l.Desc = mem[8 : 8+128] }, vring.ErrAlign},
		{"used at 2", func(l *vring.Layout) { l.Used = mem[2 : 2+70] }, vring.ErrAlign},
		{"avail at 2", func(l *vring.Layout) { l.Avail = mem[2 : 2+22] }, vring.ErrAvailAlign},
		{"avail at 4", func(l *vring.Layout) { l.Avail = mem[4 : 4+22] }, nil},
	}
	for _, tt := range tests {
		l := good
		tt.edit(&l)
		if _, err := vring.NewDevice(guestmem.FromBytes(0, 0, mem), l, 0, vring.Position{}); err != tt.want {
			t.Errorf("%s: device: got %v, want %v", tt.name, err, tt.want)
		}
		if _, err := vring.NewDriver(l, 0, vring.IndirectArea{}); err != tt.want {
			t.Errorf("%s: driver: got %v, want %v", tt.name, err, tt.want)
		}
	}
	if _, err := vring.Split(mem, 3); err != vring.ErrRingSize {
		t.Errorf("Split of 3: %v", err)
	}
	if _, err := vring.Split(mem[:vring.Bytes(8)-1], 8); err != vring.ErrRingShort {
		t.Errorf("Split of too little: %v", err)
	}
}
