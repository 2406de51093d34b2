package vhost

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

// receiver is a guest's receive queue of any device type, and a writer to it.
type receiver struct {
	t    *testing.T
	g    *vringtest.Guest
	drv  *vring.Driver
	dev  vring.Device
	w    mergeable
	sent [][]vring.Buffer // by token: the buffers of each chain
}

const untouched = 0xEE // what lies in a buffer before the device has written

func newReceiver(t *testing.T, o vringtest.Options, s receiveShape) *receiver {
	t.Helper()
	g := vringtest.New(o)
	drv, err := g.Driver()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := g.Device()
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{t: t, g: g, drv: drv, dev: dev}
	r.w.start(dev, s)
	return r
}

// post offers one chain of buffers of those sizes.
func (r *receiver) post(sizes ...int) {
	r.t.Helper()
	var bufs []vring.Buffer
	for _, n := range sizes {
		b := vring.Buffer{Addr: r.g.Alloc(n), Len: uint32(n), Writable: true}
		r.g.Write(b.Addr, bytes.Repeat([]byte{untouched}, n))
		bufs = append(bufs, b)
	}
	if err := r.drv.Add(bufs, uint64(len(r.sent))); err != nil {
		r.t.Fatal(err)
	}
	r.sent = append(r.sent, bufs)
	r.drv.Publish()
}

func clean(b []byte) bool { return bytes.Count(b, []byte{untouched}) == len(b) }

// bytesOf is what lies in a chain now.
func (r *receiver) bytesOf(token uint64) (b []byte) {
	for _, buf := range r.sent[token] {
		b = append(b, r.g.Read(buf.Addr, int(buf.Len))...)
	}
	return b
}

// receive takes all chains that were published as one message. It holds the device to its duty that every chain but the last is
// full, and that nothing lies behind what it says to have written.
func (r *receiver) receive() (message []byte, chains int) {
	r.t.Helper()
	last := -1
	for {
		token, n, ok := r.drv.Used()
		if !ok {
			if err := r.drv.Err(); err != nil {
				r.t.Fatal(err)
			}
			return message, chains
		}
		if last == 0 {
			r.t.Error("a chain that is not the last was not filled")
		}
		b := r.bytesOf(token)
		if n == 0 || !clean(b[n:]) {
			r.t.Errorf("%d bytes reported of %d, and more written", n, len(b))
		}
		last = 1
		if int(n) < len(b) {
			last = 0
		}
		message = append(message, b[:n]...)
		chains++
	}
}

// payload is n bytes, none of them as an untouched one.
func payload(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7+i>>8) & 0x7f
	}
	return b
}

// pieces cuts bytes as they may come from a wire: an empty one among them.
func pieces(b []byte, size int) (out [][]byte) {
	for len(b) > size {
		out = append(out, b[:size], nil)
		b = b[size:]
	}
	return append(out, b)
}

// The headers of device types, those that are and those that may be.
var messageHeaders = []struct {
	name string
	len  int
	at   int // of num_buffers
}{
	{"virtio-net", 12, 10},
	{"virtio-vsock with MRG_RXBUF", 46, 44},
	{"a header that begins with it", 20, 0},
	{"a header without", 44, -1},
}

