package doctor

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
)

const allCaps = 1<<41 - 1

func native() *netdev.XDPFeatures { f := netdev.XDPFeatures(0x0b); return &f } // basic, redirect, zero-copy

// well is a host on which nothing is to be said, with a NIC and a veth.
func well() *Facts {
	return &Facts{
		Kernel: Kernel{Release: "6.12.9"}, Root: true, Caps: allCaps, Memlock: 8 << 20, BTF: true,
		Programs: Look{Seen: true}, AFXDP: Look{Seen: true}, BPFFS: "/sys/fs/bpf/rscctl", OnBPFFS: true, Tun: true, VhostNet: true, KVM: true,
		QEMU: Tool{"qemu-system-x86_64", Version{10, 0, 2}}, Libvirt: Tool{"virsh", Version{11, 3, 0}},
		CPUs: 4, Named: true, TapsLook: Look{Seen: true},
		Interfaces: []Interface{
			{
				Facts:    netdev.Facts{Name: "eth1", Index: 3, MTU: 1500, RxQueues: 4, MaxRxQueues: 4, TxQueues: 4, Driver: "ice", Up: true, Running: true},
				Features: native(), Offloads: []Offload{{Feature: netdev.LRO, Fixed: true}, {Feature: netdev.GROHW}, {Feature: netdev.RxVLAN}},
			},
			{
				Facts:    netdev.Facts{Name: "veth1", Index: 4, MTU: 1500, RxQueues: 1, MaxRxQueues: 1, TxQueues: 1, Driver: "veth", Kind: "veth", Up: true, Running: true},
				Features: native(), ReadsTag: Look{Seen: true},
				Peer: &Peer{Peer: netdev.Peer{Name: "veth0", Index: 9, NSPath: "/run/netns/web", Reachable: true}, TxVLAN: Offload{On: true}, TxQueues: 1},
			},
		},
	}
}

func eth(f *Facts) *Interface  { return &f.Interfaces[0] }
func veth(f *Facts) *Interface { return &f.Interfaces[1] }

func set(i *Interface, feature string, on, fixed bool) {
	for k := range i.Offloads {
		if i.Offloads[k].Feature == feature {
			i.Offloads[k].On, i.Offloads[k].Fixed = on, fixed
		}
	}
}

func kernelIs(release string) func(f *Facts) {
	return func(f *Facts) { f.Kernel = Kernel{Release: release} }
}

