package vhost_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

func without(f virtio.Features, bits ...uint) virtio.Features { return f &^ virtio.Mask(bits...) }

func TestAFrameArrivesWholeInBuffersOfAnyShape(t *testing.T) {
	repeat := func(n int, sizes ...int) (out [][]int) {
		for range n {
			out = append(out, sizes)
		}
		return out
	}
	shapes := map[string][][]int{
		"one page each":                       repeat(20, 4096),
		"1536 bytes each":                     repeat(48, 1536),
		"header alone, then data":             repeat(20, 12, 4096),
		"header split in single bytes":        append([][]int{{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4000}}, repeat(20, 4096)...),
		"first chain shorter than the header": append([][]int{{5}, {3}, {1}}, repeat(20, 4096)...),
		"single-byte tails":                   repeat(20, 4000, 1),
		"odd sizes":                           append([][]int{{13}, {27, 1}, {1}, {2, 3, 5}, {4095}, {1}}, repeat(20, 3137)...),
		"one large chain":                     {{70000}},
		"big-packets mode":                    {{12, 100, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096}},
	}
	for name, shape := range shapes {
		for _, size := range []int{14, 60, 1514, 9014, 65549} {
			for _, indirect := range []int{0, 20} {
				for _, f := range []virtio.Features{all, without(all, virtio.FEventIdx), without(all, virtio.FIndirectDesc)} {
					p, socket, _ := newPort(t, nil)
					g := newGuest(t, socket, func(c *user.FrontendConfig) {
						c.Features, c.Indirect = f, indirect
						c.RingSize = 256
					}).start()
					for _, chain := range shape {
						g.post(g.RX(0), true, chain...)
					}
					g.kick(g.RX(0))
					want := makeFrame(size, 7)
					fr := &virtio.Frame{Frags: cut(want, 1448), Len: size}
					if err := put(t, p.RX(0), fr); err != nil {
						t.Fatalf("%s, %d bytes: %v", name, size, err)
					}
					h, got, ok := g.recv(g.RX(0))
					if !ok || !bytes.Equal(got, want) {
						t.Fatalf("%s, %d bytes: got %d bytes, equal %v", name, size, len(got), bytes.Equal(got, want))
					}
					if h.NumBuffers != fr.Hdr.NumBuffers {
						t.Errorf("num_buffers %d in memory, %d told", h.NumBuffers, fr.Hdr.NumBuffers)
					}
					_ = g.Close()
					_ = p.Close()
				}
			}
		}
	}
}

func TestWithoutMergeableBuffersAFrameFitsOneChainOrNot(t *testing.T) {
	for _, f := range []virtio.Features{without(all, virtio.FMrgRxbuf), without(all, virtio.FMrgRxbuf, virtio.FVersion1)} {
		p, socket, _ := newPort(t, nil)
		g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features = f }).start()
		r := g.RX(0)
		g.post(r, true, 12, 1518)
		g.post(r, true, 1530)
		g.kick(r)
		if err := put(t, p.RX(0), plain(makeFrame(4000, 1))); !errors.Is(err, vhost.ErrTooBig) {
			t.Fatalf("4000 bytes into 1518: %v", err)
		}
		for i := range 2 { // the refusal took no buffer
			want := makeFrame(1514, byte(i))
			if err := put(t, p.RX(0), plain(want)); err != nil {
				t.Fatal(err)
			}
			if _, got, _ := g.recv(r); !bytes.Equal(got, want) {
				t.Fatalf("header of %d bytes: frame %d differs", f.HdrLen(), i)
			}
		}
		if err := put(t, p.RX(0), plain(makeFrame(60, 1))); !errors.Is(err, vhost.ErrNoBuffers) {
			t.Fatalf("empty ring: %v", err)
		}
	}
}

func TestAFrameTheWholeRingCannotHoldIsTooBig(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.RingSize = 4 }).start()
	for range 4 {
		g.post(g.RX(0), true, 1000)
	}
	g.kick(g.RX(0))
	if err := put(t, p.RX(0), plain(makeFrame(4000, 1))); !errors.Is(err, vhost.ErrTooBig) {
		t.Fatal(err)
	}
	if err := put(t, p.RX(0), plain(makeFrame(3988, 1))); err != nil {
		t.Fatal(err)
	}
	if _, got, _ := g.recv(g.RX(0)); len(got) != 3988 {
		t.Fatal(len(got))
	}
}

