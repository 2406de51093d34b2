package netdev_test

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/netdev"
	netnstest "github.com/rscctl/rscctl/test/netns"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// bypassed returns the sentences about the way from up0 to tap0.
func (b *bridged) bypassed(t *testing.T) []string {
	t.Helper()
	p, err := netdev.FindPorts(b.up, 0, b.tap)
	if err != nil {
		t.Fatal(err)
	}
	out, err := netdev.Bypassed(b.up, b.tap, p)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// wantSaid wants one sentence with all these words in it, or none without words.
func wantSaid(t *testing.T, got []string, words ...string) {
	t.Helper()
	if len(words) == 0 && len(got) == 0 {
		return
	}
	if len(words) == 0 || len(got) != 1 {
		t.Errorf("said %q, want %q", got, words)
		return
	}
	for _, w := range words {
		if !strings.Contains(got[0], w) {
			t.Errorf("said %q, want %q in it", got[0], w)
		}
	}
}

// unfiltered is a bridge that forwards and whose path nobody filters.
func unfiltered(t *testing.T) *bridged {
	t.Helper()
	b := makeBridged(t, nil)
	b.do(t, func() error {
		b.forwarding(t)
		wantSaid(t, b.bypassed(t))
		return nil
	})
	return b
}

func TestSettingsOfABridgeThatKeepFramesAreSaid(t *testing.T) {
	for _, c := range []struct {
		name  string
		set   func(up, tap netlink.Link) error
		words []string
	}{
		{"isolated uplink", func(up, tap netlink.Link) error { return netlink.LinkSetIsolated(up, true) }, nil},
		{"isolated tap", func(up, tap netlink.Link) error { return netlink.LinkSetIsolated(tap, true) }, nil},
		{"both isolated", func(up, tap netlink.Link) error {
			return errors.Join(netlink.LinkSetIsolated(up, true), netlink.LinkSetIsolated(tap, true))
		}, []string{"up0", "tap0", "isolated"}},
		{"uplink not forwarding", func(up, tap netlink.Link) error { return netlink.LinkSetDown(up) }, []string{"up0", "not forwarding"}},
		{"tap not forwarding", func(up, tap netlink.Link) error { return netlink.LinkSetDown(tap) }, []string{"tap0", "not forwarding"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := unfiltered(t)
			b.do(t, func() error {
				up, err := netlink.LinkByName("up0")
				if err != nil {
					return err
				}
				tap, err := netlink.LinkByName("tap0")
				if err != nil {
					return err
				}
				if err := c.set(up, tap); err != nil {
					return err
				}
				wantSaid(t, b.bypassed(t), c.words...)
				return nil
			})
		})
	}
}

func TestVLANFiltersThatKeepFramesAreSaid(t *testing.T) {
	base := netdev.BridgePorts{Bridge: "br0", VLANFiltering: true, VID: 1,
		Port: netdev.BridgePort{Name: "up0", Forwarding: true, Member: true, Untagged: true},
		Tap:  netdev.BridgePort{Name: "tap0", Forwarding: true, Member: true, Untagged: true}}
	b := makeBridged(t, nil)
	for _, c := range []struct {
		name  string
		set   func(p *netdev.BridgePorts)
		words []string
	}{
		{"nothing", func(p *netdev.BridgePorts) {}, nil},
		{"no PVID", func(p *netdev.BridgePorts) { p.VID = 0; p.Port.Member, p.Tap.Member = false, false }, []string{"up0", "PVID"}},
		{"uplink not a member", func(p *netdev.BridgePorts) { p.Port.Member = false }, []string{"up0", "VLAN 1"}},
		{"tap not a member", func(p *netdev.BridgePorts) { p.Tap.Member = false }, []string{"tap0", "VLAN 1"}},
		{"tap gets the tag", func(p *netdev.BridgePorts) { p.Tap.Untagged = false }, []string{"tap0", "tag"}},
		{"the filter is off", func(p *netdev.BridgePorts) { p.VLANFiltering = false; p.VID = 0 }, nil},
		{"locked", func(p *netdev.BridgePorts) { p.Port.Locked = true }, []string{"up0", "locked"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := base
			p.Port.Index = b.up
			c.set(&p)
			b.do(t, func() error {
				got, err := netdev.Bypassed(b.up, b.tap, &p)
				wantSaid(t, got, c.words...)
				return err
			})
		})
	}
}

func dummyTC(t *testing.T) *ebpf.Program {
	t.Helper()
	netnstest.Need(t, netnstest.BPF)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "somebodys", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestTCUsersOnTheWayAreSaid(t *testing.T) {
	prog := dummyTC(t)
	for _, c := range []struct {
		dev    string
		egress bool
		words  []string
	}{
		{"up0", false, []string{"ingress of up0", "somebodys"}},
		{"up0", true, nil},
		{"tap0", true, []string{"egress of tap0", "somebodys"}},
		{"tap0", false, nil},
		{"third0", false, nil},
	} {
		name := c.dev + " ingress"
		parent, attach := uint32(netlink.HANDLE_MIN_INGRESS), ebpf.AttachTCXIngress
		if c.egress {
			name, parent, attach = c.dev+" egress", netlink.HANDLE_MIN_EGRESS, ebpf.AttachTCXEgress
		}
		t.Run("filter/"+name, func(t *testing.T) {
			b := unfiltered(t)
			b.do(t, func() error {
				qdisc := netlink.QdiscAttrs{LinkIndex: index(t, c.dev), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
				if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: qdisc}); err != nil {
					return err
				}
				wantSaid(t, b.bypassed(t)) // a qdisc alone does nothing
				f := &netlink.BpfFilter{Fd: prog.FD(), Name: "somebodys", DirectAction: true, FilterAttrs: netlink.FilterAttrs{
					LinkIndex: qdisc.LinkIndex, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 7}}
				if err := netlink.FilterAdd(f); err != nil {
					return err
				}
				want := c.words
				if want != nil {
					want = append(slices.Clone(want), "preference 7")
				}
				wantSaid(t, b.bypassed(t), want...)
				return nil
			})
		})
		t.Run("tcx/"+name, func(t *testing.T) {
			b := unfiltered(t)
			b.do(t, func() error {
				l, err := link.AttachTCX(link.TCXOptions{Interface: index(t, c.dev), Program: prog, Attach: attach})
				if errors.Is(err, ebpf.ErrNotSupported) {
					netnstest.Skip(t, "TCX (Linux 6.6)")
				}
				if err != nil {
					return err
				}
				defer l.Close()
				wantSaid(t, b.bypassed(t), c.words...)
				return nil
			})
		})
	}
}

// nft makes a table with one base chain in the calling thread's namespace, with one rule that matches everything and does
// nothing, or none. dev is for chains of one interface.
type nft struct {
	family byte
	hook   uint32
	dev    string
	rules  int
	drop   bool
	flags  uint32 // of the table
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func (n nft) add(t *testing.T) {
	t.Helper()
	const (
		newTable, newChain, newRule = 0, 3, 6
		begin, end                  = 0x10, 0x11 // NFNL_MSG_BATCH_BEGIN, _END
	)
	text := nl.ZeroTerminated
	msg := func(kind, flags int, family byte, res uint16, attrs ...*nl.RtAttr) []byte {
		r := nl.NewNetlinkRequest(kind, flags)
		r.AddData(&nl.Nfgenmsg{NfgenFamily: family, ResId: res})
		for _, a := range attrs {
			r.AddData(a)
		}
		return r.Serialize()
	}
	make := func(what, flags int, attrs ...*nl.RtAttr) []byte {
		return msg(unix.NFNL_SUBSYS_NFTABLES<<8|what, flags|unix.NLM_F_CREATE|unix.NLM_F_ACK, n.family, 0, attrs...)
	}
	subsys := nl.Swap16(unix.NFNL_SUBSYS_NFTABLES)
	hook := nl.NewRtAttr(4|unix.NLA_F_NESTED, nil)
	hook.AddRtAttr(1, be32(n.hook))
	hook.AddRtAttr(2, be32(0))
	chain := []*nl.RtAttr{nl.NewRtAttr(1, text("sometable")), nl.NewRtAttr(3, text("somechain")), hook, nl.NewRtAttr(7, text("filter"))}
	if n.dev != "" {
		hook.AddRtAttr(3, text(n.dev))
	}
	if n.drop {
		chain = append(chain, nl.NewRtAttr(5, be32(0)))
	}
	batch := slices.Concat(msg(begin, 0, 0, subsys),
		make(newTable, 0, nl.NewRtAttr(1, text("sometable")), nl.NewRtAttr(2, be32(n.flags))),
		make(newChain, 0, chain...))
	for range n.rules {
		batch = append(batch, make(newRule, unix.NLM_F_APPEND, nl.NewRtAttr(1, text("sometable")), nl.NewRtAttr(2, text("somechain")))...)
	}
	batch = append(batch, msg(end, 0, 0, subsys)...)
	acks := 2 + n.rules

	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		netnstest.Skip(t, "netfilter over netlink: "+err.Error())
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	buf := [1 << 16]byte{}
	for acks > 0 {
		got, _, err := unix.Recvfrom(fd, buf[:], 0)
		if err != nil {
			t.Fatal(err)
		}
		for b := buf[:got]; len(b) >= 20; b = b[(binary.NativeEndian.Uint32(b)+3)&^3:] {
			acks--
			if errno := -int32(binary.NativeEndian.Uint32(b[16:])); errno != 0 {
				if errno == int32(unix.EOPNOTSUPP) || errno == int32(unix.EINVAL) && acks == 1+n.rules {
					netnstest.Skip(t, "nf_tables with this family and hook: "+unix.Errno(errno).Error())
				}
				t.Fatalf("nf_tables: %v", unix.Errno(errno))
			}
		}
	}
}

func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/bridge/"+name, []byte(value), 0)
}

func TestNftablesOnTheWayAreSaid(t *testing.T) {
	const inet, ip, arp, netdevFamily, bridge, ip6 = 1, 2, 3, 5, 7, 10
	for _, c := range []struct {
		name  string
		set   nft
		calls string // bridge-nf-call-...: which are on
		words []string
	}{
		{"bridge forward", nft{family: bridge, hook: 2, rules: 1}, "", []string{"somechain", "bridge sometable", "br0"}},
		{"bridge prerouting", nft{family: bridge, hook: 0, rules: 2}, "", []string{"somechain"}},
		{"bridge postrouting by policy", nft{family: bridge, hook: 4, drop: true}, "", []string{"somechain"}},
		{"bridge without rules", nft{family: bridge, hook: 2}, "", nil},
		{"bridge input, not on the way", nft{family: bridge, hook: 1, rules: 1}, "", nil},
		{"bridge dormant", nft{family: bridge, hook: 2, rules: 1, flags: 1}, "", nil},
		{"ingress of the uplink", nft{family: netdevFamily, hook: 0, dev: "up0", rules: 1}, "", []string{"netdev sometable", "up0"}},
		{"ingress of another", nft{family: netdevFamily, hook: 0, dev: "third0", rules: 1}, "", nil},
		{"ingress of the tap", nft{family: netdevFamily, hook: 0, dev: "tap0", rules: 1}, "", nil},
		{"egress of the tap", nft{family: netdevFamily, hook: 1, dev: "tap0", rules: 1}, "", []string{"netdev sometable"}},
		{"egress of the uplink", nft{family: netdevFamily, hook: 1, dev: "up0", rules: 1}, "", nil},
		{"inet ingress", nft{family: inet, hook: 5, dev: "up0", rules: 1}, "", []string{"inet sometable", "up0"}},
		{"ip forward, not called", nft{family: ip, hook: 2, rules: 1}, "", nil},
		{"ip forward, called", nft{family: ip, hook: 2, rules: 1}, "ip", []string{"ip sometable", "bridge-nf-call"}},
		{"ip forward, ip6 called", nft{family: ip, hook: 2, rules: 1}, "ip6", nil},
		{"ip6 forward, called", nft{family: ip6, hook: 2, rules: 1}, "ip6", []string{"ip6 sometable"}},
		{"inet forward, ip6 called", nft{family: inet, hook: 2, rules: 1}, "ip6", []string{"inet sometable"}},
		{"ip input, called", nft{family: ip, hook: 1, rules: 1}, "ip", nil},
		{"arp, called", nft{family: arp, hook: 0, rules: 1}, "ip", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := makeBridged(t, nil)
			b.do(t, func() error {
				b.forwarding(t)
				for _, f := range []string{"ip", "ip6"} {
					value := "0"
					if f == c.calls {
						value = "1"
					}
					if err := sysctl("bridge-nf-call-"+f+"tables", value); err != nil && value == "1" {
						netnstest.Skip(t, "br_netfilter: "+err.Error())
					}
				}
				wantSaid(t, b.bypassed(t))
				c.set.add(t)
				wantSaid(t, b.bypassed(t), c.words...)
				return nil
			})
		})
	}
}