func TestAMessageArrivesWholeWhateverTheBuffersAndTheHeader(t *testing.T) {
	repeat := func(n int, sizes ...int) (out [][]int) {
		for range n {
			out = append(out, sizes)
		}
		return out
	}
	shapes := map[string][][]int{
		"pages":                         repeat(20, 4096),
		"one byte at the end of each":   repeat(30, 3000, 1),
		"single bytes, then pages":      append(repeat(60, 1), repeat(20, 4096)...),
		"a header alone, then data":     append([][]int{{12}, {44}, {46}, {20}}, repeat(20, 4096)...),
		"the header split in a chain":   append([][]int{{1, 2, 3, 5, 8, 13, 21, 34}}, repeat(20, 4096)...),
		"larger than the message":       {{40000, 30000}},
		"as large as the smallest ones": append([][]int{{12}, {1}}, repeat(40, 1536)...),
	}
	for name, shape := range shapes {
		for _, h := range messageHeaders {
			for _, n := range []int{1, 44, 4084, 4085, 60000} {
				for _, o := range []vringtest.Options{{Data: 200000}, {Data: 200000, Features: virtio.Mask(virtio.FIndirectDesc, virtio.FEventIdx), Indirect: 16}, {Data: 200000, Split: 1000}} {
					t.Run(fmt.Sprintf("%s/%s/%d/%v/split=%d", name, h.name, n, o.Features.Names(), o.Split), func(t *testing.T) {
						r := newReceiver(t, o, receiveShape{most: 256, numBuffersAt: h.at})
						least := 1 << 30
						for _, chain := range shape {
							r.post(chain...)
						}
						hdr := bytes.Repeat([]byte{0x55}, h.len)
						want := append(bytes.Clone(hdr), payload(n)...)
						if err := r.w.put(hdr, pieces(payload(n), 1448), n, 256, 0, nil); err != nil {
							t.Fatal(err)
						}
						r.dev.Publish()
						got, chains := r.receive()
						if h.at >= 0 {
							binary.LittleEndian.PutUint16(want[h.at:], uint16(chains))
						}
						if !bytes.Equal(got, want) {
							t.Fatalf("%d bytes in %d chains, want %d", len(got), chains, len(want))
						}
						if len(r.w.taken) != chains {
							t.Errorf("%d chains, %d are noted", chains, len(r.w.taken))
						}
						for _, chain := range shape[:chains] {
							size := 0
							for _, s := range chain {
								size += s
							}
							least = min(least, size)
						}
						if r.w.holds(3) != 3*least {
							t.Errorf("3 chains hold %d, the smallest is %d", r.w.holds(3), least)
						}
					})
				}
			}
		}
	}
}

// A ring that has room for the first half: the driver sees nothing and loses no buffer, and is asked for a kick.
func TestAMessageThatFindsTooLittleLeavesNoTrace(t *testing.T) {
	for _, f := range []virtio.Features{0, virtio.Mask(virtio.FEventIdx)} {
		for _, h := range messageHeaders {
			r := newReceiver(t, vringtest.Options{Num: 16, Features: f}, receiveShape{most: 16, numBuffersAt: h.at})
			r.dev.DisableNotify()
			hdr := make([]byte, h.len)
			for range 6 { // so that the indexes are not those of a fresh ring
				r.post(100)
				if err := r.w.put(hdr, [][]byte{payload(30)}, 30, 16, 0, nil); err != nil {
					t.Fatal(err)
				}
				r.dev.Publish()
				r.receive()
			}
			first := len(r.sent)
			for range 4 {
				r.post(50, 50)
			}
			base := r.dev.Base()
			for range 2 {
				if err := r.w.put(hdr, [][]byte{payload(700 - h.len)}, 700-h.len, 16, 0, nil); err != ErrNoBuffers {
					t.Fatal(err)
				}
			}
			if r.w.walked != 6+8 {
				t.Errorf("%d pieces walked: the second try looked at what was too little", r.w.walked)
			}
			if r.dev.Publish() || r.dev.Base() != base {
				t.Error("something of it is in the ring")
			}
			for i := range 4 {
				if b := r.bytesOf(uint64(first + i)); !clean(b) {
					t.Error("something of it is in the buffers")
				}
			}
			if r.w.rest(); r.w.arm() {
				t.Error("what was too little counts as news")
			}
			r.post(100)
			if !r.w.arm() {
				t.Error("no news of a new buffer")
			}
			for range 2 {
				r.post(100)
			}
			if err := r.w.put(hdr, [][]byte{payload(700 - h.len)}, 700-h.len, 16, 0, nil); err != nil {
				t.Fatal(err)
			}
			r.dev.Publish()
			if got, chains := r.receive(); chains != 7 || !bytes.Equal(got[h.len:], payload(700-h.len)) {
				t.Errorf("%s: %d bytes in %d chains", h.name, len(got), chains)
			}
			r.w.rest()
			if r.post(100); f == 0 && r.g.UsedFlags() != 1 {
				t.Error("kicks are still asked for")
			}
		}
	}
}