func TestOnShortageTheGuestSeesNothingAndKicksWhenItHasMore(t *testing.T) {
	for _, f := range []virtio.Features{all, without(all, virtio.FEventIdx)} {
		p, socket, _ := newPort(t, nil)
		g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features = f }).start()
		r, q := g.RX(0), p.RX(0)
		for range 3 {
			g.post(r, true, 1000)
		}
		g.kick(r)
		q.AckKick()
		want := makeFrame(5000, 3)
		if !q.Begin() {
			t.Fatal("not running")
		}
		if err := q.Put(plain(want)); !errors.Is(err, vhost.ErrNoBuffers) {
			t.Fatal(err)
		}
		if arm(q) {
			t.Error("the three buffers that do not suffice count as news")
		}
		q.Commit()
		if _, _, ok := g.recv(r); ok {
			t.Fatal("guest sees part of a frame")
		}
		g.post(r, true, 1000)
		if !g.kick(r) {
			t.Fatal("no kick wanted although a frame waits")
		}
		if !q.Begin() {
			t.Fatal("not running")
		}
		if !arm(q) {
			t.Error("new buffer not seen")
		}
		if err := q.Put(plain(want)); !errors.Is(err, vhost.ErrNoBuffers) {
			t.Fatal(err)
		}
		q.Commit()
		for range 3 {
			g.post(r, true, 1000)
		}
		if !g.kick(r) {
			t.Fatal("no second kick")
		}
		if err := put(t, q, plain(want)); err != nil {
			t.Fatal(err)
		}
		if _, got, _ := g.recv(r); !bytes.Equal(got, want) {
			t.Fatal("frame differs")
		}
		// Nobody waits any more: with flags, kicks are off again. With an event index it lies behind us.
		g.post(r, true, 1000)
		if g.kick(r) {
			t.Error("kick although nothing waits")
		}
		if c := q.Counters(); c.RxNoBuffers != 2 || c.RxFrames != 1 || c.RxBuffers != 6 || c.RxBytes != 5000 {
			t.Errorf("counters %+v", c)
		}
	}
}

func TestAHeaderThatWasNotNegotiatedIsRefused(t *testing.T) {
	const csum = virtio.HdrNeedsCsum
	tests := []struct {
		name string
		hdr  virtio.NetHdr
		need virtio.Features
	}{
		{"nothing", virtio.NetHdr{}, 0},
		{"partial checksum", virtio.NetHdr{Flags: csum}, virtio.Mask(virtio.FGuestCsum)},
		{"valid checksum", virtio.NetHdr{Flags: virtio.HdrDataValid}, virtio.Mask(virtio.FGuestCsum)},
		{"IPv4 superframe", virtio.NetHdr{Flags: csum, GSOType: 1, GSOSize: 1448}, virtio.Mask(virtio.FGuestCsum, virtio.FGuestTSO4)},
		{"IPv6 superframe", virtio.NetHdr{Flags: csum, GSOType: 4, GSOSize: 1428}, virtio.Mask(virtio.FGuestCsum, virtio.FGuestTSO6)},
		{"with CWR", virtio.NetHdr{Flags: csum, GSOType: 0x81, GSOSize: 1448}, virtio.Mask(virtio.FGuestCsum, virtio.FGuestTSO4, virtio.FGuestECN)},
		{"with counts", virtio.NetHdr{Flags: csum | virtio.HdrRSCInfo, GSOType: 1, GSOSize: 1448}, virtio.Mask(virtio.FGuestCsum, virtio.FGuestTSO4, virtio.FRSCExt)},
	}
	sets := combinations(virtio.FGuestCsum, virtio.FGuestTSO4, virtio.FGuestTSO6, virtio.FGuestECN, virtio.FRSCExt)
	sets = slices.DeleteFunc(sets, func(f virtio.Features) bool { return f.Check() != nil })
	if len(sets) != 14 { // nothing, the checksum alone, and with three sets of TSO each of ECN and RSC_EXT
		t.Fatalf("%d legal combinations", len(sets))
	}
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features = 0 })
	for _, set := range sets {
		for _, ring := range []virtio.Features{virtio.Mask(virtio.FVersion1, virtio.FMrgRxbuf), virtio.Mask(virtio.FVersion1), 0} {
			if err := g.Renegotiate(set | ring); err != nil {
				t.Fatal(err)
			}
			g.start()
			for range tests {
				g.post(g.RX(0), true, 2000)
			}
			g.kick(g.RX(0))
			for _, tt := range tests {
				f := plain(makeFrame(100, 1))
				f.Hdr = tt.hdr
				err := put(t, p.RX(0), f)
				legal := tt.need&^set == 0
				if tt.hdr.GSOType != 0 && tt.hdr.Flags&virtio.HdrRSCInfo == 0 && set.Has(virtio.FRSCExt) {
					legal = false // the counts are a duty
				}
				if legal != (err == nil) || !legal && !errors.Is(err, vhost.ErrNotNegotiated) {
					t.Errorf("%s under %v: %v", tt.name, set.Names(), err)
				}
				if err != nil {
					continue
				}
				h, _, ok := g.recv(g.RX(0))
				want := tt.hdr
				if ring != 0 {
					want.NumBuffers = 1
				}
				if !ok || h != want {
					t.Errorf("%s under %v: header %+v", tt.name, set.Names(), h)
				}
			}
		}
	}
}