// Each finding comes when its cause is there, with its severity and a remedy that names what is to be done, and nothing else changes.
var causes = []struct {
	id       string
	severity Severity
	remedy   string
	fixable  bool
	cause    func(f *Facts)
}{
	{"privileges", Error, "CapabilityBoundingSet", false, func(f *Facts) { f.Caps &^= 1 << unix.CAP_NET_RAW }},
	{"privileges", Error, "--cap-add", false, func(f *Facts) { f.Caps &^= 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_PERFMON }},
	{"kernel.version", Error, "Linux 5.12 or newer", false, func(f *Facts) { f.Kernel.Release, f.Programs.Err = "5.10.0-30-amd64", "verifier" }},
	{"kernel.version", Warning, "Linux 5.12 or newer", false, kernelIs("4.18.0-553.el8_10.x86_64")},
	{"kernel.version", Note, "uname", false, kernelIs("mine")},
	{"kernel.uso", Note, "Linux 6.2 or newer", false, kernelIs("6.1.0-57-cloud-amd64")},
	{"kernel.superframes", Error, "6.1.111", false, kernelIs("6.1.103")},
	{"kernel.superframes", Error, "6.1.111", false, func(f *Facts) {
		f.Kernel = Kernel{Release: "6.1.0-25-amd64", Build: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.106-3 (2024-08-26)"}
	}},
	{"kernel.superframes", Error, "6.6.46", false, kernelIs("6.6.45-1-lts")},
	{"kernel.superframes", Error, "6.10.5", false, kernelIs("6.10.4-arch2-1")},
	{"kernel.udp_gso", Warning, "7.1.5", false, kernelIs("7.0.2-6-pve")},
	{"kernel.udp_gso", Warning, "tx-udp-segmentation off", false, func(f *Facts) {
		f.Kernel = Kernel{Release: "7.0.0-15-generic", Signature: "Ubuntu 7.0.0-15.15-generic 7.1.4"}
	}},
	{"bpf.programs", Error, "seccomp", false, func(f *Facts) { f.Programs.Err = "no permission" }},
	{"bpf.programs", Note, "sudo", false, func(f *Facts) { f.Programs = Look{Err: "you are not root"} }},
	{"kernel.btf", Warning, "CONFIG_DEBUG_INFO_BTF", false, func(f *Facts) { f.BTF = false }},
	{"kernel.af_xdp", Error, "CONFIG_XDP_SOCKETS", false, func(f *Facts) { f.AFXDP.Err = "address family not supported" }},
	{"limits.memlock", Error, "LimitMEMLOCK=infinity", false, func(f *Facts) { f.Caps &^= 1 << unix.CAP_IPC_LOCK }},
	{"bpffs", Warning, "mount -t bpf bpf /sys/fs/bpf", false, func(f *Facts) { f.OnBPFFS = false }},
	{"dev.tun", Note, "modprobe tun", false, func(f *Facts) { f.Tun = false }},
	{"dev.vhost_net", Note, "modprobe vhost_net", false, func(f *Facts) { f.VhostNet = false }},
	{"dev.kvm", Note, "modprobe kvm", false, func(f *Facts) { f.KVM = false }},
	{"qemu.msix", Note, "vectors=0", false, func(f *Facts) { f.QEMU.Version = Version{7, 2, 22} }},
	{"tap.leftover", Warning, "rscctl doctor --fix", true, func(f *Facts) { f.Taps = []Leftover{{"vnet3", 12, true}} }},
	{"tap.leftover", Warning, "outside the container", false, func(f *Facts) { f.Taps = []Leftover{{"vnet3", 12, false}} }},
	{"tap.leftover", Note, "sudo", false, func(f *Facts) { f.TapsLook = Look{Err: "you are not root"} }},
	{"iface.uplink", Error, "ip -br link", false, func(f *Facts) {
		f.Interfaces = []Interface{{Facts: netdev.Facts{Name: "nosuch0"}, Missing: true}}
	}},
	{"iface.uplink", Error, "rscctl attach eth1", false, func(f *Facts) {
		f.Interfaces = []Interface{{Facts: netdev.Facts{Name: "br0"}, NotUplink: &netdev.NotUplink{Iface: "br0", Why: "a bridge has no receive queues", Remedy: "use 'rscctl attach eth1'"}}}
	}},
	{"iface.uplink", Note, "nomaster", false, func(f *Facts) {
		f.Named, eth(f).NotUplink = false, &netdev.NotUplink{Iface: "eth1", Why: "it is a member of bond bond0", Remedy: "ip link set dev eth1 nomaster"}
	}},
	{"iface.none", Warning, "ip -br link", false, func(f *Facts) { f.Named, f.Interfaces = false, nil }},
	{"iface.link", Warning, "ip link set dev eth1 up", false, func(f *Facts) { eth(f).Up = false }},
	{"iface.link", Warning, "cable", false, func(f *Facts) { eth(f).Running = false }},
	{"iface.mtu", Error, "ip link set dev eth1 mtu 3822", false, func(f *Facts) { eth(f).MTU, f.OneChunk = 3823, "Linux 6.1" }},
	{"iface.mtu", Error, "ip link set dev eth1 mtu 16302", false, func(f *Facts) { eth(f).MTU = 16303 }},
	{"iface.xdp", Error, "eth1 xdpgeneric off", false, func(f *Facts) {
		eth(f).XDP, eth(f).Program = netdev.XDP{Attached: true, Mode: "generic", ProgID: 7}, "theirs"
		eth(f).Remove = eth(f).XDP.Off("eth1")
	}},
	{"iface.xdp", Error, "bpftool link detach id 9", false, func(f *Facts) {
		eth(f).XDP, eth(f).Remove = netdev.XDP{Attached: true, Mode: "native", ProgID: 7}, "bpftool link detach id 9"
	}},
	{"iface.xdp_native", Warning, "native XDP", false, func(f *Facts) { *eth(f).Features = 8 }},
	{"iface.xdp_native", Note, "rscctl status", false, func(f *Facts) { eth(f).Features = nil }},
	{"iface.xdp_native", Warning, "ethtool -L veth1 rx 4", false, func(f *Facts) { *veth(f).Features, veth(f).Peer.TxQueues = 8, 4 }},
	{"iface.zero_copy", Note, "copy", false, func(f *Facts) { *eth(f).Features = 3 }},
	{"iface.zero_copy", Note, "rscctl status", false, func(f *Facts) { eth(f).Features = nil }},
	{"iface.queues", Note, "ethtool -L eth1 combined 4", false, func(f *Facts) { eth(f).RxQueues, eth(f).MaxRxQueues = 1, 8 }},
	{"iface.bridge", Note, "--tap", false, func(f *Facts) { eth(f).Master = "br0" }},
	{"iface.lro", Note, "ethtool -K eth1 large-receive-offload off", true, func(f *Facts) { set(eth(f), netdev.LRO, true, false) }},
	{"iface.lro", Warning, "another NIC", false, func(f *Facts) { set(eth(f), netdev.LRO, true, true) }},
	{"iface.gro_hw", Note, "ethtool -K eth1 rx-gro-hw off", true, func(f *Facts) { set(eth(f), netdev.GROHW, true, false) }},
	{"iface.rx_vlan", Note, "ethtool -K eth1 rx-vlan-offload off", true, func(f *Facts) { set(eth(f), netdev.RxVLAN, true, false) }},
	{"iface.rx_vlan", Error, "another interface", false, func(f *Facts) { set(eth(f), netdev.RxVLAN, true, true) }},
	{"peer.tx_checksum", Warning, "nsenter --net=/run/netns/web ethtool -K veth0 tx off", true, func(f *Facts) { veth(f).Peer.TxChecksum.On = true }},
	{"peer.reach", Note, "ethtool -K PEER tx off", false, func(f *Facts) { veth(f).Peer = nil }},
	{"peer.tx_vlan", Error, "ethtool -K veth0 tx-vlan-offload off", true, func(f *Facts) { veth(f).ReadsTag.Err = "not seen" }},
	{"peer.tx_vlan", Note, "sudo", false, func(f *Facts) { veth(f).ReadsTag = Look{Err: "you are not root"} }},
}

// bad are the findings that are not OK.
func bad(list []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(list), func(f Finding) bool { return f.Severity == OK })
}

