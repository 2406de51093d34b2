package netdev_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"

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

// A VM that is off keeps no frames from anybody: its port is idle, and forwards again with the VM.
func TestATapWhoseVMIsOffIsNoFilter(t *testing.T) {
	b := unfiltered(t)
	b.do(t, func() error {
		if err := unix.IoctlSetInt(b.fd, unix.TUNSETPERSIST, 1); err != nil {
			return err
		}
		if err := unix.Close(b.fd); err != nil {
			return err
		}
		for end := time.Now().Add(netnstest.Patience(10 * time.Second)); ; time.Sleep(10 * time.Millisecond) {
			ports, err := netdev.FindPorts(b.up, 0, b.tap)
			if err != nil {
				return err
			}
			if !ports.Tap.Forwarding {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the port of a tap that nobody has open still forwards")
			}
		}
		wantSaid(t, b.bypassed(t))
		return nil
	})
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

func dummyTC(t *testing.T) *ebpf.Program { return namedTC(t, "somebodys") }

func namedTC(t *testing.T, name string) *ebpf.Program {
	t.Helper()
	netnstest.Need(t, netnstest.BPF)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "GPL",
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

// Our own program that only counts is nothing that a frame could miss; a filter beside it is.
func TestTheObserverIsNoUserOfTC(t *testing.T) {
	prog := namedTC(t, netdev.ObserverName)
	b := unfiltered(t)
	b.do(t, func() error {
		if l, err := link.AttachTCX(link.TCXOptions{Interface: index(t, "tap0"), Program: prog, Attach: ebpf.AttachTCXEgress}); err == nil {
			defer l.Close()
		} else if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
		qdisc := netlink.QdiscAttrs{LinkIndex: index(t, "tap0"), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: qdisc}); err != nil {
			return err
		}
		add := func(name string, handle uint32) error {
			return netlink.FilterAdd(&netlink.BpfFilter{Fd: prog.FD(), Name: name, DirectAction: true, FilterAttrs: netlink.FilterAttrs{
				LinkIndex: qdisc.LinkIndex, Parent: netlink.HANDLE_MIN_EGRESS, Handle: handle, Protocol: unix.ETH_P_ALL, Priority: 7}})
		}
		if err := add(netdev.ObserverName+"+clsact", 1); err != nil {
			return err
		}
		wantSaid(t, b.bypassed(t))
		if err := add("", 3); err != nil { // one without a name is somebody's too
			return err
		}
		wantSaid(t, b.bypassed(t), "egress of tap0", "preference 7")
		if err := add("somebodys", 2); err != nil {
			return err
		}
		wantSaid(t, b.bypassed(t), "egress of tap0", "somebodys")
		return nil
	})
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
						netnstest.SkipToVM(t, "br_netfilter: "+err.Error())
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
			netnstest.SkipToVM(t, "br_netfilter: "+err.Error())
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

// Without a bridge between them there is no path to bypass, which is the one thing to say: a VM that was taken out of its
// network has none of its frames.
func TestWithoutABridgeOnlyTheInterfacesCount(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		nft{family: 7, hook: 2, rules: 1}.add(t)
		got, err := netdev.Bypassed(b.up, b.tap, nil)
		if err != nil {
			return err
		}
		wantSaid(t, got, "tap0", "not in a bridge with up0")
		for _, gone := range [][2]int{{1 << 20, b.tap}, {b.up, 1 << 20}} {
			if got, err := netdev.Bypassed(gone[0], gone[1], nil); !errors.Is(err, netdev.ErrNoDevice) {
				t.Errorf("%q, %v", got, err)
			}
		}
		return nil
	})
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
					netnstest.SkipToVM(t, "br_netfilter: "+err.Error())
				}
				wantSaid(t, b.bypassed(t))
				legacyRule(t, c.rule)
				wantSaid(t, b.bypassed(t), c.words...)
				return nil
			})
		})
	}
}

// Where the kernel does not tell a program's name, as to the service, the number tells that it is ours.
func TestAProgramOfOursIsKnownByItsNumber(t *testing.T) {
	prog := dummyTC(t)
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	b := unfiltered(t)
	b.do(t, func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: index(t, "up0"), Program: prog, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, ebpf.ErrNotSupported) {
			netnstest.Skip(t, "TCX (Linux 6.6)")
		}
		if err != nil {
			return err
		}
		defer l.Close()
		wantSaid(t, b.bypassed(t), "ingress of up0", "somebodys")
		p, err := netdev.FindPorts(b.up, 0, b.tap)
		if err != nil {
			return err
		}
		r := netdev.NewRuleReader()
		r.Ours = func() []uint32 { return []uint32{uint32(id)} }
		rules, err := r.Read()
		if err != nil {
			return err
		}
		return netdev.With(func(h *netdev.Handle) error {
			got, err := rules.Bypassed(h, b.up, b.tap, p)
			wantSaid(t, got)
			return err
		})
	})
}
