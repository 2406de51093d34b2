package peer

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/rscctl/rscctl/test/vm/control"
)

// IANA protocol numbers, as icmp.ParseMessage wants them.
const (
	protoICMP   = 1
	protoICMPv6 = 58
)

// Ping sends ICMP echo requests, IPv4 or IPv6 by the address, and compares every byte of the answers. It needs
// CAP_NET_RAW. Size counts the payload, as ping(8) does: 1472 bytes fill an IPv4 packet of 1500.
func Ping(p control.Probe) (*control.ProbeResult, error) {
	to, err := netip.ParseAddr(p.To)
	if err != nil {
		return nil, fmt.Errorf("ping: %w", err)
	}
	network, proto := "ip4:icmp", protoICMP
	var request, answer icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if to.Is6() {
		network, proto = "ip6:ipv6-icmp", protoICMPv6
		request, answer = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := icmp.ListenPacket(network, "")
	if err != nil {
		return nil, fmt.Errorf("ping: %w", err)
	}
	defer c.Close()
	id := os.Getpid() & 0xffff
	buf := make([]byte, 64<<10)
	dst := &net.IPAddr{IP: net.IP(to.AsSlice())}
	return probe(p, func(i int, payload []byte, deadline time.Time) error {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
		m := icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: i & 0xffff, Data: payload}}
		b, err := m.Marshal(nil) // ICMPv6: the kernel fills in the checksum
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b, dst); err != nil {
			return err
		}
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return err
			}
			// A raw socket sees everybody's messages; what does not parse is not our answer.
			got, err := icmp.ParseMessage(proto, buf[:n])
			if err != nil || got.Type != answer {
				continue
			}
			echo, ok := got.Body.(*icmp.Echo)
			if ok && echo.ID == id && echo.Seq == i&0xffff && bytes.Equal(echo.Data, payload) {
				return nil
			}
		}
	})
}