func TestEachCauseGivesItsFindingAndARemedy(t *testing.T) {
	told := map[string]bool{}
	for _, c := range causes {
		told[c.id] = true
		t.Run(fmt.Sprintf("%s/%s/%s", c.id, c.severity, c.remedy), func(t *testing.T) {
			f := well()
			c.cause(f)
			var got []Finding
			for _, one := range bad(Examine(f)) {
				if one.ID == c.id {
					got = append(got, one)
				}
			}
			if len(got) != 1 || got[0].Severity != c.severity || !strings.Contains(got[0].Remedy, c.remedy) || got[0].Fixable != c.fixable {
				t.Errorf("found %+v, want one %s with %q in its remedy, fixable %t", got, c.severity, c.remedy, c.fixable)
			}
		})
	}
	told["libvirt.override"] = true // it takes two causes, below
	for _, f := range Examine(well()) {
		if !told[f.ID] {
			t.Errorf("%s: no cause of it is tested", f.ID)
		}
	}
}

// On a host without a fault every check says so, and nothing else is said.
func TestAWellHostHasNoFinding(t *testing.T) {
	list := Examine(well())
	if b := bad(list); len(b) != 0 {
		t.Errorf("%+v", b)
	}
	for _, f := range list {
		if f.What == "" || f.Fixable || f.Remedy != "" {
			t.Errorf("%+v", f)
		}
	}
}

// What an operator reads is one line, says why and what to do, and the gravest comes first.
func TestEveryFindingIsALineWithAReasonAndARemedy(t *testing.T) {
	for _, c := range causes {
		f := well()
		c.cause(f)
		list := Examine(f)
		if !slices.IsSortedFunc(list, func(a, b Finding) int {
			return slices.Index(severities, a.Severity) - slices.Index(severities, b.Severity)
		}) {
			t.Errorf("%s: not in order", c.id)
		}
		for _, one := range bad(list) {
			if one.Why == "" || one.Remedy == "" || strings.ContainsAny(one.String()+one.Remedy, "\n\r") || one.Subject == "" {
				t.Errorf("%s: %+v", c.id, one)
			}
			if one.Fixable != (one.change != nil || one.tap != 0) {
				t.Errorf("%s: fixable %t, but Fix has %v, %d", one.ID, one.Fixable, one.change, one.tap)
			}
		}
	}
}

