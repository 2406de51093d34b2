package netdev

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dev is one interface as the kernel would describe it: the tests go through the attributes, not around them.
type dev struct {
	index           int
	name, kind      string
	hw              uint16 // 0: Ethernet
	flags           uint32
	master, lower   int
	away, bus       bool
	vlan, vlanProto uint16
	tunType         uint8
	vnetHdr         bool
	mode            uint8 // of a bond
	allActive       bool
	slave           bool // of a bond
	backup, noLink  bool
}

func (d dev) message() attrs {
	var b []byte
	add := func(kind uint16, v []byte) { b = append(b, nl.NewRtAttr(int(kind), v).Serialize()...) }
	add(unix.IFLA_IFNAME, nl.ZeroTerminated(d.name))
	if d.master != 0 {
		add(unix.IFLA_MASTER, nl.Uint32Attr(uint32(d.master)))
	}
	if d.lower != 0 {
		add(unix.IFLA_LINK, nl.Uint32Attr(uint32(d.lower)))
	}
	if d.away {
		add(unix.IFLA_LINK_NETNSID, nl.Uint32Attr(3))
	}
	if d.bus {
		add(unix.IFLA_PARENT_DEV_NAME, nl.ZeroTerminated("0000:01:00.0"))
	}
	if d.kind != "" {
		info := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
		info.AddRtAttr(unix.IFLA_INFO_KIND, nl.ZeroTerminated(d.kind))
		data := info.AddRtAttr(unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, nil)
		if d.kind == "vlan" {
			proto := d.vlanProto
			if proto == 0 {
				proto = unix.ETH_P_8021Q
			}
			data.AddRtAttr(unix.IFLA_VLAN_ID, nl.Uint16Attr(d.vlan))
			data.AddRtAttr(unix.IFLA_VLAN_PROTOCOL, binary.BigEndian.AppendUint16(nil, proto))
		}
		if d.kind == "bond" {
			data.AddRtAttr(nl.IFLA_BOND_MODE, []byte{d.mode})
			if d.allActive {
				data.AddRtAttr(nl.IFLA_BOND_ALL_SLAVES_ACTIVE, []byte{1})
			}
		}
		if d.kind == "tun" {
			data.AddRtAttr(unix.IFLA_TUN_TYPE, []byte{d.tunType})
			if d.vnetHdr {
				data.AddRtAttr(unix.IFLA_TUN_VNET_HDR, []byte{1})
			}
		}
		b = append(b, info.Serialize()...)
	}
	if d.slave {
		info := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
		info.AddRtAttr(unix.IFLA_INFO_SLAVE_KIND, nl.ZeroTerminated("bond"))
		data := info.AddRtAttr(unix.IFLA_INFO_SLAVE_DATA|unix.NLA_F_NESTED, nil)
		data.AddRtAttr(nl.IFLA_BOND_SLAVE_STATE, []byte{flag(d.backup)})
		data.AddRtAttr(nl.IFLA_BOND_SLAVE_MII_STATUS, []byte{2 * flag(d.noLink)}) // BOND_LINK_DOWN
		b = append(b, info.Serialize()...)
	}
	return parseAttrs(b)
}

func flag(on bool) uint8 {
	if on {
		return 1
	}
	return 0
}

func linksOf(devs ...dev) linkSet {
	s := linkSet{}
	for _, d := range devs {
		hw := d.hw
		if hw == 0 {
			hw = unix.ARPHRD_ETHER
		}
		s[d.index] = parseLink(d.index, hw, d.flags, d.message())
	}
	return s
}

