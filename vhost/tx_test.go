package vhost_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// tso is a header that a guest puts in front of an IPv4 superframe.
var tso = virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, HdrLen: 66, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}

// reap takes back what the device has completed.
func reap(t *testing.T, r *user.Ring) (tokens []uint64) {
	t.Helper()
	for {
		token, n, ok := r.Driver.Used()
		if !ok {
			if err := r.Driver.Err(); err != nil {
				t.Fatal(err)
			}
			return tokens
		}
		if n != 0 {
			t.Errorf("%d bytes reported as written to a transmit buffer", n)
		}
		tokens = append(tokens, token)
	}
}

func TestSentFramesArriveWholeAndInOrder(t *testing.T) {
	shapes := [][]int{{}, {12}, {10}, {12, 14}, {1, 1, 1, 9, 20}, {12, 34, 20, 12}}
	for _, f := range []virtio.Features{all, without(all, virtio.FVersion1, virtio.FMrgRxbuf), without(all, virtio.FEventIdx)} {
		for _, indirect := range []int{0, 19} {
			p, socket, _ := newPort(t, nil)
			g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features, c.Indirect = f, indirect }).start()
			var want [][]byte
			for i, sizes := range shapes {
				hdr, size := virtio.NetHdr{}, 60+i
				if i%2 == 1 {
					hdr, size = tso, 60000+i
				}
				b := makeFrame(size, byte(i))
				want = append(want, b)
				g.send(g.TX(0), hdr, b, sizes...)
			}
			g.kick(g.TX(0))
			got := poll(t, p.TX(0), 64)
			if !slices.EqualFunc(got, want, bytes.Equal) {
				t.Fatalf("header of %d bytes: %d frames, or other bytes", f.HdrLen(), len(got))
			}
			if tokens := reap(t, g.TX(0)); !slices.IsSorted(tokens) || len(tokens) != len(want) {
				t.Errorf("completed %v", tokens)
			}
		}
	}
}

// Whoever sees a frame completed believes that it was sent: a guest, and a successor that goes on at the used index.
func TestWhatWasTakenLeavesBeforeItIsCompleted(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	r := g.TX(0)
	used := func() uint16 { return binary.LittleEndian.Uint16(r.Layout().Used[2:]) }
	calls, taken := 0, 0
	before := func() int {
		calls++
		if n := used(); n != 0 || taken != 2 {
			t.Errorf("called with %d frames taken and %d completed", taken, n)
		}
		return 0
	}
	take := func(*vhost.TxFrame) vhost.Next { taken++; return vhost.TakeOn }
	if n, _, err := p.TX(0).Poll(64, take, before); n != 0 || err != nil || calls != 0 {
		t.Errorf("%d frames of an empty queue, %v, %d calls", n, err, calls)
	}
	g.send(r, virtio.NetHdr{}, makeFrame(60, 1))
	g.send(r, virtio.NetHdr{}, makeFrame(61, 2))
	g.kick(r)
	if n, _, err := p.TX(0).Poll(64, take, before); n != 2 || err != nil || calls != 1 || used() != 2 {
		t.Errorf("%d frames, %v, %d calls, %d completed", n, err, calls, used())
	}
	leave := func(*vhost.TxFrame) vhost.Next { return vhost.Leave }
	g.send(r, virtio.NetHdr{}, makeFrame(60, 1))
	g.kick(r)
	if n, _, err := p.TX(0).Poll(64, leave, before); n != 0 || err != nil || calls != 1 {
		t.Errorf("%d frames, %v, %d calls for a frame that was left", n, err, calls)
	}
}

func TestAFrameLeftForLaterComesAgain(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	for i := range 3 {
		g.send(g.TX(0), virtio.NetHdr{}, makeFrame(60+i, 1))
	}
	g.kick(g.TX(0))
	var seen []int
	n, _, err := p.TX(0).Poll(64, func(f *vhost.TxFrame) vhost.Next {
		seen = append(seen, len(f.Data))
		if len(seen) == 2 {
			return vhost.Leave
		}
		return vhost.TakeOn
	}, nil)
	if n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if tokens := reap(t, g.TX(0)); len(tokens) != 1 {
		t.Errorf("completed %v", tokens)
	}
	if !p.TX(0).ArmKick() {
		t.Error("what was left does not count as work")
	}
	for _, f := range poll(t, p.TX(0), 64) {
		seen = append(seen, len(f))
	}
	if !slices.Equal(seen, []int{60, 61, 61, 62}) {
		t.Errorf("seen %v", seen)
	}
	if c := p.TX(0).Counters(); c.TxFrames != 3 || c.TxBytes != 60+61+62 {
		t.Errorf("counters %+v", c)
	}
}

func TestABudgetIsKept(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	for range 5 {
		g.send(g.TX(0), virtio.NetHdr{}, makeFrame(60, 1))
	}
	g.kick(g.TX(0))
	for _, want := range []int{2, 2, 1, 0} {
		if got := len(poll(t, p.TX(0), 2)); got != want {
			t.Errorf("%d frames, want %d", got, want)
		}
	}
}

