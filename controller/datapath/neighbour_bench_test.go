package datapath

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/vring"
)

// BenchmarkGuestToGuest is a VM's bulk transfer to a VM beside it: TSO frames of 45 segments, through two real virtqueues and the worker.
//
//	way   whole: handed over as superframes. cut: as packets, which are merged again, which is what happens without the other way
//
// What counts is the ratio of the two in one run: of B/s, and of cpu-s/GB, the worker's processor time. The drivers' sides of both virtqueues
// are in both; nobody looks at what arrives. go test -run XXX -bench GuestToGuest -count 6 ./controller/datapath, as root
func BenchmarkGuestToGuest(b *testing.B) {
	for _, hold := range []bool{false, true} {
		for _, way := range []string{"whole", "cut"} {
			b.Run(fmt.Sprintf("hold=%v/way=%s", hold, way), func(b *testing.B) {
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
				w.cutAll = way == "cut"
				r := rules(func(c *flowtable.PortConfig) {
					if hold {
						c.Hold, c.Adaptive = 10e6, true
					}
				})
				from, to := newBulkGuest(b, macOf(2)), newSinkGuest(b)
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
				p, q := w.ports[1], w.ports[2]
				from.measure(b, func() int {
					before := p.cnt.TxFrames
					w.step()
					to.again()
					return int(p.cnt.TxFrames - before)
				})
				l := q.ledger
				if n := l.Dropped; n != [flowtable.NumReasons]uint64{} || p.cnt.TxWire != 45*p.cnt.TxFrames || way == "whole" && p.cnt.TxWhole != p.cnt.TxFrames {
					b.Errorf("dropped %v, %+v", n, p.cnt)
				}
				b.ReportMetric(float64(l.Merged)/float64(l.Superframes), "segments/frame")
			})
		}
	}
}

// sinkGuest keeps its RX virtqueue full of buffers of a page, and looks at no frame.
type sinkGuest struct {
	*userVM
	bufs []vring.Buffer
}

func newSinkGuest(b *testing.B) *sinkGuest {
	g := &sinkGuest{userVM: newUserVM(b, allFeatures, 1024, 16<<20, func(c *vhost.Config) { c.MaxBuffers = vhost.LinuxBuffers })}
	for range 1024 {
		gpa, _, err := g.Alloc(4096, 64)
		if err != nil {
			b.Fatal(err)
		}
		g.bufs = append(g.bufs, vring.Buffer{Addr: gpa, Len: 4096, Writable: true})
	}
	for i := range g.bufs {
		if err := g.RX(0).Driver.Add(g.bufs[i:i+1], uint64(i)); err != nil {
			b.Fatal(err)
		}
	}
	g.RX(0).Driver.Publish()
	return g
}

// again posts what the device is done with.
func (g *sinkGuest) again() {
	for {
		i, _, ok := g.RX(0).Driver.Used()
		if !ok {
			break
		}
		_ = g.RX(0).Driver.Add(g.bufs[i:i+1], i)
	}
	g.RX(0).Driver.Publish()
}
