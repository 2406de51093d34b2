package datapath

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// kernelRig is a worker whose way by the kernel is a real socket on one end of a pair; what leaves is captured at the other.
type kernelRig struct {
	*rig
	net  *netnstest.Network
	wire *tap.Uplink
	got  *netnstest.Capture
}

func newKernelRig(t *testing.T, tso bool, direct bool) *kernelRig {
	t.Helper()
	n := netnstest.Pair(t, netnstest.Options{KeepTSO: true, KeepTxChecksum: true, KeepTxVLAN: true, NoIPv4: true, NoIPv6: true, MACB: net.HardwareAddr(wire[:])})
	k := &kernelRig{net: n}
	n.A.Do(t, func() (err error) {
		k.wire, err = tap.OpenUplink(n.A.Index)
		return err
	})
	t.Cleanup(func() { _ = k.wire.Close() })
	if !tso { // then the checksum, too, is the kernel's
		n.A.SetOffload(t, "tso", false)
		n.A.SetOffload(t, "tx", false)
	}
	if err := k.wire.SetDirect(direct); err != nil || k.wire.Direct() != direct {
		t.Fatal(k.wire.Direct(), err)
	}
	k.got = n.B.Capture(t)
	k.rig = newRig(t, func(c *Config) { c.Wire = k.wire })
	return k
}

// captured are the frames at the other end, with the tag that the capture took out back in place.
func (k *kernelRig) captured(want int) (all [][]byte) {
	k.tb.Helper()
	for len(all) < want {
		f := k.got.Next(netnstest.Patience(5 * time.Second))
		b := f.Data
		if f.Tagged {
			b = netnstest.Tag(b, f.TCI)
		}
		all = append(all, b)
	}
	if f, ok := k.got.Poll(20 * time.Millisecond); ok {
		k.tb.Fatalf("one more: %d bytes", len(f.Data))
	}
	return all
}

// The kernel makes of a TSO frame exactly the packets that we would cut, whether the device was thought to take it or not.
func TestTheKernelCutsAsWeDo(t *testing.T) {
	for _, direct := range []bool{false, true} {
		k := newKernelRig(t, false, direct)
		var sources []*fakeSource
		for i, vlan := range []uint16{0, 5} {
			_, s := k.sender(uint32(i+1), func(c *PortConfig) { c.Addr.VLAN = vlan })
			s.head = HeadRoom
			sources = append(sources, s)
		}
		for _, v6 := range []bool{false, true} {
			for name, edit := range map[string]func(*pt.TCP){
				"timestamps":    func(*pt.TCP) {},
				"no options":    func(p *pt.TCP) { p.Opts = nil },
				"40 bytes":      func(p *pt.TCP) { p.Opts = bytes.Repeat([]byte{1}, 40) },
				"CWR, PSH, FIN": func(p *pt.TCP) { p.Flags = pt.ACK | pt.CWR | pt.PSH | pt.FIN },
				"IP length 0":   func(p *pt.TCP) { p.ZeroIPLength = true },
				"303 packets":   func(p *pt.TCP) { p.Len = 303 * 200 },
				"one packet":    func(p *pt.TCP) { p.Len = 150 },
			} {
				for i, s := range sources {
					p := from(uint32(i+1), wire, 5077)
					p.V6, p.Partial = v6, true
					edit(&p)
					g := flowtable.GSO{Type: virtio.GSOTCPv4, Size: 200}
					if v6 {
						g.Type = virtio.GSOTCPv6
					}
					frame := p.Frame()
					want, err := cutAll(t, frame, g)
					if err != nil {
						t.Fatal(err)
					}
					if i == 1 {
						for i := range want {
							want[i] = netnstest.Tag(want[i], 5)
						}
					}
					s.send(kernelCuts(g.Type, g.Size), frame)
					k.step()
					got := k.captured(len(want))
					for i := range got {
						if !bytes.Equal(got[i], want[i]) {
							t.Fatalf("%s, IPv6 %v, VLAN of %d, packet %d:\n got %x\nwant %x", name, v6, s.head, i, head(got[i]), head(want[i]))
						}
					}
				}
			}
		}
		if k.wire.Direct() {
			t.Error("frames still go past the discipline, which the device does not take")
		}
		if n := k.w.ports[1].cnt; n.TxKernel != 14 || k.w.cnt.TxRingFull != 0 {
			t.Errorf("%+v", n)
		}
	}
}

// A device that takes TSO frames gets them whole, tag and all.
func TestADeviceThatTakesTSOFramesGetsThem(t *testing.T) {
	for _, direct := range []bool{false, true} {
		k := newKernelRig(t, true, direct)
		_, s := k.sender(1, func(c *PortConfig) { c.Addr.VLAN = 5 })
		s.head = HeadRoom
		p := from(1, wire, 40*1448)
		p.Partial = true
		s.send(kernelCuts(virtio.GSOTCPv4, 1448), p.Frame())
		k.step()
		p.Tags = []uint16{5}
		same(t, "captured", k.captured(1), [][]byte{p.Frame()})
		if k.wire.Direct() != direct || !k.wire.Empty() {
			t.Errorf("direct %v, empty %v", k.wire.Direct(), k.wire.Empty())
		}
	}
}

// sendHeader posts one frame of the guest's, and returns where it lies.
func (v *userVM) sendHeader(h virtio.NetHdr, frame []byte) (gpa uint64, mem []byte) {
	v.tb.Helper()
	b := make([]byte, virtio.HdrSize)
	h.Encode(b)
	b = append(b, frame...)
	gpa, mem, err := v.Alloc(len(b), 1)
	if err != nil {
		v.tb.Fatal(err)
	}
	copy(mem, b)
	v.next++
	if err := v.TX(0).Driver.Add([]vring.Buffer{{Addr: gpa, Len: uint32(len(b))}}, v.next); err != nil {
		v.tb.Fatal(err)
	}
	v.TX(0).Driver.Publish()
	return gpa, mem
}