func TestKernelsAroundAFaultAreFine(t *testing.T) {
	for _, release := range []string{"5.12.0", "6.1.102", "6.1.111", "6.6.43", "6.6.46", "6.9.12", "6.10.5", "6.11.0", "6.19.14", "7.1.5", "7.2", "5.14.0-503.el9"} {
		f := well()
		f.Kernel.Release = release
		if b := faulty(f); len(b) != 0 {
			t.Errorf("%s: %+v", release, b)
		}
	}
	// Debian's release number stays the same over many versions: here the mended one.
	f := well()
	f.Kernel = Kernel{Release: "6.1.0-26-amd64", Build: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.112-1 (2024-09-30)"}
	if b := faulty(f); len(b) != 0 {
		t.Errorf("%+v", b)
	}
}

// faulty is what is found beside what an older kernel lacks.
func faulty(f *Facts) []Finding {
	return slices.DeleteFunc(bad(Examine(f)), func(f Finding) bool { return f.ID == "kernel.uso" })
}

func TestLibvirtMattersWhereQEMUNeedsAnOverride(t *testing.T) {
	f := well()
	f.QEMU.Version, f.Libvirt.Version, f.KVM = Version{7, 2, 0}, Version{8, 1, 0}, false
	var ids []string
	for _, one := range bad(Examine(f)) {
		ids = append(ids, fmt.Sprintf("%s %s", one.Severity, one.ID))
	}
	if want := []string{"warning qemu.msix", "warning libvirt.override", "note dev.kvm"}; !slices.Equal(ids, want) {
		t.Errorf("%q, want %q", ids, want)
	}
	f.QEMU.Version = Version{8, 0, 0}
	if b := bad(Examine(f)); len(b) != 1 {
		t.Errorf("with QEMU 8.0: %+v", b)
	}
	f.QEMU, f.Libvirt = Tool{}, Tool{}
	if b := bad(Examine(f)); len(b) != 1 {
		t.Errorf("with neither: %+v", b)
	}
}

// Who is not root learns what could not be looked at, and no error is made of it. A controller without privileges does not start.
func TestWhoIsNotRootIsToldWhatWasNotSeen(t *testing.T) {
	f := well()
	f.Root, f.Caps = false, 0
	f.Programs, f.TapsLook, veth(f).ReadsTag = Look{Err: notRoot}, Look{Err: notRoot}, Look{Err: notRoot}
	found := bad(Examine(f))
	for _, one := range found {
		if one.Severity != Note || !strings.Contains(one.Remedy, "sudo") {
			t.Errorf("%+v", one)
		}
	}
	if len(found) != 4 {
		t.Errorf("%d findings: %+v", len(found), found)
	}
	needs := Needs(f)
	if len(needs) != 1 || needs[0].ID != "privileges" || !strings.Contains(needs[0].What, "CAP_NET_ADMIN") {
		t.Errorf("run needs %+v", needs)
	}
}

func TestWhatAControllerNeedsToStart(t *testing.T) {
	for _, c := range []struct {
		ids   string
		cause func(f *Facts)
	}{
		{"", func(f *Facts) {}},
		{"", func(f *Facts) { // these cost something, or concern one way to a VM, or come with an interface
			f.BTF, f.OnBPFFS, f.Tun, f.VhostNet, f.KVM, eth(f).MTU, f.Kernel.Release = false, false, false, false, false, 9000, "6.1.104"
		}},
		{"", func(f *Facts) {
			f.Root, f.Caps = false, 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW|1<<unix.CAP_BPF|1<<unix.CAP_PERFMON|1<<unix.CAP_IPC_LOCK
		}},
		{"kernel.version bpf.programs", func(f *Facts) { f.Kernel.Release, f.Programs.Err = "5.10.0", "verifier" }},
		{"kernel.af_xdp", func(f *Facts) { f.AFXDP.Err = "none" }},
		{"limits.memlock", func(f *Facts) { f.Caps &^= 1 << unix.CAP_IPC_LOCK }},
		{"", func(f *Facts) { f.Caps &^= 1 << unix.CAP_IPC_LOCK; f.Memlock = unix.RLIM_INFINITY }},
	} {
		f := well()
		c.cause(f)
		var ids []string
		for _, one := range Needs(f) {
			ids = append(ids, one.ID)
		}
		if got := strings.Join(ids, " "); got != c.ids {
			t.Errorf("needs %q, want %q", got, c.ids)
		}
	}
}

// Nothing of an interface is changed that nobody named.
func TestFixTouchesTheNamedInterfaceOnly(t *testing.T) {
	f := well()
	f.Named = false
	set(eth(f), netdev.LRO, true, false)
	veth(f).Peer.TxChecksum.On = true
	for _, one := range Examine(f) {
		if one.Fixable || one.change != nil {
			t.Errorf("%+v", one)
		}
	}
}

func TestAControllersOwnProgramIsNoFinding(t *testing.T) {
	f := well()
	eth(f).XDP, eth(f).Program = netdev.XDP{Attached: true, Mode: "native", ProgID: 7}, bpf.ProgramName
	if b := bad(Examine(f)); len(b) != 0 {
		t.Errorf("%+v", b)
	}
}
