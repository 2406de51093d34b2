package e2e

import (
	"bytes"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

const spoofMark = "spoofed by a tenant"

func marked(f netnstest.Frame) bool { return bytes.Contains(f.Data, []byte(spoofMark)) }

// spoofs are frames by which a VM claims to be another station, each with a mark behind what a receiver reads, by the reason they are
// refused for.
func spoofs(src net.HardwareAddr) map[string][]byte {
	all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	v4 := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	cat := func(parts ...[]byte) []byte { return append(slices.Concat(parts...), spoofMark...) }
	ip6 := func(from string, next byte, body []byte) []byte {
		return slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(body)), next, 255}, v4(from), v4("ff02::1"), body)
	}
	return map[string][]byte{
		"source_ip":     netnstest.Ethernet(all, src, 0x0800, cat([]byte{0x45, 0, 0, 39, 0, 1, 0, 0, 64, 253, 0, 0}, v4("10.77.0.1"), v4("10.77.0.11"))),
		"source_arp":    netnstest.Ethernet(all, src, 0x0806, cat([]byte{0, 1, 8, 0, 6, 4, 0, 2}, src, v4("10.77.0.1"), src, v4("10.77.0.11"))),
		"source_nd":     netnstest.Ethernet(all, src, 0x86dd, cat(ip6("fd00::10", 58, slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, v4("fd00::1"), []byte{2, 1}, src)))),
		"router_advert": netnstest.Ethernet(all, src, 0x86dd, cat(ip6("fd00::10", 58, append([]byte{134, 0, 0, 0, 64, 0, 7, 8}, make([]byte, 8)...)))),
		"dhcp_server":   netnstest.Ethernet(all, src, 0x0800, cat([]byte{0x45, 0, 0, 47, 0, 1, 0, 0, 64, 17, 0, 0}, v4("10.77.0.10"), v4("255.255.255.255"), []byte{0, 67, 0, 68, 0, 27, 0, 0})),
		"ethertype":     netnstest.Ethernet(all, src, 0x888e, cat()),
	}
}

// A tenant that claims to be everybody reaches nobody, is counted, and is served on; what he is kept to changes while he runs, and
// stays across a hand-over and a restart.
func TestATenantIsKeptToWhatIsHis(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	dev := r.net.B.Dev
	socket := r.attach("a", macA, "--ip", "10.77.0.10,fd00::10")
	a := r.boot(stackguest.Config{Socket: socket, MAC: mac(t, macA)}, "10.77.0.10/24")
	b := r.boot(stackguest.Config{Socket: r.attach("b", macB), MAC: mac(t, macB)}, "10.77.0.11/24")
	cb, wire := b.side.Capture(t), r.net.A.Capture(t)
	all := spoofs(mac(t, macA))
	for _, f := range all {
		a.side.Inject(t, f)
	}
	for reason := range all {
		r.eventually(reason+" is counted", func() error { return r.counted("a", reason) })
	}
	silent(t, wire, "a spoof on the wire", marked)
	silent(t, cb, "a spoof at a neighbour", marked)
	netnstest.Bulk(t, a.side, r.net.A, 1<<20, false, time.Minute)
	netnstest.Bulk(t, b.side, a.side, 1<<20, false, time.Minute)
	if out := r.must("why", "a"); !strings.Contains(out, "--ip") {
		t.Errorf("why says nothing of addresses: %s", out)
	}

	// His rate: what he sends waits, and all of it comes.
	r.must("policy", "set", "a", "--rate-tx", "200Mbit/64KiB", "--rate-rx", "300Mbit/64KiB")
	for _, c := range []struct {
		from, to *netnstest.Side
		rate     float64
	}{{a.side, r.net.A, 200e6}, {a.side, b.side, 200e6}, {r.net.A, a.side, 300e6}, {b.side, a.side, 300e6}} {
		const bytes, burst = 2 << 20, 64<<10 + 64<<10 // a frame may be larger than what is left of it
		least := time.Duration((bytes - burst) * 8 / c.rate * 1e9)
		if took := netnstest.Bulk(t, c.from, c.to, bytes, false, time.Minute).Elapsed; took < least {
			t.Errorf("%d bytes at %.0f bit/s took %v, and cannot in less than %v", bytes, c.rate, took, least)
		}
	}
	var st api.Stats
	if r.json(&st, "stats", "--vm", "a"); st.VMs[0].TxPaced == 0 {
		t.Error("2 MiB at 200 Mbit a second never waited")
	}
	r.must("policy", "set", "a", "--rate-tx", "none", "--rate-rx", "none")

	// His neighbours.
	r.must("policy", "set", "a", "--ip", "none", "--isolate")
	a.side.Inject(t, probe(mac(t, macB), mac(t, macA), "to a neighbour"))
	r.eventually("it is counted", func() error { return r.counted("a", "isolated") })
	silent(t, cb, "an isolated VM reached its neighbour", has("to a neighbour"))
	r.must("policy", "set", "a", "--isolate", "off")
	a.side.Inject(t, probe(mac(t, macB), mac(t, macA), "again"))
	cb.Until(5*time.Second, has("again"))

	// A second address, which is nobody else's; the controller changes and ends in between.
	r.says(1, []string{"taken", "b"}, "policy", "set", "a", "--mac", macB)
	r.must("policy", "set", "a", "--mac", macC, "--ip", "10.77.0.10", "--rate-rx", "1Gbit")
	r.says(1, []string{"taken", "a"}, "attach", dev, "--vm", "c", "--mac", macC, "--vhost-user", filepath.Join(r.dir, "c.sock"))
	second := func(when string) {
		t.Helper()
		ca := a.side.Capture(t)
		r.eventually("a frame for the second address, "+when, func() error {
			r.net.A.Inject(t, probe(mac(t, macC), r.net.A.MAC, when))
			for _, f := range ca.Drain(100 * time.Millisecond) {
				if has(when)(f) {
					return nil
				}
			}
			return errNotYet
		})
		var p api.PolicyResponse
		if r.json(&p, "policy", "get", "a"); !slices.Equal(p.MACs, []string{macC}) || !slices.Equal(p.IPs, []string{"10.77.0.10"}) || p.Policy.RateRx != 1_000_000_000 {
			t.Errorf("%s: %+v", when, p)
		}
	}
	second("at once")
	r.replace()
	second("after a hand-over")
	r.kill()
	r.start()
	a = r.boot(stackguest.Config{Socket: socket, MAC: mac(t, macA)}, "10.77.0.10/24")
	second("after a crash")
	r.must("policy", "set", "a", "--mac", "none")
	ca := a.side.Capture(t)
	r.net.A.Inject(t, probe(mac(t, macC), r.net.A.MAC, "no more"))
	silent(t, ca, "a frame for an address that was taken off", has("no more"))
}

// What sends by the kernel's path is not silently left without what was asked for.
func TestATapIsToldWhoKeepsATenant(t *testing.T) {
	r, _ := oneTapVM(t, netnstest.Options{NoIPv6: true})
	for flags, says := range map[string]string{"--ip 10.0.0.5": "clean-traffic", "--rate-tx 1Gbit": "tc qdisc", "--rate-rx 1Gbit": "bandwidth", "--isolate": "bridge link", "--mac 52:54:00:00:00:77": "kernel's path"} {
		r.says(2, []string{says}, append([]string{"policy", "set", "vm0"}, strings.Fields(flags)...)...)
	}
}
