package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
)

// Trains of datagrams (UDP_SEGMENT) cross both ways, whole and in order.
func TestDatagramTrainsCrossBetweenTheHostAndAVM(t *testing.T) {
	const datagrams = 4000
	r, g := hostRig(t, netnstest.Options{NoIPv6: true})
	netnstest.Bulk(t, g.side, r.net.B, 1<<10, false, time.Minute) // neighbours know each other
	for _, c := range []struct{ from, to *netnstest.Side }{{r.net.B, g.side}, {g.side, r.net.B}} {
		passDatagrams(t, c.from, c.to, stream{datagrams: datagrams}, nil)
	}
	if s := r.statsOf("vm1"); s.ToHost < datagrams || s.FromHost < datagrams {
		t.Errorf("%d packets to the host, %d from it", s.ToHost, s.FromHost)
	}
}

// Tunnels whose ends are the host and a VM carry TCP both ways: their superframes, which no packet socket can describe, are cut in front of it.
func TestTunnelsBetweenTheHostAndAVM(t *testing.T) {
	r, g := hostRig(t, netnstest.Options{NoIPv6: true})
	netnstest.Bulk(t, g.side, r.net.B, 1<<10, false, time.Minute) // neighbours know each other
	for _, c := range []struct{ name, kind string }{{"VXLAN", "vxlan id 7 dstport 4789"}, {"GRE", "gretap"}} {
		t.Run(c.name, func(t *testing.T) {
			end := func(s, peer *netnstest.Side, address string) *netnstest.Side {
				out := *s
				out.Dev, out.IPv4 = "tunnel0", netip.MustParsePrefix(address)
				add := fmt.Sprintf("link add tunnel0 type %s local %s remote %s", c.kind, s.IPv4.Addr(), peer.IPv4.Addr())
				_ = s.NS.Do(func() error {
					said, err := exec.Command("ip", strings.Fields(add)...).CombinedOutput()
					switch {
					case bytes.Contains(said, []byte("Unknown device type")):
						t.Skipf("allowed: needs a device of type %s: the VM of test/hostvm has it", c.kind)
					case err != nil:
						t.Fatalf("ip %s: %s", add, said)
					}
					return nil
				})
				s.Output(t, "ip", "addr", "add", address, "dev", out.Dev)
				s.Output(t, "ip", "link", "set", out.Dev, "up")
				t.Cleanup(func() { s.Output(t, "ip", "link", "del", out.Dev) })
				return &out
			}
			host, vm := end(r.net.B, g.side, "10.78.0.1/24"), end(g.side, r.net.B, "10.78.0.2/24")
			netnstest.Bulk(t, host, vm, 16<<20, false, time.Minute)
			netnstest.Bulk(t, vm, host, 16<<20, false, time.Minute)
			if s := r.statsOf("vm1"); s.Dropped["malformed"]+s.TxDropped["malformed"] > 0 {
				t.Errorf("refused: %v, %v", s.Dropped, s.TxDropped)
			}
		})
	}
}
