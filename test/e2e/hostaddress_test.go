package e2e

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// An address that the host has on what is on top of the interface is no VM's: the host would get nothing any more.
func TestAnAddressOfTheHostIsNoVMs(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.bridge()
	const own = "02:00:00:00:00:55"
	r.net.B.Output(t, "ip", "link", "set", "br0", "address", own)
	r.says(2, []string{own, "br0's own"}, "attach", r.net.B.Dev, "--vm", "x", "--mac", own, "--vhost-user", r.dir+"/x.sock")
	r.says(2, []string{own, "br0's own"}, "attach", r.net.B.Dev, "--vm", "x", "--mac", macA, "--mac", own, "--vhost-user", r.dir+"/x.sock")
	r.untouched(t)
	r.attach("a", macA, "--mac", macC)
	r.says(2, []string{own, "br0's own"}, "policy", "set", "a", "--mac", own)
	r.says(2, []string{"veth0's own"}, "policy", "set", "a", "--mac", r.net.B.MAC.String())
	r.must("policy", "set", "a", "--mac", macC+","+macB)
	out := r.must("detach", r.net.B.Dev)
	for _, mac := range []string{macA, macB, macC} {
		if !strings.Contains(out, mac+" removed from") {
			t.Errorf("detach does not say that %s was taken out of the filter:\n%s", mac, out)
		}
	}
}

// The interface gets another address while a VM is attached: that is the host's from then on, and the one before is anybody's.
func TestTheHostsAddressChanges(t *testing.T) {
	r, g := hostRig(t, netnstest.Options{NoIPv6: true})
	was, now := r.net.B.MAC, net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
	r.net.B.Output(t, "ip", "link", "set", r.net.B.Dev, "address", now.String())
	r.eventually("it is followed", func() error {
		if !bytes.Contains([]byte(r.log.String()), []byte("another address")) {
			return errNotYet
		}
		return nil
	})
	host, wire := r.net.B.Capture(t), r.net.A.Capture(t)
	g.side.Inject(t, netnstest.Ethernet(now, g.side.MAC, onceType, []byte("to the host")), netnstest.Ethernet(was, g.side.MAC, onceType, []byte("to who has it")))
	says := func(text string) func(netnstest.Frame) bool {
		return func(f netnstest.Frame) bool { return bytes.Contains(f.Data, []byte(text)) }
	}
	host.Until(5*time.Second, says("to the host"))
	wire.Until(5*time.Second, says("to who has it"))
	silent(t, host, "the host got what is for another", says("to who has it"))
	silent(t, wire, "the wire got what is the host's", says("to the host"))
	g.side.Output(t, "ip", "neigh", "flush", "all")
	netnstest.Bulk(t, g.side, r.net.B, 1<<20, false, time.Minute)
	r.says(2, []string{"veth0's own"}, "attach", r.net.B.Dev, "--vm", "x", "--mac", now.String(), "--vhost-user", r.dir+"/x.sock")
	x := r.boot(stackguest.Config{Socket: r.attach("x", was.String()), MAC: was}, "10.77.0.51/24")
	netnstest.Bulk(t, g.side, x.side, 1<<20, false, time.Minute)
}
