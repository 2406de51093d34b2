package e2e

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

var (
	all   = net.HardwareAddr{255, 255, 255, 255, 255, 255}
	pause = net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 1}
	lldp  = net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}
)

// withTPID is a frame with a tag of another EtherType.
func withTPID(frame []byte, tpid, tci uint16) []byte {
	f := netnstest.Tag(frame, tci)
	binary.BigEndian.PutUint16(f[12:], tpid)
	return f
}

// holds matches a frame that has a text anywhere, whatever stands in front of it.
func holds(text string) func(netnstest.Frame) bool {
	return func(f netnstest.Frame) bool { return bytes.Contains(f.Data, []byte(text)) }
}

// droppedAt is nil once frames for a VM were dropped for a reason.
func (r *rig) droppedAt(vm, reason string) error {
	var st api.Stats
	r.json(&st, "stats", "--vm", vm)
	if st.VMs[0].Dropped[reason] == 0 {
		return errNotYet
	}
	return nil
}

// What Linux' bridge does not forward, and what an access port of a switch refuses, does not pass us either, in both directions.
func TestWhatABridgeWouldNotForwardDoesNotPass(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv4: true, NoIPv6: true})
	a := r.boot(stackguest.Config{Socket: r.attach("a", macA), MAC: mac(t, macA)})
	b := r.boot(stackguest.Config{Socket: r.attach("b", macB), MAC: mac(t, macB)})
	ca, cb, wire := a.side.Capture(t), b.side.Capture(t), r.net.A.Capture(t)
	src, mine := r.net.A.MAC, mac(t, macA)
	bad := holds("bad")

	a.side.Inject(t,
		probe(pause, mine, "bad pause"), probe(lldp, mine, "bad LLDP"), probe(mine, mine, "bad hairpin"),
		withTPID(probe(all, mine, "bad QinQ"), 0x9100, 7), netnstest.Tag(netnstest.Tag(probe(all, mine, "bad hidden"), 7), 0),
		netnstest.Tag(probe(all, mine, "priority"), 5<<13))
	if f := wire.Until(5*time.Second, holds("priority")); !f.Tagged || f.TCI != 5<<13 {
		t.Errorf("a priority tag on the wire: %+v", f)
	}
	if f := cb.Until(5*time.Second, holds("priority")); f.Tagged || len(f.Data) < 60 {
		t.Errorf("a priority tag at the neighbour: %+v", f)
	}
	for _, reason := range []string{"control_frame", "hairpin", "vlan_foreign"} {
		r.eventually("the guest's frames are counted as "+reason, func() error { return r.counted("a", reason) })
	}

	r.net.A.Inject(t,
		probe(lldp, src, "bad LLDP"), netnstest.Tag(netnstest.Tag(probe(all, src, "bad hidden"), 7), 0),
		withTPID(probe(all, src, "bad QinQ"), 0x9100, 7), withTPID(probe(mine, src, "bad QinQ"), 0x9100, 7),
		probe(all, mine, "bad reflection"))
	for _, reason := range []string{"control_frame", "hairpin", "vlan_foreign"} {
		r.eventually("the wire's frames are counted as "+reason, func() error { return r.droppedAt("a", reason) })
	}
	r.net.A.Inject(t, probe(all, src, "to all"))
	for _, f := range ca.Drain(300 * time.Millisecond) {
		if bad(f) {
			t.Errorf("at the VM: %x", f.Data)
		}
	}
	for _, f := range cb.Drain(100 * time.Millisecond) {
		if bad(f) && !holds("bad reflection")(f) { // for b that is an ordinary broadcast
			t.Errorf("at the neighbour: %x", f.Data)
		}
	}
	silent(t, wire, "on the wire", bad)
}
