package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// A guest's TSO frames leave whole; while they do the uplink's TSO is switched off and on, and the controller replaced. Every byte
// arrives, and status and counters say which way they went.
func TestAGuestsTransferLeavesWhole(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("vm1", macA), MAC: mac(t, macA)}, "10.77.0.10/24", "fd77::10/64")
	sent := func() api.VMStats {
		var st api.Stats
		r.json(&st, "stats", "--vm", "vm1")
		return st.VMs[0]
	}
	netnstest.Bulk(t, g.side, r.net.A, 16<<20, true, time.Minute)
	s := sent()
	least := uint64(4) // packets a frame
	if netnstest.Emulated() {
		least = 1 // frames are as large as the slow sender makes them
	}
	if s.TxKernel == 0 || s.TxWireFrames <= least*s.TxKernel {
		t.Fatalf("%d packets in %d frames, %d of them by the kernel", s.TxWireFrames, s.TxFrames, s.TxKernel)
	}
	var st api.Status
	r.json(&st, "status")
	if p := st.Interfaces[0].Ports[0]; p.Tx != api.TxKernel && !netnstest.Emulated() { // where the look comes too late
		t.Errorf("sends by %q", p.Tx)
	}

	bytes := int64(192 << 20) // long enough for all that happens meanwhile
	if netnstest.Emulated() {
		bytes = 24 << 20
	}
	ctx, cancel := context.WithTimeout(t.Context(), netnstest.Patience(time.Minute))
	defer cancel()
	sink := r.net.A.Sink(t, netip.AddrPortFrom(r.net.A.IPv4.Addr(), 0))
	type result struct {
		sum [32]byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		sum, err := g.side.Send(ctx, sink.Addr, bytes)
		done <- result{sum, err}
	}()
	for i := range 6 {
		time.Sleep(100 * time.Millisecond)
		r.net.B.SetOffload(t, "tso", i%2 == 1)
		if i == 2 {
			r.replace()
		}
	}
	sum, n, err := sink.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if out := <-done; out.err != nil || n != bytes || sum != out.sum {
		t.Fatalf("%d of %d bytes, %v", n, bytes, out.err)
	}
	r.eventually("the ledger", func() error {
		var all api.Stats
		r.json(&all, "stats")
		if v := all.VMs[0]; all.Unexplained != 0 || v.TxKernel <= s.TxKernel || len(v.TxDropped) != 0 {
			return fmt.Errorf("unexplained %d, %d by the kernel, dropped %v", all.Unexplained, v.TxKernel, v.TxDropped)
		}
		return nil
	})
	// What comes singly, later, goes the way of single packets.
	before := sent()
	time.Sleep(20 * time.Millisecond)
	netnstest.Bulk(t, r.net.A, g.side, 4<<20, false, time.Minute)
	if after := sent(); after.TxFrames-before.TxFrames < 2*(after.TxKernel-before.TxKernel) {
		t.Errorf("of %d frames %d left by the kernel, for a guest that receives", after.TxFrames-before.TxFrames, after.TxKernel-before.TxKernel)
	}
}