func TestABridgesOwnSettingCallsNetfilterToo(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		b.forwarding(t)
		if err := errors.Join(sysctl("bridge-nf-call-iptables", "0"), sysctl("bridge-nf-call-ip6tables", "0")); err != nil {
			netnstest.Skip(t, "br_netfilter: "+err.Error())
		}
		nft{family: 2, hook: 2, rules: 1}.add(t)
		wantSaid(t, b.bypassed(t))
		set := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(b.br.Index)
		set.AddData(msg)
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
		info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, []byte{1})
		set.AddData(info)
		if _, err := set.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return err
		}
		wantSaid(t, b.bypassed(t), "ip sometable")
		return nil
	})
}

func TestWithoutABridgeOnlyTheInterfacesCount(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		nft{family: 7, hook: 2, rules: 1}.add(t)
		if got, err := netdev.Bypassed(b.up, b.tap, nil); err != nil || len(got) != 0 {
			t.Errorf("%q, %v", got, err)
		}
		for _, gone := range [][2]int{{1 << 20, b.tap}, {b.up, 1 << 20}} {
			if got, err := netdev.Bypassed(gone[0], gone[1], nil); !errors.Is(err, netdev.ErrNoDevice) {
				t.Errorf("%q, %v", got, err)
			}
		}
		return nil
	})
}

