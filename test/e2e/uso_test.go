package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// streamLen is how many datagrams a stream has that shows something.
func streamLen() uint64 {
	if netnstest.Emulated() {
		return 25 * trainLen
	}
	return 100 * trainLen
}

// stream is what passDatagrams sends.
type stream struct {
	datagrams uint64
	v6        bool
	gro       int // 1: to a socket with UDP_GRO
}

// passDatagrams sends a stream from one side to another and wants every datagram of it, right and in order. It returns by how many calls they came.
func passDatagrams(t *testing.T, from, to *netnstest.Side, s stream, meanwhile func()) (calls uint64) {
	t.Helper()
	return newDatagramStream(t).pass(t, from, to, s, meanwhile)
}

func (d *datagramStream) pass(t *testing.T, from, to *netnstest.Side, s stream, meanwhile func()) (calls uint64) {
	t.Helper()
	in, addr := datagramsInto(t, to, s.v6, s.gro)
	defer unix.Close(in)
	out := trainsOf(t, from, s.v6)
	done := make(chan struct{})
	go func() { defer close(done); d.send(t, out, addr, s.datagrams) }()
	var beside sync.WaitGroup
	defer beside.Wait()
	if meanwhile != nil {
		beside.Go(meanwhile)
	}
	got, calls := d.receive(t, in, s.gro, s.datagrams)
	<-done
	if got != s.datagrams {
		t.Errorf("%d of %d datagrams came", got, s.datagrams)
	}
	return calls
}

// A guest's trains of datagrams (UDP_SEGMENT) leave whole, and arrive as the datagrams that they stand for, also while the interface loses and
// gets back what takes such frames, and the controller is replaced; a VM beside that takes superframes of UDP gets them whole, and one that does
// not gets datagrams.
func TestAGuestsDatagramTrainsLeaveWhole(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	a := r.boot(stackguest.Config{Socket: r.attach("vm1", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	if !a.Features().Has(virtio.FHostUSO) {
		t.Skip("allowed: this kernel's tap hands out no UDP superframes (before Linux 6.2): the guests are shown them where it does")
	}
	b := r.boot(stackguest.Config{Socket: r.attach("vm2", macB), MAC: mac(t, macB)}, "10.77.0.11/24")
	const macC = "52:54:00:00:00:0c"
	plain := stackguest.DefaultFeatures &^ virtio.Mask(virtio.FGuestUSO4, virtio.FGuestUSO6)
	c := r.boot(stackguest.Config{Socket: r.attach("vm3", macC), MAC: mac(t, macC), Features: plain}, "10.77.0.12/24")
	stats := func() (all api.Stats, byName map[string]api.VMStats) {
		r.json(&all, "stats")
		byName = map[string]api.VMStats{}
		for _, v := range all.VMs {
			byName[v.VM] = v
		}
		return all, byName
	}
	n := streamLen()
	for name, to := range map[string]*netnstest.Side{"the wire": r.net.A, "vm2": b.side, "vm3": c.side} {
		netnstest.Bulk(t, a.side, to, 1<<10, false, time.Minute) // neighbours know each other
		_, was := stats()
		passDatagrams(t, a.side, to, stream{datagrams: n}, nil)
		r.eventually(name, func() error {
			all, now := stats()
			frames, packets := now["vm1"].TxFrames-was["vm1"].TxFrames, now["vm1"].TxWireFrames-was["vm1"].TxWireFrames
			byKernel, whole := now["vm1"].TxKernel-was["vm1"].TxKernel, now["vm1"].TxWhole-was["vm1"].TxWhole
			merged := now[name].Sealed["gso_input"] - was[name].Sealed["gso_input"]
			switch {
			case all.Unexplained != 0 || len(now["vm1"].TxDropped) > 0:
				return fmt.Errorf("unexplained %d, dropped %v", all.Unexplained, now["vm1"].TxDropped)
			case packets < n || frames > packets/4:
				return fmt.Errorf("%d datagrams in %d frames", packets, frames)
			case name == "the wire" && byKernel < n/trainLen:
				return fmt.Errorf("%d frames by the kernel", byKernel)
			case name == "vm2" && (whole < n/trainLen || merged != whole):
				return fmt.Errorf("%d frames whole, %d arrived so", whole, merged)
			case name == "vm3" && whole+merged+now[name].Superframes-was[name].Superframes > 0:
				return fmt.Errorf("%d frames whole for a guest that takes none", whole)
			}
			return nil
		})
	}
	passDatagrams(t, a.side, r.net.A, stream{datagrams: 10 * n}, func() {
		for i := range 4 {
			time.Sleep(50 * time.Millisecond)
			r.net.B.SetOffload(t, "tx-udp-segmentation", i%2 == 1)
		}
	})
	r.replace()
	passDatagrams(t, a.side, r.net.A, stream{datagrams: n}, nil)
	if all, now := stats(); all.Unexplained != 0 || len(now["vm1"].TxDropped) > 0 {
		t.Errorf("unexplained %d, dropped %v", all.Unexplained, now["vm1"].TxDropped)
	}
	for _, g := range []*guest{a, b, c} {
		if err := g.Err(); err != nil {
			t.Error(err)
		}
	}
}
