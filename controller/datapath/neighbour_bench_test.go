package datapath

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/vring"
)

// BenchmarkGuestToGuest is a VM's bulk transfer to a VM beside it: TSO frames of 45 segments, through two real virtqueues and the worker, in
// turn handed over whole and, as if there were no such way, cut and merged again. What counts are the ratios of the two in one run: of rates,
// and of the worker's processor time for each byte. The drivers' sides of both virtqueues are in the rates; nobody looks at what arrives.
//
//	ring  of both virtqueues. 256 is QEMU's default; what 1,024 buffers of a page and as many frames take is more than the caches near a core
//	      have, and then the one copy waits for memory
//
// go test -run XXX -bench GuestToGuest -count 6 ./controller/datapath, as root
func BenchmarkGuestToGuest(b *testing.B) {
	for _, ring := range []int{256, 1024} {
		b.Run(fmt.Sprintf("ring=%d", ring), func(b *testing.B) {
			n := netnstest.Pair(b, netnstest.Options{NoIPv4: true, NoIPv6: true, MACB: net.HardwareAddr{2, 1, 1, 1, 1, 1}})
			var sock *xsk.Socket
			n.A.Do(b, func() (err error) {
				sock, err = xsk.Open(xsk.Config{Ifindex: n.A.Index, Chunks: xsk.QueueChunks, ChunkSize: 2048, RxSize: 2048, TxSize: 1024, FillSize: 2048, CompSize: 1024, NeedWakeup: true})
				return err
			})
			b.Cleanup(func() { _ = sock.Close() })
			w, err := New(Config{MTU: 1500, WakeFD: -1, Chunks: xsk.QueueChunks, Slots: 64, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), NIC: sock, Trouble: func() {}})
			if err != nil {
				b.Fatal(err)
			}
			r := rules(func(c *flowtable.PortConfig) { c.Hold, c.Adaptive = 10*time.Millisecond, true })
			from, to := newBulkGuest(b, macOf(2), ring, ring/20), newSinkGuest(b, ring)
			for i, v := range []*userVM{from.userVM, to.userVM} {
				index := uint32(i + 1)
				err := w.addPort(PortConfig{Index: index, Addr: Addr{MAC: macOf(index)}})
				if err == nil {
					err = w.startPort(index, NewUserGuest(v.port.RX(0), sock, w.Wake), []Source{v.port.TX(0)}, r)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			p := w.ports[1]
			var whole, cut share
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			step := func(s *share) {
				before, began, at := p.cnt.TxFrames, time.Now(), threadNS(b)
				w.step()
				s.cpu += threadNS(b) - at
				s.frames += int(p.cnt.TxFrames - before)
				to.again()
				from.again()
				s.took += time.Since(began)
			}
			for range 200 {
				step(&share{})
			}
			b.ResetTimer()
			for i := 0; whole.frames+cut.frames < 2*b.N; i++ {
				if w.cutAll = i/64%2 == 1; w.cutAll {
					step(&cut)
				} else {
					step(&whole)
				}
			}
			b.StopTimer()
			l := w.ports[2].ledger
			if l.Dropped != [flowtable.NumReasons]uint64{} || p.cnt.TxWire != 45*p.cnt.TxFrames || int(p.cnt.TxWhole) < whole.frames {
				b.Errorf("dropped %v, %+v", l.Dropped, p.cnt)
			}
			b.ReportMetric(0, "ns/op") // of both ways together
			b.ReportMetric(whole.cpuPerGB(), "whole-cpu-s/GB")
			b.ReportMetric(cut.cpuPerGB(), "cut-cpu-s/GB")
			b.ReportMetric(cut.cpuPerGB()/whole.cpuPerGB(), "cpu-cut/whole")
			b.ReportMetric(whole.rate()/cut.rate(), "rate-whole/cut")
			b.ReportMetric(whole.rate()*45*1448/1e6, "whole-MB/s")
			b.ReportMetric(cut.rate()*45*1448/1e6, "cut-MB/s")
			b.ReportMetric(float64(l.Merged)/float64(l.Superframes), "segments/frame")
		})
	}
}

// share is what one way has had of a run.
type share struct {
	cpu    int64 // ns of the worker's
	took   time.Duration
	frames int
}

func (s *share) cpuPerGB() float64 { return float64(s.cpu) / (float64(s.frames) * 45 * 1448) }
func (s *share) rate() float64     { return float64(s.frames) / s.took.Seconds() }

// threadNS is the calling thread's processor time, read for 0.2 us of it.
func threadNS(b *testing.B) int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return t.Nano()
}

// sinkGuest keeps its RX virtqueue full of buffers of a page, and looks at no frame.
type sinkGuest struct {
	*userVM
	bufs [][]vring.Buffer
}

func newSinkGuest(b *testing.B, ring int) *sinkGuest {
	g := &sinkGuest{userVM: newUserVM(b, allFeatures, ring, 16<<20, func(c *vhost.Config) { c.MaxBuffers = vhost.LinuxBuffers })}
	for range ring {
		gpa, _, err := g.Alloc(4096, 64)
		if err != nil {
			b.Fatal(err)
		}
		g.bufs = append(g.bufs, []vring.Buffer{{Addr: gpa, Len: 4096, Writable: true}})
	}
	post(b, g.RX(0).Driver, g.bufs)
	return g
}

// again posts what the device is done with.
func (g *sinkGuest) again() { postAgain(g.RX(0).Driver, g.bufs) }