// legacyRule writes the table filter of iptables as its tool would: empty chains INPUT, FORWARD and OUTPUT that accept,
// with or without one rule in FORWARD (linux/netfilter_ipv4/ip_tables.h).
func legacyRule(t *testing.T, rule bool) {
	t.Helper()
	const standard, final = 112 + 40, 112 + 64
	entry := func(size int, name string) []byte {
		e := make([]byte, size)
		binary.NativeEndian.PutUint16(e[88:], 112) // target_offset
		binary.NativeEndian.PutUint16(e[90:], uint16(size))
		binary.NativeEndian.PutUint16(e[112:], uint16(size-112))
		copy(e[114:], name)
		if size == standard {
			binary.NativeEndian.PutUint32(e[144:], 0xfffffffe) // -NF_ACCEPT - 1
		} else {
			copy(e[144:], name)
		}
		return e
	}
	accept, extra := entry(standard, ""), uint32(0)
	entries := slices.Clone(accept)
	if rule {
		entries, extra = append(entries, accept...), standard
	}
	entries = slices.Concat(entries, accept, accept, entry(final, "ERROR"))
	r := make([]byte, 96)
	copy(r, "filter")
	for at, v := range map[int]uint32{
		32: 1<<1 | 1<<2 | 1<<3, 36: 4 + extra/standard, 40: uint32(len(entries)),
		44 + 2*4: standard, 44 + 3*4: 2*standard + extra, // where the chains begin
		64 + 2*4: standard + extra, 64 + 3*4: 2*standard + extra, // and their policies are
		84: 4, // entries before
	} {
		binary.NativeEndian.PutUint32(r[at:], v)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const replace = 64 // IPT_SO_SET_REPLACE
	if err := unix.SetsockoptString(fd, unix.SOL_IP, replace, string(append(r, entries...))); err != nil {
		netnstest.Skip(t, "legacy iptables: "+err.Error())
	}
}

func TestLegacyIPTablesOnTheWayAreSaid(t *testing.T) {
	for _, c := range []struct {
		name, calls string
		rule        bool
		words       []string
	}{
		{"no rule", "1", false, nil},
		{"a rule", "1", true, []string{"iptables", "table filter", "br0"}},
		{"a rule, not called", "0", true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := makeBridged(t, nil)
			b.do(t, func() error {
				b.forwarding(t)
				if err := errors.Join(sysctl("bridge-nf-call-iptables", c.calls), sysctl("bridge-nf-call-ip6tables", "1")); err != nil {
					netnstest.Skip(t, "br_netfilter: "+err.Error())
				}
				wantSaid(t, b.bypassed(t))
				legacyRule(t, c.rule)
				wantSaid(t, b.bypassed(t), c.words...)
				return nil
			})
		})
	}
}
