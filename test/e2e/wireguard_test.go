package e2e

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Of include/uapi/linux/wireguard.h.
const (
	wgSetDevice  = 1
	wgIfname     = 2
	wgPrivateKey = 3
	wgListenPort = 6
	wgPeers      = 8

	wgPeerPublicKey  = 1
	wgPeerEndpoint   = 4
	wgPeerAllowedIPs = 9

	wgAllowedFamily = 1
	wgAllowedAddr   = 2
	wgAllowedMask   = 3

	wgPort = 51820
)

// wireGuard is one end of a tunnel in a side's namespace, which is a side of its own.
func wireGuard(t *testing.T, outer *netnstest.Side, key *ecdh.PrivateKey, addr netip.Prefix, peer *ecdh.PublicKey, peerOuter, peerInner netip.Addr) *netnstest.Side {
	t.Helper()
	err := outer.NS.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wg0"}}); err != nil {
			return err
		}
		family, err := netlink.GenlFamilyGet("wireguard")
		if err != nil {
			return err
		}
		req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
		req.AddData(&nl.Genlmsg{Command: wgSetDevice, Version: 1})
		req.AddData(nl.NewRtAttr(wgIfname, nl.ZeroTerminated("wg0")))
		req.AddData(nl.NewRtAttr(wgPrivateKey, key.Bytes()))
		req.AddData(nl.NewRtAttr(wgListenPort, nl.Uint16Attr(wgPort)))
		peers := nl.NewRtAttr(wgPeers|unix.NLA_F_NESTED, nil)
		p := peers.AddRtAttr(unix.NLA_F_NESTED, nil)
		p.AddRtAttr(wgPeerPublicKey, peer.Bytes())
		endpoint := binary.NativeEndian.AppendUint16(nil, unix.AF_INET)
		endpoint = append(binary.BigEndian.AppendUint16(endpoint, wgPort), peerOuter.AsSlice()...)
		p.AddRtAttr(wgPeerEndpoint, append(endpoint, make([]byte, 8)...))
		allowed := p.AddRtAttr(wgPeerAllowedIPs|unix.NLA_F_NESTED, nil).AddRtAttr(unix.NLA_F_NESTED, nil)
		allowed.AddRtAttr(wgAllowedFamily, nl.Uint16Attr(unix.AF_INET))
		allowed.AddRtAttr(wgAllowedAddr, peerInner.AsSlice())
		allowed.AddRtAttr(wgAllowedMask, nl.Uint8Attr(32))
		req.AddData(peers)
		if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil {
			return err
		}
		l, err := netlink.LinkByName("wg0")
		if err != nil {
			return err
		}
		ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}
		return errors.Join(netlink.AddrAdd(l, &netlink.Addr{IPNet: ip}), netlink.LinkSetUp(l))
	})
	if err != nil {
		t.Fatalf("wireguard: %v", err)
	}
	return &netnstest.Side{NS: outer.NS, Dev: "wg0", IPv4: addr}
}

// A tunnel of WireGuard's that ends in a guest takes superframes of its datagrams: what goes through is whole, in both directions.
func TestWireGuardInAGuestTakesMergedDatagrams(t *testing.T) {
	netnstest.Need(t)
	if err := netnstest.WireGuard.Check(); err != nil {
		t.Skipf("allowed: needs %s: %v. The VM of test/hostvm runs it with Linux 6.2 or newer (docs/testing.md)", netnstest.WireGuard.Name, err)
	}
	r := newRig(t, netnstest.Options{NoIPv6: true})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	if !g.Features().Has(virtio.FGuestUSO4) {
		t.Skip("allowed: this kernel's tap takes no UDP superframes (before Linux 6.2): the guests are shown them where it does")
	}
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	ours, guests := netip.MustParsePrefix("10.99.0.1/24"), netip.MustParsePrefix("10.99.0.10/24")
	out := wireGuard(t, r.net.A, keys[0], ours, keys[1].PublicKey(), g.side.IPv4.Addr(), guests.Addr())
	in := wireGuard(t, g.side, keys[1], guests, keys[0].PublicKey(), r.net.A.IPv4.Addr(), ours.Addr())
	bytes, rounds := int64(64<<20), 3
	if netnstest.Emulated() {
		bytes, rounds = 8<<20, 2
	}
	netnstest.Bulk(t, out, in, 1<<10, false, 3*time.Minute) // the handshake
	stats := func() (all api.Stats) {
		r.json(&all, "stats")
		return all
	}
	var ratio []float64 // of bytes a second, merged to not merged
	for range rounds {
		var took [2]time.Duration
		for i, udp := range []string{"off", "on"} {
			r.must("policy", "set", "vm0", "--udp", udp)
			before := stats()
			took[i] = netnstest.Bulk(t, out, in, bytes, false, 5*time.Minute).Elapsed
			after := stats()
			super, merged := after.VMs[0].Superframes-before.VMs[0].Superframes, after.VMs[0].MergedPackets-before.VMs[0].MergedPackets
			t.Logf("--udp %s: %d packets in %d superframes, %v", udp, merged, super, took[i])
			switch {
			case udp == "off" && super > 0:
				t.Errorf("%d superframes with --udp off", super)
			case udp == "on" && merged < uint64(bytes/1500/4):
				t.Errorf("%d packets merged of %d and more", merged, bytes/1500)
			}
			if after.Unexplained != 0 {
				t.Errorf("%d packets are unexplained", after.Unexplained)
			}
		}
		ratio = append(ratio, took[0].Seconds()/took[1].Seconds())
	}
	slices.Sort(ratio)
	t.Logf("merged: %.2f (%.2f to %.2f) times the rate", ratio[len(ratio)/2], ratio[0], ratio[len(ratio)-1])
	netnstest.Bulk(t, in, out, bytes/4, false, 5*time.Minute)
}
