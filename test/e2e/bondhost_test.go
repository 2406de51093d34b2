package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// A bond that is watched by ARP, and believes only what its driver has checked, keeps its members while VMs are attached, and fails over when the
// answers end though the link does not: the ARP of the host passes on all members.
func TestABondThatIsWatchedByARPFailsOver(t *testing.T) {
	r := bondRig(t, "active-backup", "type bridge", 1, 1)
	r.net.B.Output(t, "sh", "-ec", "ip link set bond0 type bond miimon 0; ip link set bond0 type bond arp_interval 400 arp_missed_max 5 arp_ip_target 10.77.0.1 arp_validate all primary eth0")
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA, "--mac", macC), MAC: mac(t, macA)}, "10.77.0.10/24")
	r.membersAre("eth0 active, eth1 backup")
	failures := func() []string {
		out := r.net.B.Output(t, "cat", "/proc/net/bonding/bond0")
		return slices.DeleteFunc(strings.Split(out, "\n"), func(s string) bool { return !strings.HasPrefix(s, "Link Failure Count") })
	}
	before := failures()
	time.Sleep(5 * time.Second) // without an answer for 2 s a link fails, which is long enough for an emulated machine's own pauses
	if after := failures(); len(before) != 2 || !slices.Equal(before, after) {
		t.Errorf("links failed while nothing was wrong: %q, then %q", before, after)
	}
	p1 := r.otherEnd(1).CaptureAll(t)
	r.net.A.Output(t, "sh", "-ec", "ip link set p0 nomaster; echo 8 >/proc/sys/net/ipv4/conf/p0/arp_ignore") // the port is in no switch, and does not answer itself
	r.membersAre("eth0 down, eth1 active")
	p1.Until(5*time.Second, isRARP(macC)) // each of its addresses is announced
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute)
	netnstest.Bulk(t, g.side, r.net.A, 1<<20, false, time.Minute)
	r.net.A.Output(t, "ip", "link", "set", "p0", "master", "lan")
	r.membersAre("eth0 active, eth1 backup")
	g.calm(t)
}

// A bond may be without a link while it fails over, and nobody hears what is sent then: where its VMs are is told when the link has come up.
func TestABondWhoseLinkComesUpAnnouncesItsVMs(t *testing.T) {
	r := bondRig(t, "active-backup", "type bridge", 1, 1)
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA, "--mac", macC), MAC: mac(t, macA)}, "10.77.0.10/24")
	r.membersAre("eth0 active, eth1 backup")
	r.net.B.Output(t, "ip", "link", "set", "bond0", "down")
	time.Sleep(4 * time.Second) // whatever was still to be announced has been
	p0 := r.otherEnd(0).CaptureAll(t)
	r.net.B.Output(t, "ip", "link", "set", "bond0", "up")
	p0.Until(10*time.Second, isRARP(macC))
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute)
	g.calm(t)
}

// The usual host: a bond in a bridge, which has the host's addresses and VMs on taps, attached and not, and a VM on vhost-user. Each reaches each, and
// does so after a fail-over.
func TestABondInABridgeJoinsItsVMsAndTheHost(t *testing.T) {
	r := bondRig(t, "active-backup", "type bridge", 1, 1)
	r.net.B.Output(t, "sh", "-ec", "ip link add br0 type bridge; ip link set br0 up; ip link set bond0 master br0; ip addr flush dev bond0; ip addr add 10.77.0.2/24 dev br0")
	host := *r.net.B
	host.Dev = "br0"
	attached := r.tapVM(tapvm.Options{Tap: "tapa", MAC: mac(t, macB), IPv4: netip.MustParsePrefix("10.77.0.11/24")})
	plain := r.tapVM(tapvm.Options{Tap: "tapb", MAC: mac(t, macC), IPv4: netip.MustParsePrefix("10.77.0.12/24")})
	r.attachTap("tapa", macB)
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	all := map[string]*netnstest.Side{"wire": r.net.A, "host": &host, "attached tap": attached.Guest, "plain tap": plain.Guest, "vhost-user": g.side}
	each := func() {
		t.Helper()
		for from, a := range all {
			for to, b := range all {
				if from != to {
					begin := time.Now()
					netnstest.Bulk(t, a, b, 64<<10, false, time.Minute)
					t.Log(from, "to", to, time.Since(begin).Round(time.Millisecond))
				}
			}
		}
	}
	r.membersAre("eth0 active, eth1 backup")
	each()
	r.pull(0, true)
	r.membersAre("eth0 down, eth1 active")
	each()
	for name, of := range map[string]uint64{"vm0": r.statsOf("vm0").ToHost, "tapa": r.statsOf("tapa").RxPackets} {
		if of == 0 {
			t.Error("nothing went through us: " + name)
		}
	}
	g.calm(t)
}

// What comes by a member of an 802.3ad bond that is in no active aggregator, its other end being somebody else's, is the bond's to drop.
func TestABondsMemberInAnotherAggregatorIsABackup(t *testing.T) {
	r := bondRig(t, "802.3ad lacp_rate fast", "type bond miimon 20 mode 802.3ad lacp_rate fast", 1, 1)
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	r.membersAre("eth0 active, eth1 active")
	r.net.A.Output(t, "sh", "-ec", `ip link add lan2 type bond miimon 20 mode 802.3ad lacp_rate fast
		ip link set p1 down; ip link set p1 nomaster; ip link set p1 master lan2; ip link set lan2 up; ip link set p1 up`)
	r.membersAre("eth0 active, eth1 backup")
	c := g.side.Capture(t)
	r.otherEnd(1).Inject(t, probe(mac(t, macA), r.net.A.MAC, "by the other"))
	silent(t, c, "a frame of another aggregator", has("by the other"))
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute)
	g.calm(t)
}
