package e2e

import (
	"net"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

const macA = "52:54:00:00:00:0a"

func mac(t *testing.T, s string) net.HardwareAddr {
	t.Helper()
	m, err := net.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Real TCP from the wire into a guest arrives whole and merged, over both families, and goes back.
func TestTCPArrivesMergedAndWhole(t *testing.T) {
	for _, c := range []struct {
		name          string
		queues, pairs int
	}{{"one queue", 1, 1}, {"two queues", 2, 1}, {"two queues, two pairs", 2, 2}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, netnstest.Options{Queues: c.queues})
			sock := r.attach("vm0", macA)
			g := r.boot(stackguest.Config{Socket: sock, MAC: mac(t, macA), Pairs: c.pairs}, "10.77.0.10/24", "fd77::10/64")
			for _, v6 := range []bool{false, true} {
				before := g.Stats()
				netnstest.Bulk(t, r.net.A, g.side, 16<<20, v6, 3*time.Minute)
				after := g.Stats()
				if segs := float64(after.Segments-before.Segments) / float64(after.DataFrames-before.DataFrames); segs < 2 {
					t.Errorf("IPv6 %t: %.1f segments a frame: nothing was merged", v6, segs)
				}
				netnstest.Bulk(t, g.side, r.net.A, 8<<20, v6, 3*time.Minute)
			}
			if s := g.Stats(); s.Violations+s.TapRefused+s.TapErrors != 0 {
				t.Errorf("headers against the rules: %+v", s)
			}
			var st api.Stats
			r.json(&st, "stats")
			explain(t, st)
		})
	}
}

// Every packet is explained: in = superframes + passed + dropped + held.
func explain(t *testing.T, st api.Stats) {
	t.Helper()
	for _, v := range st.VMs {
		sum := v.MergedPackets + v.Held
		for _, m := range []map[string]uint64{v.Passed, v.Dropped} {
			for _, n := range m {
				sum += n
			}
		}
		if len(v.QEMU) != 29 || v.Virtio["rx_gso_packets_coalesced"] < v.MergedPackets {
			t.Errorf("VM %s: under other names: %v, %v", v.VM, v.QEMU, v.Virtio)
		}
		if sum != v.RxPackets || v.RxPackets == 0 {
			t.Errorf("VM %s: %d packets in, %d explained: %+v", v.VM, v.RxPackets, sum, v)
		}
	}
}

// A guest that keeps small buffers gets superframes within its fragment budget, still merged and whole.
func TestSmallBuffersBoundASuperframe(t *testing.T) {
	const bufferLen = 1536
	r := newRig(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA), BufferLen: bufferLen}, "10.77.0.10/24")
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute) // the first frames show what the buffers are like
	before := g.Stats()
	netnstest.Bulk(t, r.net.A, g.side, 16<<20, false, time.Minute)
	s := g.Stats()
	if s.Largest > vhost.LinuxBuffers*bufferLen || s.Violations > 0 {
		t.Errorf("largest frame of %d bytes: %s", s.Largest, s.First)
	}
	if mean := float64(s.RxBytes-before.RxBytes) / float64(s.RxFrames-before.RxFrames); mean < 3000 {
		t.Errorf("mean frame of %.0f bytes", mean)
	}
}