func TestAPollEndsAfterSoManyBytes(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	const frames, size = 20, 60000
	for i := range frames {
		g.send(g.TX(0), tso, makeFrame(size, byte(i)))
	}
	g.kick(g.TX(0))
	for _, want := range []int{9, 9, 2, 0} { // 9 * 60,000 are the first above 512 KiB
		if got := len(poll(t, p.TX(0), 64)); got != want {
			t.Errorf("%d frames, want %d", got, want)
		}
		if more := p.TX(0).ArmKick(); more != (p.Counters().TxFrames < frames) {
			t.Errorf("more: %v", more)
		}
	}
}

func TestUnusableFramesAreDroppedAndCounted(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	r := g.TX(0)
	g.post(r, false, 11)                                   // not even a header
	g.send(r, virtio.NetHdr{}, makeFrame(13, 1))           // not even Ethernet
	g.send(r, tso, makeFrame(vhost.MaxFrame, 2))           // the longest
	g.send(r, tso, makeFrame(vhost.MaxFrame+1, 3))         // longer
	g.send(r, virtio.NetHdr{GSOType: 3}, makeFrame(60, 4)) // UFO was never offered
	noSize := tso
	noSize.GSOSize = 0
	g.send(r, noSize, makeFrame(3000, 5))
	g.send(r, virtio.NetHdr{}, makeFrame(14, 6))
	g.kick(r)
	got := poll(t, p.TX(0), 64)
	if len(got) != 2 || len(got[0]) != vhost.MaxFrame || len(got[1]) != 14 {
		t.Errorf("%d frames", len(got))
	}
	if n := len(reap(t, r)); n != 7 {
		t.Errorf("%d of 7 chains completed", n)
	}
	d := p.Counters().TxDropped
	if d[vhost.TxBadHeader] != 3 || d[vhost.TxTooShort] != 1 || d[vhost.TxTooLong] != 1 {
		t.Errorf("dropped %v", d)
	}
	if s := p.State(); s.Name != vhost.StateRunning {
		t.Errorf("state %s: %s", s.Name, s.Reason)
	}
}

func TestADisabledQueueIsConsumedAndReceivesNothing(t *testing.T) {
	p, socket, log := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	if err := g.Enable(0, false); err != nil {
		t.Fatal(err)
	}
	g.post(g.RX(0), true, 2000)
	g.kick(g.RX(0))
	g.send(g.TX(0), virtio.NetHdr{}, makeFrame(60, 1))
	g.kick(g.TX(0))
	if p.RX(0).Begin() {
		t.Fatal("a disabled queue takes frames")
	}
	if got := poll(t, p.TX(0), 64); len(got) != 0 {
		t.Error("a disabled queue sends")
	}
	if n := len(reap(t, g.TX(0))); n != 1 {
		t.Errorf("%d chains completed", n)
	}
	if n := p.Counters().TxDropped[vhost.TxDisabled]; n != 1 {
		t.Errorf("%d counted", n)
	}
	if p.Pairs() != 0 {
		t.Error("a disabled pair counts")
	}
	if err := g.Enable(0, true); err != nil {
		t.Fatal(err)
	}
	if err := put(t, p.RX(0), plain(makeFrame(60, 1))); err != nil {
		t.Error(err)
	}
	checkAlternating(t, log.all())
}

func TestAKickIsAskedForOnlyWhenArmed(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features = without(all, virtio.FEventIdx) }).start()
	p.TX(0).DisarmKick()
	g.send(g.TX(0), virtio.NetHdr{}, makeFrame(60, 1))
	if g.kick(g.TX(0)) {
		t.Error("kick while somebody polls")
	}
	if !p.TX(0).ArmKick() {
		t.Error("frame not noticed")
	}
	poll(t, p.TX(0), 64)
	if p.TX(0).ArmKick() {
		t.Error("work where there is none")
	}
	g.send(g.TX(0), virtio.NetHdr{}, makeFrame(60, 1))
	if !g.kick(g.TX(0)) {
		t.Error("no kick although armed")
	}
}

func TestPollingAStoppedQueueSaysSo(t *testing.T) {
	p, _, _ := newPort(t, nil)
	if _, _, err := p.TX(0).Poll(1, nil, nil); !errors.Is(err, vhost.ErrNotRunning) {
		t.Error(err)
	}
	if p.RX(0).Begin() || p.TX(0).ArmKick() || p.RX(0).KickFD() != -1 || p.TX(3).KickFD() != -1 {
		t.Error("a stopped queue works")
	}
	p.TX(0).DisarmKick()
	p.RX(0).AckKick()
}

func TestFramesThatWereSentAreCompletedAlsoBeforeABrokenChain(t *testing.T) {
	p, socket, log := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	r := g.TX(0)
	g.send(r, virtio.NetHdr{}, makeFrame(60, 1))
	pc := g.post(r, true, 100) // writable in a transmit queue
	_ = pc
	g.kick(r)
	n, _, err := p.TX(0).Poll(64, func(*vhost.TxFrame) vhost.Next { return vhost.TakeOn }, nil)
	if n != 1 || !errors.Is(err, vhost.ErrPortFailed) {
		t.Fatal(n, err)
	}
	if tokens := reap(t, r); len(tokens) != 1 {
		t.Errorf("completed %v", tokens)
	}
	if err := <-log.stopped; !errors.Is(err, vring.ErrWritable) {
		t.Errorf("reason %v", err)
	}
}