// A smaller message may fit where a larger one did not; one as large is not tried before there is news. Until one has found
// room, and only until then, the driver is asked for kicks.
func TestASmallerMessageIsTriedAfterAShortage(t *testing.T) {
	r := newReceiver(t, vringtest.Options{Num: 8}, receiveShape{most: 8, numBuffersAt: -1})
	r.post(100)
	hdr := make([]byte, 44)
	r.dev.DisableNotify()
	for _, c := range []struct {
		n    int
		want error
	}{{100, ErrNoBuffers}, {100, ErrNoBuffers}, {57, ErrNoBuffers}, {56, nil}} {
		if err := r.w.put(hdr, [][]byte{payload(c.n)}, c.n, 8, 0, nil); err != c.want {
			t.Errorf("%d bytes: %v", c.n, err)
		}
		r.w.rest()
		if off := r.g.UsedFlags() == 1; off != (c.want == nil) {
			t.Errorf("%d bytes: %v, and kicks are off: %v", c.n, c.want, off)
		}
	}
}

// Without mergeable buffers a message fits one chain, or never does.
func TestAMessageOfOneChain(t *testing.T) {
	r := newReceiver(t, vringtest.Options{Num: 8}, receiveShape{most: 1, numBuffersAt: -1})
	for range 3 {
		r.post(44, 100)
	}
	hdr := make([]byte, 44) // virtio-vsock's
	if err := r.w.put(hdr, [][]byte{payload(101)}, 101, 8, 0, nil); err != ErrTooBig {
		t.Errorf("101 bytes into 100: %v", err)
	}
	if err := r.w.put(hdr, [][]byte{payload(100)}, 100, 8, 0, nil); err != nil {
		t.Error(err)
	}
	r.dev.Publish()
	if got, chains := r.receive(); len(got) != 144 || chains != 1 {
		t.Errorf("%d bytes in %d chains", len(got), chains)
	}
	if r.w.holds(8) != 144 {
		t.Errorf("a chain holds %d", r.w.holds(8))
	}
}

// What the sender does not allow is told apart from what the ring cannot hold: the one may be cut smaller.
func TestTooManyChainsForTheSenderOrForTheRing(t *testing.T) {
	r := newReceiver(t, vringtest.Options{Num: 4}, receiveShape{most: 4, numBuffersAt: 10})
	for range 4 {
		r.post(100)
	}
	hdr := make([]byte, 12)
	base := r.dev.Mark()
	for _, c := range []struct {
		n, budget int
		want      error
	}{{189, 2, errOverBudget}, {189, 4, nil}, {389, 4, ErrTooBig}, {389, 100, ErrTooBig}} {
		if err := r.w.put(hdr, [][]byte{payload(c.n)}, c.n, c.budget, 0, nil); err != c.want {
			t.Errorf("%d bytes in %d chains: %v", c.n, c.budget, err)
		}
		r.dev.Rewind(base)
	}
}

// A driver that breaks the rules in the middle of a message breaks its ring; nothing of the message is published.
func TestABrokenChainInTheMiddleOfAMessage(t *testing.T) {
	for name, c := range map[string]struct {
		desc vringtest.Desc
		want error
	}{
		"outside":  {vringtest.Desc{Addr: 1, Len: 100, Flags: vring.DescWrite}, vring.ErrOutOfRegion},
		"readable": {vringtest.Desc{Addr: vringtest.DefaultGPA, Len: 100}, vring.ErrReadable},
	} {
		g := vringtest.New(vringtest.Options{Num: 8})
		g.Set(0, vringtest.Desc{Addr: g.DataGPA, Len: 100, Flags: vring.DescWrite})
		g.Set(1, c.desc)
		g.Post(0)
		g.Post(1)
		dev, err := g.Device()
		if err != nil {
			t.Fatal(err)
		}
		var w mergeable
		w.start(dev, receiveShape{most: 8, numBuffersAt: -1})
		for range 2 {
			if err := w.put(make([]byte, 44), [][]byte{payload(100)}, 100, 8, 0, nil); err != c.want {
				t.Errorf("%s: %v", name, err)
			}
		}
		if dev.Publish(); g.UsedIdx() != 0 {
			t.Errorf("%s: something was published", name)
		}
	}
}