// combinations are all sets of the bits.
func combinations(bits ...uint) (sets []virtio.Features) {
	for n := range 1 << len(bits) {
		var f virtio.Features
		for i, bit := range bits {
			f |= virtio.Features(n>>i&1) << bit
		}
		sets = append(sets, f)
	}
	return sets
}

func TestAFrameAgainstTheStandardIsRefused(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features = vhost.DefaultFeatures }).start()
	g.post(g.RX(0), true, 70000)
	g.kick(g.RX(0))
	b := makeFrame(100, 1)
	gso := virtio.NetHdr{Flags: virtio.HdrNeedsCsum | virtio.HdrRSCInfo, GSOType: virtio.GSOTCPv4, GSOSize: 40}
	noSize, noCsum := gso, gso
	noSize.GSOSize, noCsum.Flags = 0, virtio.HdrRSCInfo
	for name, f := range map[string]*virtio.Frame{
		"length above the bytes":        {Frags: [][]byte{b}, Len: 101},
		"length below the bytes":        {Frags: [][]byte{b, b}, Len: 100},
		"shorter than Ethernet":         plain(b[:13]),
		"empty":                         {},
		"longer than any frame":         plain(makeFrame(vhost.MaxFrame+1, 1)),
		"superframe without size":       {Hdr: noSize, Frags: [][]byte{b}, Len: 100},
		"superframe without NEEDS_CSUM": {Hdr: noCsum, Frags: [][]byte{b}, Len: 100},
		"counts of no superframe":       {Hdr: virtio.NetHdr{Flags: virtio.HdrRSCInfo}, Frags: [][]byte{b}, Len: 100},
	} {
		if err := put(t, p.RX(0), f); !errors.Is(err, vhost.ErrBadFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c := p.Counters(); c.RxRefused != 8 || c.RxFrames != 0 {
		t.Errorf("counters %+v", c)
	}
}

func TestABurstCallsTheGuestAtMostOnce(t *testing.T) {
	for _, f := range []virtio.Features{all, without(all, virtio.FEventIdx)} {
		p, socket, _ := newPort(t, nil)
		g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features = f }).start()
		r := g.RX(0)
		for range 40 {
			g.post(r, true, 1000)
		}
		g.kick(r)
		r.Driver.EnableCalls()
		r.AckCall()
		burst := []*virtio.Frame{plain(makeFrame(60, 1)), plain(makeFrame(3000, 2)), plain(makeFrame(60, 3))}
		if err := put(t, p.RX(0), burst...); err != nil {
			t.Fatal(err)
		}
		if n := r.AckCall(); n != 1 {
			t.Errorf("%d calls for a burst", n)
		}
		for {
			if _, _, ok := g.recv(r); !ok {
				break
			}
		}
		r.Driver.DisableCalls()
		if err := put(t, p.RX(0), burst...); err != nil {
			t.Fatal(err)
		}
		if n := r.AckCall(); n != 0 {
			t.Errorf("%d calls that the guest did not want", n)
		}
		if err := put(t, p.RX(0)); err != nil { // an empty burst
			t.Fatal(err)
		}
		if n := p.Counters().Calls; n != 1 {
			t.Errorf("%d calls counted", n)
		}
	}
}

func TestACallDueWithoutEventfdIsMadeUp(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	r := g.RX(0)
	g.post(r, true, 1000)
	g.kick(r)
	if err := g.SetCall(r, false); err != nil {
		t.Fatal(err)
	}
	r.AckCall()
	if err := put(t, p.RX(0), plain(makeFrame(60, 1))); err != nil {
		t.Fatal(err)
	}
	if n := r.AckCall(); n != 0 {
		t.Fatalf("%d calls", n)
	}
	if err := g.SetCall(r, true); err != nil {
		t.Fatal(err)
	}
	if n := r.AckCall(); n != 1 {
		t.Fatalf("%d calls after the eventfd came back", n)
	}
}