// A guest that rewrites its headers all the time, while the kernel sends, gets no frame out with a foreign address or tag.
func TestAGuestThatRewritesItsHeadersInALoop(t *testing.T) {
	if raceEnabled {
		t.Skip("allowed: a guest writes to its memory without asking; that is what this test is about")
	}
	k := newKernelRig(t, true, false)
	v := newUserVM(t, allFeatures, 64, 64<<20, func(c *vhost.Config) { c.TxHead = HeadRoom })
	k.addPort(PortConfig{Index: 1, Addr: Addr{VLAN: 5, MAC: macOf(1)}})
	if err := k.w.startPort(1, NewUserGuest(v.port.RX(0), k.nic, k.w.Wake), []Source{v.port.TX(0)}, rules()); err != nil {
		t.Fatal(err)
	}
	good := from(1, wire, 20000).Frame()
	bad := from(2, [6]byte{2, 9, 9, 9, 9, 9}, 20000).With(func(p *pt.TCP) { p.Tags = []uint16{6} }).Frame()
	gpa, mem := v.sendHeader(kernelCuts(virtio.GSOTCPv4, 1000), good)
	stop := make(chan struct{})
	var guest sync.WaitGroup
	guest.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			from := good
			if i%2 == 0 {
				from = bad
			}
			copy(mem[virtio.HdrSize:virtio.HdrSize+100], from)
		}
	})
	for range 500 {
		v.next++
		for {
			if _, _, ok := v.TX(0).Driver.Used(); !ok {
				break
			}
		}
		k.w.step()
		k.check()
		// The same memory again.
		if err := v.TX(0).Driver.Add([]vring.Buffer{{Addr: gpa, Len: uint32(len(mem))}}, v.next); err != nil {
			continue // it is still out
		}
		v.TX(0).Driver.Publish()
	}
	close(stop)
	guest.Wait()
	frames := k.got.Drain(50 * time.Millisecond)
	for _, f := range frames {
		if !f.Tagged || f.TCI != 5 || !bytes.Equal(f.Data[6:12], good[6:12]) {
			t.Fatalf("a frame left: tag %v %d, %x", f.Tagged, f.TCI, head(f.Data))
		}
	}
	if c := k.w.ports[1].cnt; len(frames) == 0 || c.TxKernel == 0 {
		t.Errorf("%d frames, %+v", len(frames), c)
	}
}

// Some thousand headers that mean nothing, through a real socket: each frame leaves as it was judged, or is counted.
func TestRandomHeadersThroughARealSocket(t *testing.T) {
	for _, tso := range []bool{true, false} {
		k := newKernelRig(t, tso, tso)
		_, s := k.sender(1)
		s.head = HeadRoom
		rng := rand.New(rand.NewPCG(3, 4))
		const n = 3000
		var wireFrames int
		for range n {
			p := from(1, wire, rng.IntN(4000))
			p.V6, p.Partial = rng.IntN(2) == 0, true
			frame := p.Frame()
			if rng.IntN(3) == 0 {
				frame = datagramsFrom(wire, rng.IntN(4000), func(u *pt.UDP) { u.V6 = p.V6 })
			}
			for range rng.IntN(3) {
				frame[12+rng.IntN(min(80, len(frame)-12))] = byte(rng.Uint32())
			}
			h := anyHdr(t, rng)
			switch rng.IntN(4) {
			case 3:
				h.GSOType, h.GSOSize, h.CsumOffset = virtio.GSOUDPL4, h.GSOSize&0x7ff|1, 6
			case 0:
				h.GSOType, h.GSOSize = virtio.GSOTCPv4, h.GSOSize&0x7ff|1
			case 1:
				h.GSOType, h.GSOSize = virtio.GSOTCPv6, h.GSOSize&0x7ff|1
			}
			if virtio.CheckTx(&h, len(frame), allFeatures) != nil { // a virtqueue would not hand it on
				h = kernelCuts(virtio.GSOTCPv4, 1000)
			}
			s.send(h, frame)
			for range 20 {
				if len(s.queue) == 0 {
					break
				}
				k.step()
			}
			for {
				f, ok := k.got.Poll(0)
				if !ok {
					break
				}
				wireFrames++
				if !bytes.Equal(f.Data[:12], frame[:12]) || f.Tagged && f.TCI&vlanID != 0 {
					t.Fatalf("left: %x", head(f.Data))
				}
			}
		}
		c := k.w.ports[1].cnt
		dropped := uint64(0)
		for _, d := range c.TxDropped {
			dropped += d
		}
		if c.TxFrames+dropped < n || c.TxFrames+dropped > n+c.TxDropped[flowtable.ReasonBadLength] || len(s.queue) > 0 || wireFrames == 0 {
			t.Errorf("%d sent, %d dropped, %d wait, %d on the wire", c.TxFrames, dropped, len(s.queue), wireFrames)
		}
		if c.TxKernel == 0 || k.w.cnt.TxRingFull > 0 {
			t.Errorf("%+v, %+v", c, k.w.cnt)
		}
	}
}

// anyHdr is a virtio_net_hdr of random bytes.
func anyHdr(t *testing.T, rng *rand.Rand) (h virtio.NetHdr) {
	t.Helper()
	var raw [virtio.HdrSize]byte
	binary.LittleEndian.PutUint64(raw[:], rng.Uint64())
	binary.LittleEndian.PutUint32(raw[8:], rng.Uint32())
	if err := h.Decode(raw[:]); err != nil {
		t.Fatal(err)
	}
	return h
}