// What owns the queues that its frames come in by may be an uplink.
func TestInterfacesThatMayBeUplinks(t *testing.T) {
	br := dev{index: 9, name: "br0", kind: "bridge"}
	for name, devs := range map[string][]dev{
		"hardware":                         {{index: 2, name: "eth0"}},
		"hardware of a kind":               {{index: 2, name: "eth0", kind: "hv_netvsc", bus: true}},
		"a veth whose peer is elsewhere":   {{index: 2, name: "veth0", kind: "veth", lower: 3, away: true}},
		"a veth whose peer is here":        {{index: 2, name: "veth0", kind: "veth", lower: 3}, {index: 3, name: "veth1", kind: "veth", lower: 2}},
		"a tap whose user sends frames":    {{index: 2, name: "tap0", kind: "tun", tunType: unix.IFF_TAP}},
		"a port of a bridge":               {{index: 2, name: "eth0", master: 9}, br},
		"a port of Open vSwitch":           {{index: 2, name: "eth0", master: 9}, {index: 9, name: "ovs-system", kind: "openvswitch"}},
		"an interface of a VRF":            {{index: 2, name: "eth0", master: 9}, {index: 9, name: "red", kind: "vrf"}},
		"a bond of hardware":               {{index: 2, name: "bond0", kind: "bond", mode: 1}, {index: 3, name: "eth0", master: 2}, {index: 4, name: "eth1", master: 2}},
		"a bond in a bridge":               {{index: 2, name: "bond0", kind: "bond", mode: 4, master: 9}, {index: 3, name: "eth0", master: 2}, br},
		"hardware below a VLAN device":     {{index: 2, name: "eth0"}, {index: 3, name: "eth0.7", kind: "vlan", lower: 2, vlan: 7}},
		"hardware below a macvlan device":  {{index: 2, name: "eth0"}, {index: 3, name: "mv0", kind: "macvlan", lower: 2}},
		"an index below that is elsewhere": {{index: 2, name: "eth0"}, {index: 3, name: "p0", kind: "dsa", lower: 2, away: true}},
	} {
		if err := linksOf(devs...).checkUplink(2, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Everything else is refused, and the error names the device to use, in a command that can be run as it is.
func TestStackedDevicesAreRefusedWithTheOneToUse(t *testing.T) {
	eth0, eth1, loose := dev{index: 2, name: "eth0"}, dev{index: 3, name: "eth1"}, dev{index: 4, name: "eth2"}
	in := func(d dev, master int) dev { d.master = master; return d }
	bond := dev{index: 9, name: "bond0", kind: "bond"}
	good := dev{index: 9, name: "bond0", kind: "bond", mode: 1}
	bonded := []dev{bond, in(eth0, 9), in(eth1, 9), loose}
	br := dev{index: 20, name: "br0", kind: "bridge"}
	vnet := dev{index: 21, name: "vnet0", kind: "tun", tunType: unix.IFF_TAP, vnetHdr: true, master: 20}
	plainTap := dev{index: 22, name: "tap9", kind: "tun", tunType: unix.IFF_TAP, master: 20}
	container := dev{index: 23, name: "veth9", kind: "veth", lower: 2, away: true, master: 20}
	of := func(kind string, lower int) []dev {
		return []dev{eth0, {index: 30, name: "x0", kind: kind, lower: lower}}
	}
	vlan7 := dev{index: 31, name: "eth0.7", kind: "vlan", lower: 2, vlan: 7}
	const nomaster = "'ip link set dev eth1 nomaster'"
	for name, c := range map[string]struct {
		devs  []dev
		index int
		vlan  uint16
		says  []string
		not   []string
	}{
		"bond of another mode":          {bonded, 9, 0, []string{"bond0", "eth0, eth1", "balance-rr", "802.3ad", nomaster}, []string{"'rscctl attach"}},
		"bond of a mode of tomorrow":    {[]dev{{index: 9, name: "bond0", kind: "bond", mode: 9}, in(eth0, 9)}, 9, 0, []string{"number 9"}, nil},
		"empty bond":                    {[]dev{{index: 9, name: "bond0", kind: "bond", mode: 1}}, 9, 0, []string{"no members", "'ip link set dev NIC master bond0'"}, []string{"'rscctl attach"}},
		"bond of VLAN devices":          {[]dev{{index: 9, name: "bond0", kind: "bond", mode: 1}, eth0, in(vlan7, 9)}, 9, 0, []string{"member eth0.7", "VLAN device"}, nil},
		"bond in a team":                {[]dev{{index: 8, name: "team0", kind: "team"}, in(good, 8), in(eth0, 9)}, 9, 0, []string{"member of team team0"}, nil},
		"member of a bond that will do": {[]dev{good, in(eth0, 9), in(eth1, 9)}, 2, 0, []string{"member of bond bond0", "'rscctl attach bond0'"}, []string{"ip link"}},
		"VLAN device on such a bond":    {[]dev{good, in(eth0, 9), {index: 31, name: "bond0.7", kind: "vlan", lower: 9, vlan: 7}}, 31, 0, []string{"'rscctl attach bond0 --vlan 7'"}, nil},
		"bridge on such a bond":         {[]dev{br, in(good, 20), in(eth0, 9), vnet, container}, 20, 0, []string{"'rscctl attach bond0'"}, []string{"veth9"}},
		"team":                          {[]dev{{index: 9, name: "team0", kind: "team"}, in(eth0, 9), in(eth1, 9)}, 9, 0, []string{"team0", "eth0, eth1", nomaster}, nil},
		"member of a bond":              {bonded, 2, 0, []string{"eth0", "member of bond bond0", "'ip link set dev eth0 nomaster'"}, []string{"'rscctl attach"}},
		"member of a team":              {[]dev{{index: 9, name: "team0", kind: "team"}, in(eth0, 9)}, 2, 0, []string{"member of team team0"}, nil},
		"VLAN device":                   {[]dev{eth0, vlan7}, 31, 0, []string{"'rscctl attach eth0 --vlan 7'"}, nil},
		"VLAN device, another tag":      {[]dev{eth0, vlan7}, 31, 5, []string{"at most one VLAN tag"}, []string{"'rscctl"}},
		"802.1ad device":                {[]dev{eth0, {index: 31, name: "eth0.7", kind: "vlan", lower: 2, vlan: 7, vlanProto: unix.ETH_P_8021AD}}, 31, 0, []string{"VLAN tag"}, []string{"'rscctl"}},
		"VLAN in VLAN":                  {[]dev{eth0, vlan7, {index: 32, name: "eth0.7.8", kind: "vlan", lower: 31, vlan: 8}}, 32, 0, []string{"VLAN tag"}, []string{"'rscctl"}},
		"VLAN device on a bond":         {append([]dev{{index: 31, name: "bond0.7", kind: "vlan", lower: 9, vlan: 7}}, bonded...), 31, 0, []string{"bond0", nomaster}, []string{"'rscctl"}},
		"macvlan on a VLAN device":      {[]dev{eth0, vlan7, {index: 32, name: "mv0", kind: "macvlan", lower: 31}}, 32, 0, []string{"'rscctl attach eth0 --vlan 7'"}, nil},
		"bridge":                        {[]dev{br, in(eth0, 20), vnet, plainTap, container}, 20, 0, []string{"'rscctl attach eth0'"}, []string{"vnet0", "tap9", "veth9"}},
		"bridge, tagged VM":             {[]dev{br, in(eth0, 20), vnet}, 20, 7, []string{"'rscctl attach eth0'"}, []string{"--vlan"}},
		"bridge of two wires":           {[]dev{br, in(eth0, 20), in(eth1, 20)}, 20, 0, []string{"'rscctl attach eth0' or 'rscctl attach eth1'", "the one that"}, nil},
		"bridge on a veth":              {[]dev{br, container, vnet}, 20, 0, []string{"'rscctl attach veth9'"}, nil},
		"bridge on a VLAN device":       {[]dev{br, eth0, in(vlan7, 20), vnet}, 20, 0, []string{"'rscctl attach eth0 --vlan 7'"}, nil},
		"bridge on a bond":              {append([]dev{br, in(bond, 20)}, bonded[1:]...), 20, 0, []string{"bond0", nomaster}, []string{"'rscctl"}},
		"bridge without a wire":         {[]dev{br, vnet}, 20, 0, []string{"hardware interface"}, []string{"'rscctl"}},
		"macvlan":                       {of("macvlan", 2), 30, 0, []string{"'rscctl attach eth0'"}, nil},
		"macvtap":                       {of("macvtap", 2), 30, 0, []string{"'rscctl attach eth0'"}, nil},
		"ipvlan":                        {of("ipvlan", 2), 30, 0, []string{"'rscctl attach eth0'"}, nil},
		"ipvtap":                        {of("ipvtap", 2), 30, 0, []string{"'rscctl attach eth0'"}, nil},
		"macvlan in a container":        {[]dev{eth0, {index: 30, name: "mv0", kind: "macvlan", lower: 2, away: true}}, 30, 0, []string{"network namespace of the device below"}, []string{"eth0"}},
		"VRF":                           {[]dev{{index: 9, name: "red", kind: "vrf"}, in(eth0, 9)}, 9, 0, []string{"'rscctl attach eth0'"}, nil},
		"Open vSwitch bridge":           {[]dev{{index: 9, name: "br-ex", kind: "openvswitch"}}, 9, 0, []string{"'ovs-vsctl list-ports br-ex'"}, nil},
		"Open vSwitch datapath":         {[]dev{{index: 9, name: "ovs-system", kind: "openvswitch"}, in(eth0, 9)}, 9, 0, []string{"'rscctl attach eth0'"}, nil},
		"vxlan":                         {of("vxlan", 2), 30, 0, []string{"tunnel", "untunnelled"}, []string{"'rscctl"}},
		"geneve":                        {of("geneve", 0), 30, 0, []string{"tunnel"}, nil},
		"gretap":                        {of("gretap", 2), 30, 0, []string{"tunnel"}, nil},
		"gre":                           {[]dev{{index: 30, name: "gre1", kind: "gre", hw: unix.ARPHRD_IPGRE}}, 30, 0, []string{"tunnel"}, nil},
		"wireguard":                     {[]dev{{index: 30, name: "wg0", kind: "wireguard", hw: unix.ARPHRD_NONE}}, 30, 0, []string{"tunnel"}, nil},
		"macsec":                        {of("macsec", 2), 30, 0, []string{"encrypted"}, []string{"'rscctl"}},
		"dummy":                         {of("dummy", 0), 30, 0, []string{"dummy"}, nil},
		"ifb":                           {of("ifb", 0), 30, 0, []string{"ifb"}, nil},
		"netkit":                        {of("netkit", 2), 30, 0, []string{"netkit"}, []string{"'rscctl"}},
		"loopback":                      {[]dev{{index: 1, name: "lo", hw: unix.ARPHRD_LOOPBACK, flags: unix.IFF_LOOPBACK}}, 1, 0, []string{"loopback"}, nil},
		"tun":                           {[]dev{{index: 30, name: "tun0", kind: "tun", tunType: unix.IFF_TUN, hw: unix.ARPHRD_NONE}}, 30, 0, []string{"tun device"}, nil},
		"a VM's tap":                    {[]dev{vnet, br}, 21, 0, []string{"virtio-net header"}, nil},
		"InfiniBand":                    {[]dev{{index: 2, name: "ib0", hw: unix.ARPHRD_INFINIBAND}}, 2, 0, []string{"no Ethernet"}, nil},
		"port of a switch chip":         {[]dev{eth0, {index: 30, name: "lan1", kind: "dsa", lower: 2, bus: true}}, 30, 0, []string{"switch chip"}, []string{"'rscctl"}},
		"the way to a switch chip":      {[]dev{eth0, {index: 30, name: "lan1", kind: "dsa", lower: 2}}, 2, 0, []string{"lan1"}, []string{"'rscctl"}},
		"failover device":               {[]dev{{index: 9, name: "ens3"}, in(eth0, 9), in(eth1, 9)}, 9, 0, []string{"eth0, eth1"}, []string{"'rscctl"}},
		"standby of a failover device":  {[]dev{{index: 9, name: "ens3"}, in(eth0, 9)}, 2, 0, []string{"belongs to ens3"}, nil},
		"a kind of tomorrow, on top":    {of("novelty", 2), 30, 0, []string{"novelty", "on top of eth0"}, nil},
		"a kind of tomorrow, with port": {[]dev{{index: 9, name: "n0", kind: "novelty"}, in(eth0, 9)}, 9, 0, []string{"eth0"}, nil},
		"a kind of tomorrow, alone":     {of("novelty", 0), 30, 0, []string{"novelty"}, nil},
		"member of a foreign master":    {[]dev{in(eth0, 77)}, 2, 0, []string{"another network namespace"}, nil},
		"devices that lead to each other": {[]dev{{index: 2, name: "a", kind: "macvlan", lower: 3}, {index: 3, name: "b", kind: "macvlan", lower: 2}},
			2, 0, []string{"macvlan"}, []string{"'rscctl"}},
	} {
		err := linksOf(c.devs...).checkUplink(c.index, c.vlan)
		if !errors.Is(err, ErrNotUplink) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range c.says {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: the error does not say %q: %v", name, want, err)
			}
		}
		for _, no := range append(c.not, "\n") {
			if strings.Contains(err.Error(), no) {
				t.Errorf("%s: the error says %q: %v", name, no, err)
			}
		}
	}
	if err := linksOf(eth0).checkUplink(5, 0); !errors.Is(err, ErrNoDevice) {
		t.Errorf("an index that is gone: %v", err)
	}
}

// A bond's members are what the kernel says of each, and a bond that takes what comes in by backups has none.
func TestTheMembersOfABond(t *testing.T) {
	bond := dev{index: 9, name: "bond0", kind: "bond", mode: 1}
	members := []dev{{index: 3, name: "b", kind: "veth", master: 9, slave: true, backup: true}, {index: 2, name: "a", master: 9, slave: true}, {index: 4, name: "c", master: 9, slave: true, backup: true, noLink: true}}
	s := linksOf(append(members, bond)...)
	got, want := s.bond(s[9]), []Member{{"a", 2, true, true}, {"b", 3, true, false}, {"c", 4, false, false}}
	if got.Mode != ActiveBackup || !slices.Equal(got.Members, want) {
		t.Errorf("%+v", got)
	}
	if got.Find(3) == nil || got.Find(5) != nil {
		t.Error("found the wrong one")
	}
	bond.allActive = true
	s = linksOf(append(members, bond)...)
	for _, m := range s.bond(s[9]).Members {
		if !m.Active {
			t.Errorf("with all_slaves_active: %+v", m)
		}
	}
}
