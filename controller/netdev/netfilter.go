package netdev

import (
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Netfilter's families and hooks (linux/netfilter.h); a hook's number means something within its family only.
const (
	familyInet   = 1
	familyIPv4   = 2
	familyNetdev = 5
	familyBridge = 7
	familyIPv6   = 10

	hookPrerouting  = 0 // of bridge, inet, ip, ip6
	hookForward     = 2
	hookPostrouting = 4
	inetIngress     = 5
	netdevIngress   = 0
	netdevEgress    = 1
)

var familyNames = map[uint8]string{familyInet: "inet", familyIPv4: "ip", familyNetdev: "netdev", familyBridge: "bridge", familyIPv6: "ip6"}

// baseChain is an nftables chain that hangs on a hook.
type baseChain struct {
	family      uint8
	table, name string
	hook        uint32
	devices     []string // of netdev chains and inet ingress
	rules       uint32
	drops       bool // by policy
}

func (c baseChain) String() string {
	return fmt.Sprintf("chain %s of table %s %s", c.name, familyNames[c.family], c.table)
}

// on tells whether the chain hangs on one of these interfaces.
func (c baseChain) on(links map[int]string) bool {
	for _, dev := range c.devices {
		for _, name := range links {
			if dev == name {
				return true
			}
		}
	}
	return false
}

// Of linux/netfilter/nf_tables.h.
const (
	nftGetTable = 1
	nftGetChain = 4

	nftTableName    = 1
	nftTableFlags   = 2
	nftTableDormant = 1 // NFT_TABLE_F_DORMANT: its chains hang on no hook

	nftChainTable  = 1
	nftChainName   = 3
	nftChainHook   = 4
	nftChainPolicy = 5
	nftChainUse    = 6

	nftHookNum  = 1
	nftHookDev  = 3
	nftHookDevs = 4
)

// nftDump asks for all objects of a kind, in the calling thread's namespace. A kernel without nf_tables has none.
func nftDump(kind int) ([][]byte, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil && !errors.Is(err, nl.ErrDumpInterrupted):
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return msgs, nil
}

func baseChains() (out []baseChain, err error) {
	tables, err := nftDump(nftGetTable)
	if err != nil {
		return nil, err
	}
	dormant := map[string]bool{}
	key := func(family uint8, table string) string { return fmt.Sprint(family, " ", table) }
	for _, m := range tables {
		if a := nftAttrs(m); a.be32(nftTableFlags)&nftTableDormant != 0 {
			dormant[key(m[0], a.text(nftTableName))] = true
		}
	}
	chains, err := nftDump(nftGetChain)
	if err != nil {
		return nil, err
	}
	for _, m := range chains {
		a := nftAttrs(m)
		hook, based := a[nftChainHook]
		if !based || dormant[key(m[0], a.text(nftChainTable))] {
			continue
		}
		h := parseAttrs(hook)
		c := baseChain{family: m[0], table: a.text(nftChainTable), name: a.text(nftChainName), hook: h.be32(nftHookNum), rules: a.be32(nftChainUse)}
		if p, ok := a[nftChainPolicy]; ok && len(p) == 4 {
			c.drops = a.be32(nftChainPolicy) == 0 // NF_DROP
		}
		if dev := h.text(nftHookDev); dev != "" {
			c.devices = append(c.devices, dev)
		}
		if list, err := nl.ParseRouteAttr(h[nftHookDevs]); err == nil {
			for _, d := range list {
				if name := cString(d.Value); len(c.devices) == 0 || name != c.devices[0] {
					c.devices = append(c.devices, name)
				}
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// nftAttrs are the attributes behind struct nfgenmsg, whose first byte is the family.
func nftAttrs(m []byte) attrs {
	if len(m) < nl.SizeofNfgenmsg {
		return attrs{}
	}
	return parseAttrs(m[nl.SizeofNfgenmsg:])
}

// Legacy tables are asked for by getsockopt, and asking for one makes it: so only those that are there are asked.

// ipTables are the tables of legacy iptables (or ip6tables) that have more than their empty chains.
func ipTables(family int) (out []string) {
	// /proc/net would be that of the process's first thread.
	path, level := "/proc/thread-self/net/ip_tables_names", unix.SOL_IP
	if family == unix.AF_INET6 {
		path, level = "/proc/thread-self/net/ip6_tables_names", unix.SOL_IPV6
	}
	names, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	for _, table := range strings.Fields(string(names)) {
		// struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size.
		const getInfo = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
		b := make([]byte, 84)
		copy(b[:31], table)
		if askNetfilter(family, level, getInfo, b) != nil {
			continue
		}
		hooks, entries := binary.NativeEndian.Uint32(b[32:]), binary.NativeEndian.Uint32(b[76:])
		if int(entries) > bits.OnesCount32(hooks)+1 { // each chain's policy, and the end
			out = append(out, table)
		}
	}
	return out
}

// ebtablesTables are the tables of legacy ebtables, with their names in the kernel's configuration behind CONFIG_BRIDGE_EBT_.
var ebtablesTables = []struct{ name, option string }{{"filter", "T_FILTER"}, {"nat", "T_NAT"}, {"broute", "BROUTE"}}

// ebTables are the tables of legacy ebtables that have rules, of those that are loaded or known to be built in.
func ebTables(builtIn []string) (out []string) {
	loaded, _ := os.ReadFile("/proc/modules")
	for _, t := range ebtablesTables {
		if !slices.Contains(builtIn, t.name) && !strings.Contains("\n"+string(loaded), "\nebtable_"+t.name+" ") {
			continue
		}
		// struct ebt_replace on a 64-bit machine: name[32], valid_hooks, nentries, entries_size, and pointers.
		const getInfo = 128 // EBT_SO_GET_INFO
		b := make([]byte, 120)
		copy(b[:31], t.name)
		if askNetfilter(unix.AF_INET, unix.SOL_IP, getInfo, b) == nil && binary.NativeEndian.Uint32(b[36:]) > 0 {
			out = append(out, t.name)
		}
	}
	return out
}

// builtIn tells whether a module is part of the kernel itself, by the list that comes with the kernel's modules and by the
// kernel's own configuration. Of a kernel with neither it is taken for granted: what is asked for and not there is an error, at
// the worst a module that is loaded; a filter that nobody looked for is bypassed in silence.
func builtIn(module, option string) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return true
	}
	return builtInBy("/lib/modules/"+cString(u.Release[:])+"/modules.builtin", "/proc/config.gz", module, option)
}

func builtInBy(list, config, module, option string) bool {
	if b, err := os.ReadFile(list); err == nil {
		return strings.Contains(string(b), "/"+module+".ko")
	}
	f, err := os.Open(config)
	if err != nil {
		return true
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return true
	}
	b, err := io.ReadAll(io.LimitReader(z, 8<<20))
	return err != nil || strings.Contains("\n"+string(b), "\nCONFIG_"+option+"=y\n")
}

// askNetfilter is getsockopt on a raw socket of the calling thread's namespace: b is the question and the answer.
func askNetfilter(family, level, option int, b []byte) error {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return getsockopt(fd, level, option, b)
}
