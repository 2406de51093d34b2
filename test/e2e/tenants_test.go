package e2e

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

const (
	macB = "52:54:00:00:00:0b"
	macC = "52:54:00:00:00:0c"
)

// probe is a frame of a private EtherType, so that no stack answers it. text tells probes apart.
func probe(dst, src net.HardwareAddr, text string) []byte {
	return netnstest.Ethernet(dst, src, 0x88b5, []byte(text)) // IEEE 802 local experimental
}

func has(text string) func(netnstest.Frame) bool {
	return func(f netnstest.Frame) bool {
		return len(f.Data) > 14 && binary.BigEndian.Uint16(f.Data[12:]) == 0x88b5 && strings.HasPrefix(string(f.Data[14:]), text)
	}
}

// silent fails the test when a matching frame comes within the time.
func silent(t *testing.T, c *netnstest.Capture, what string, match func(netnstest.Frame) bool) {
	t.Helper()
	for _, f := range c.Drain(300 * time.Millisecond) {
		if match(f) {
			t.Errorf("%s: %x", what, f.Data)
		}
	}
}

// both waits for two probes in either order: group frames reach a VM by a socket of their own, beside AF_XDP.
func both(c *netnstest.Capture, a, b string) {
	first := c.Until(5*time.Second, func(f netnstest.Frame) bool { return has(a)(f) || has(b)(f) })
	if has(a)(first) {
		a = b
	}
	c.Until(5*time.Second, has(a))
}

func TestFramesGoWhereTheirAddressSays(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	a := r.boot(stackguest.Config{Socket: r.attach("a", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	b := r.boot(stackguest.Config{Socket: r.attach("b", macB), MAC: mac(t, macB)}, "10.77.0.11/24")
	ca, cb, host, wire := a.side.Capture(t), b.side.Capture(t), r.net.B.Capture(t), r.net.A.Capture(t)
	src := r.net.A.MAC
	bcast := net.HardwareAddr{255, 255, 255, 255, 255, 255}

	r.net.A.Inject(t, probe(mac(t, macA), src, "just a"), probe(r.net.B.MAC, src, "to host"), probe(bcast, src, "to all"))
	both(ca, "just a", "to all")
	cb.Until(5*time.Second, has("to all"))
	host.Until(5*time.Second, has("to host"))
	host.Until(5*time.Second, has("to all"))
	silent(t, cb, "b got a's frame", has("just a"))

	// From VM to VM of the same uplink: locally, and not on the wire.
	a.side.Inject(t, probe(mac(t, macB), mac(t, macA), "a to b"))
	cb.Until(5*time.Second, has("a to b"))
	silent(t, wire, "a local frame is on the wire", has("a to b"))

	// A group address from a VM: to the wire and to the other VM.
	a.side.Inject(t, probe(bcast, mac(t, macA), "a to all"))
	cb.Until(5*time.Second, has("a to all"))
	wire.Until(5*time.Second, has("a to all"))

	// A foreign source address is dropped and counted.
	a.side.Inject(t, probe(src, mac(t, macC), "spoofed"))
	silent(t, wire, "a spoofed frame is on the wire", has("spoofed"))
	r.eventually("the spoofed frame is counted", func() error { return r.counted("a", "source_mac") })

	// TCP between the VMs, with TSO in the sender.
	netnstest.Bulk(t, a.side, b.side, 4<<20, false, 3*time.Minute)
}

// counted is nil once a VM's counter of that TX drop reason has moved.
func (r *rig) counted(vm, reason string) error {
	var st api.Stats
	r.json(&st, "stats", "--vm", vm)
	if st.VMs[0].TxDropped[reason] == 0 {
		return errNotYet
	}
	return nil
}

func TestAccessPortsKeepVLANsApart(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	plain := r.boot(stackguest.Config{Socket: r.attach("plain", macA), MAC: mac(t, macA)})
	access := r.boot(stackguest.Config{Socket: r.attach("access", macA, "--vlan", "7"), MAC: mac(t, macA)})
	cp, ca, wire := plain.side.Capture(t), access.side.Capture(t), r.net.A.Capture(t)
	src := r.net.A.MAC
	r.net.A.Inject(t, probe(mac(t, macA), src, "untagged"), netnstest.Tag(probe(mac(t, macA), src, "seven"), 7), netnstest.Tag(probe(mac(t, macA), src, "eight"), 8))
	if f := ca.Until(5*time.Second, has("seven")); f.Tagged {
		t.Error("the access port's guest sees the tag")
	}
	cp.Until(5*time.Second, has("untagged"))
	silent(t, cp, "a tagged frame in the untagged VM", func(f netnstest.Frame) bool { return has("seven")(f) || has("eight")(f) })
	silent(t, ca, "a foreign frame in VLAN 7", func(f netnstest.Frame) bool { return has("untagged")(f) || has("eight")(f) })

	access.side.Inject(t, probe(src, mac(t, macA), "out of seven"))
	if f := wire.Until(5*time.Second, has("out of seven")); !f.Tagged || f.TCI&0xfff != 7 {
		t.Errorf("an access port's frame on the wire: %+v", f)
	}
	plain.side.Inject(t, netnstest.Tag(probe(src, mac(t, macA), "forged tag"), 7))
	silent(t, wire, "a guest's own tag is on the wire", has("forged tag"))
	r.eventually("the forged tag is counted", func() error { return r.counted("plain", "vlan_foreign") })
}

// A tag that travels beside the frame, where XDP does not see it in the bytes, never enters an untagged VM.
func TestAcceleratedTagNeverCrosses(t *testing.T) {
	r := newRig(t, netnstest.Options{KeepTxVLAN: true})
	out, code := r.cli("attach", r.net.B.Dev, "--vm", "plain", "--mac", macA, "--vhost-user", r.dir+"/plain.sock")
	if code != 0 { // refusing is the other safe answer
		if !strings.Contains(out, "VLAN") {
			t.Errorf("exit %d: %s", code, out)
		}
		r.untouched(t)
		return
	}
	g := r.boot(stackguest.Config{Socket: r.dir + "/plain.sock", MAC: mac(t, macA)})
	c := g.side.Capture(t)
	stop := r.net.A.PushVLAN(t, 7)
	r.net.A.Inject(t, probe(mac(t, macA), r.net.A.MAC, "tagged beside"))
	silent(t, c, "an accelerated tag crossed", has("tagged beside"))
	stop()
	r.net.A.Inject(t, probe(mac(t, macA), r.net.A.MAC, "untagged"))
	c.Until(5*time.Second, has("untagged"))
}
