package datapath

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

const benchFrames = 32 // that the guest keeps in its virtqueue

// BenchmarkGuestToWire is a guest's bulk transfer on its way out: TSO frames of 45 segments in guest memory, 18 pieces each, through the real
// virtqueue, the worker, and a real socket on a veth whose other end throws them away. What counts is cpu-s/GB, the thread's user and
// system time, softirqs on its way included: the host's cost. The driver's side of the virtqueue is in it, too, some 1 % of it.
//
//	way    af_xdp: cut and summed here, AF_XDP in copy mode. kernel: the packet socket. plain: no VM, no worker, the same
//	       frames from the same memory by the same socket: the floor
//	tso    what the interface takes: on, frames whole; off, the kernel cuts and sums
//	qdisc  by the queueing discipline, or past it
//
// Run them in turn, and compare within a turn: for i in 1 2 3 4 5 6; do go test -run XXX -bench GuestToWire ./controller/datapath; done
func BenchmarkGuestToWire(b *testing.B) {
	for _, c := range []struct {
		way         string
		tso, direct bool
	}{{"af_xdp", true, false}, {"plain", true, true}, {"kernel", true, true}, {"plain", true, false}, {"kernel", true, false}, {"plain", false, false}, {"kernel", false, false}} {
		b.Run(fmt.Sprintf("way=%s/tso=%v/qdisc=%v", c.way, c.tso, !c.direct), func(b *testing.B) {
			n := netnstest.Pair(b, netnstest.Options{KeepTSO: true, KeepTxChecksum: true, NoIPv4: true, NoIPv6: true, MACB: net.HardwareAddr{2, 1, 1, 1, 1, 1}})
			var sock *xsk.Socket
			var up *tap.Uplink
			n.A.Do(b, func() (err error) {
				if sock, err = xsk.Open(xsk.Config{Ifindex: n.A.Index, Chunks: xsk.QueueChunks, ChunkSize: 2048, RxSize: 2048, TxSize: 1024, FillSize: 2048, CompSize: 1024, NeedWakeup: true}); err == nil {
					up, err = tap.OpenUplink(n.A.Index)
				}
				return err
			})
			b.Cleanup(func() { _, _ = up.Close(), sock.Close() })
			if !c.tso {
				n.A.SetOffload(b, "tso", false)
				n.A.SetOffload(b, "tx", false)
			}
			if err := up.SetDirect(c.direct); err != nil {
				b.Fatal(err)
			}
			g := newBulkGuest(b, wire, 1024, benchFrames)
			if c.way == "plain" {
				g.measure(b, func() int { return g.plain(up) })
				return
			}
			cfg := Config{MTU: 1500, WakeFD: -1, Chunks: xsk.QueueChunks, Slots: 64, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), NIC: sock, Trouble: func() {}}
			if c.way == "kernel" {
				cfg.Wire = up
			}
			w, err := New(cfg)
			if err == nil {
				err = w.addPort(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}})
			}
			if err == nil {
				err = w.startPort(1, NewUserGuest(g.port.RX(0), sock, w.Wake), []Source{g.port.TX(0)}, rules())
			}
			if err != nil {
				b.Fatal(err)
			}
			p := w.ports[1]
			g.measure(b, func() int {
				before := p.cnt.TxFrames
				w.step()
				return int(p.cnt.TxFrames - before)
			})
			if w.cnt.TxRingFull > 0 || p.cnt.TxWire != 45*p.cnt.TxFrames {
				b.Errorf("%+v, %+v", w.cnt, p.cnt)
			}
		})
	}
}

// bulkGuest keeps its TX virtqueue full of TSO frames.
type bulkGuest struct {
	*userVM
	frames [][]vring.Buffer
	mem    [][][]byte
	size   int
	next   int // of them, for plain
}

func newBulkGuest(b *testing.B, dst [6]byte, ring, frames int) *bulkGuest {
	g := &bulkGuest{userVM: newUserVM(b, allFeatures, ring, 64<<20, func(c *vhost.Config) { c.TxHead = HeadRoom })}
	p := from(1, dst, 45*1448)
	p.Partial = true
	frame := p.Frame()
	g.size = len(frame)
	h := kernelCuts(virtio.GSOTCPv4, 1448)
	for range frames {
		raw := make([]byte, virtio.HdrSize)
		h.Encode(raw)
		raw = append(raw, frame...)
		var list []vring.Buffer
		var mem [][]byte
		for n := virtio.HdrSize + 66; len(raw) > 0; n = 4096 { // a driver's: headers in one piece, payload in pages
			n = min(n, len(raw))
			gpa, at, err := g.Alloc(n, 64)
			if err != nil {
				b.Fatal(err)
			}
			copy(at, raw[:n])
			raw = raw[n:]
			list, mem = append(list, vring.Buffer{Addr: gpa, Len: uint32(n)}), append(mem, at)
		}
		g.frames, g.mem = append(g.frames, list), append(g.mem, mem)
	}
	post(b, g.TX(0).Driver, g.frames)
	return g
}

// again posts what the device is done with.
func (g *bulkGuest) again() { postAgain(g.TX(0).Driver, g.frames) }

// post shows buffers to the device, each list under its number.
func post(b *testing.B, d *vring.Driver, lists [][]vring.Buffer) {
	for i := range lists {
		if err := d.Add(lists[i], uint64(i)); err != nil {
			b.Fatal(err)
		}
	}
	d.Publish()
}

// postAgain is post for those that the device is done with.
func postAgain(d *vring.Driver, lists [][]vring.Buffer) {
	for {
		i, _, ok := d.Used()
		if !ok {
			break
		}
		_ = d.Add(lists[i], i)
	}
	d.Publish()
}

// plain sends eight frames with one call.
func (g *bulkGuest) plain(up *tap.Uplink) int {
	h := kernelCuts(virtio.GSOTCPv4, 1448)
	h.HdrLen = 66
	for range 8 {
		at := g.mem[g.next%benchFrames]
		g.next++
		f := virtio.Frame{Hdr: h, Frags: append([][]byte{at[0][virtio.HdrSize:]}, at[1:]...), Len: g.size}
		up.Add(&f)
	}
	n, _ := up.Send()
	return n
}

// measure runs step until b.N frames have left.
func (g *bulkGuest) measure(b *testing.B, step func() int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range 50 {
		step()
		g.again()
	}
	before := threadCPU(b)
	b.ResetTimer()
	sent := 0
	for sent < b.N {
		sent += step()
		g.again()
	}
	b.StopTimer()
	b.SetBytes(45 * 1448)
	b.ReportMetric((threadCPU(b)-before)/(float64(sent)*45*1448/1e9), "cpu-s/GB")
}

// threadCPU is the calling thread's processor time in seconds.
func threadCPU(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
