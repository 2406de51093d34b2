package netnstest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/vishvananda/netlink"
)

// prefix begins the name of every namespace made here; the process id ends it.
const prefix = "rsct"

// Options shape a pair. The zero value is a pair with one queue, MTU 1500, both address families, and a sender (A) that
// completes its checksums.
type Options struct {
	Queues          int // RX and TX queues of both ends; 0 is 1
	MTU             int // bytes; 0 is 1500
	NoIPv4          bool
	NoIPv6          bool // switches IPv6 off altogether: a silent wire
	KeepTxChecksum  bool // leave A's tx-checksumming on: its frames carry partial checksums
	KeepTxVLAN      bool // leave A's tx-vlan-offload on: its tags travel beside the frame (see PushVLAN)
	Queue           bool // a queueing discipline in front of A's end: netdev.QueueInFront
	KeepTSO         bool // leave A's segmentation offloads on: frames larger than the MTU
	ChecksumOffB    bool // switch B's tx-checksumming off as well
	MACA, MACB      net.HardwareAddr
	StaticNeighbors bool // permanent neighbour entries on both sides: no ARP and no neighbour discovery
}

// Network is two namespaces with a veth pair between them.
type Network struct{ A, B *Side }

// Side is one end: a namespace and its interface. Methods may be called from any goroutine.
type Side struct {
	NS    *NS
	Dev   string
	Index int
	MAC   net.HardwareAddr
	IPv4  netip.Prefix // invalid when switched off
	IPv6  netip.Prefix
}

// Pair makes two namespaces and a veth pair between them, up and with addresses (10.77.0.1 and .2 of 24 bits,
// fd77::1 and ::2 of 64, without duplicate address detection). All of it is removed when the test ends.
func Pair(t testing.TB, o Options) *Network {
	t.Helper()
	Need(t)
	o.defaults()
	n := &Network{
		A: &Side{NS: Namespace(t), Dev: "veth0", MAC: o.MACA},
		B: &Side{NS: Namespace(t), Dev: "veth0", MAC: o.MACB},
	}
	n.A.addresses(o, 1)
	n.B.addresses(o, 2)
	if err := n.connect(t, o); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Side{n.A, n.B} {
		other := n.A
		if s == n.A {
			other = n.B
		}
		if err := s.NS.Do(func() error { return s.configure(o, other) }); err != nil {
			t.Fatalf("namespace %s: %v", s.NS.Name(), err)
		}
	}
	n.offloads(t, o)
	if o.Queue && !Wired() {
		n.A.Do(t, func() error { return netdev.QueueInFront(n.A.Dev) })
	}
	for _, s := range []*Side{n.A, n.B} {
		if err := s.NS.Do(s.settled); err != nil {
			t.Fatalf("namespace %s: %v", s.NS.Name(), err)
		}
	}
	return n
}

// connect gives each side its interface: an end of a veth pair, or of the wire.
func (n *Network) connect(t testing.TB, o Options) error {
	if Wired() {
		return n.takeWire(t, o)
	}
	if err := n.A.NS.Do(func() error { return n.addVeth(o) }); err != nil {
		return fmt.Errorf("veth pair: %w", err)
	}
	return nil
}

func (o *Options) defaults() {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.MACA == nil {
		o.MACA = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x0a}
	}
	if o.MACB == nil {
		o.MACB = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x0b}
	}
}

// Namespace makes an empty namespace with its loopback up. It is removed when the test ends.
func Namespace(t testing.TB) *NS {
	t.Helper()
	Need(t)
	if _, err := sweep(prefix); err != nil {
		t.Logf("sweep: %v", err)
	}
	for i := range 1000 {
		ns, err := newNS(pidName(fmt.Sprintf("%s%d", prefix, i), os.Getpid()))
		if errors.Is(err, errExists) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := ns.Delete(); err != nil {
				t.Errorf("namespace: %v", err)
			}
		})
		if err := ns.Do(loopbackUp); err != nil {
			t.Fatal(err)
		}
		return ns
	}
	t.Fatal("namespaces: no free name")
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

func (s *Side) addresses(o Options, host byte) {
	if !o.NoIPv4 {
		s.IPv4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, host}), 24)
	}
	if !o.NoIPv6 {
		s.IPv6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 15: host}), 64)
	}
}

// indexA is the ifindex of A's end; B's is whatever its namespace gives.
const indexA = 1000

// addVeth runs in A. No sooner than this do the namespaces know each other (IFLA_LINK_NETNSID).
func (n *Network) addVeth(o Options) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = n.A.Dev, o.MTU, n.A.MAC
	attrs.NumTxQueues, attrs.NumRxQueues = o.Queues, o.Queues
	// The ends would both be number 2 of their namespaces, and the kernel takes an interface whose peer has its own
	// number for a plain one, whose carrier may wait for a second (net/core/link_watch.c, linkwatch_urgent_event).
	attrs.Index = indexA
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerHardwareAddr, v.PeerNamespace = n.B.Dev, n.B.MAC, netlink.NsFd(n.B.NS.FD())
	v.PeerNumTxQueues, v.PeerNumRxQueues, v.PeerMTU = uint32(o.Queues), uint32(o.Queues), uint32(o.MTU)
	return netlink.LinkAdd(v)
}

// configure runs in the side's own namespace.
func (s *Side) configure(o Options, other *Side) error {
	// No duplicate address detection (a second's wait) and no router solicitations, on any interface to come.
	for name, value := range map[string]string{"accept_dad": "0", "dad_transmits": "0", "router_solicitations": "0"} {
		for _, where := range []string{"all", "default", s.Dev} {
			_ = sysctl("net/ipv6/conf/"+where+"/"+name, value) // a kernel without IPv6 has none of them
		}
	}
	if o.NoIPv6 {
		_ = sysctl("net/ipv6/conf/"+s.Dev+"/disable_ipv6", "1")
	}
	l, err := netlink.LinkByName(s.Dev)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Dev, err)
	}
	s.Index = l.Attrs().Index
	for _, p := range []netip.Prefix{s.IPv4, s.IPv6} {
		if err := s.addAddress(l, p); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("%s: up: %w", s.Dev, err)
	}
	if o.StaticNeighbors {
		return s.knows(other)
	}
	return nil
}

func (s *Side) addAddress(l netlink.Link, p netip.Prefix) error {
	if !p.IsValid() {
		return nil
	}
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if p.Addr().Is6() {
		a.Flags = ifaFlagNoDAD
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return fmt.Errorf("%s: address %s: %w", s.Dev, p, err)
	}
	return nil
}

// IFA_F_NODAD and IFA_F_TENTATIVE (linux/if_addr.h).
const (
	ifaFlagNoDAD     = 0x02
	ifaFlagTentative = 0x40
)

// settled waits, in the side's own namespace, for the carrier and for the kernel's work queue to have confirmed the
// link-local address: before that, IPv6 sends from nowhere.
func (s *Side) settled() error {
	for range 1000 { // a NIC negotiates its link
		ok, err := s.ready()
		if err != nil || ok {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s: not ready after ten seconds", s.Dev)
}

func (s *Side) ready() (bool, error) {
	l, err := netlink.LinkByIndex(s.Index)
	if err != nil {
		return false, err
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, nil // an address changed while they were listed
	}
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		if a.Flags&ifaFlagTentative != 0 {
			return false, nil
		}
	}
	// IFF_RUNNING comes too early: it is set while the state is still unknown, and until the kernel's link watch has
	// handled the carrier there is no queueing discipline yet and frames vanish (net/core/link_watch.c).
	return l.Attrs().OperState == netlink.OperUp, nil
}

func (s *Side) knows(other *Side) error {
	for _, p := range []netip.Prefix{other.IPv4, other.IPv6} {
		if !p.IsValid() {
			continue
		}
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: s.Index, State: netlink.NUD_PERMANENT, IP: p.Addr().AsSlice(), HardwareAddr: other.MAC,
		})
		if err != nil {
			return fmt.Errorf("%s: neighbour %s: %w", s.Dev, p.Addr(), err)
		}
	}
	return nil
}

// offloads makes A a sender whose frames are as they would be on a wire.
func (n *Network) offloads(t testing.TB, o Options) {
	t.Helper()
	if !o.KeepTxChecksum {
		n.A.SetOffload(t, netdev.TxChecksum, false)
	}
	if !o.KeepTSO {
		n.A.SetOffload(t, "tso", false)
		n.A.SetOffload(t, "gso", false)
	}
	if !o.KeepTxVLAN {
		n.A.SetOffload(t, netdev.TxVLAN, false)
	}
	if o.ChecksumOffB {
		n.B.SetOffload(t, netdev.TxChecksum, false)
	}
}

// Do runs fn with its thread in the side's namespace. Sockets opened there stay there.
func (s *Side) Do(t testing.TB, fn func() error) {
	t.Helper()
	if err := s.NS.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// SetOffload switches an offload of the side's interface by its `ethtool -K` name.
func (s *Side) SetOffload(t testing.TB, feature string, on bool) {
	t.Helper()
	s.Do(t, func() error { return netdev.SetOffload(s.Dev, feature, on) })
}

// Promiscuous lets the side's interface take frames to any address.
func (s *Side) Promiscuous(t testing.TB) {
	t.Helper()
	s.Do(t, func() error {
		l, err := netlink.LinkByIndex(s.Index)
		if err != nil {
			return err
		}
		return netlink.SetPromiscOn(l)
	})
}

// Output runs a program in the side's namespace and returns what it wrote to both its outputs. It fails the test when
// the program fails.
func (s *Side) Output(t testing.TB, name string, args ...string) string {
	t.Helper()
	var out []byte
	s.Do(t, func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return err
	})
	return string(out)
}

// Start starts a command in the side's namespace, and kills it when the test ends if it still runs.
func (s *Side) Start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := s.NS.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
}

// Sysctl sets a variable of the side's namespace, such as "net/ipv4/tcp_congestion_control".
func (s *Side) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	s.Do(t, func() error { return sysctl(name, value) })
}

// sysctl writes below /proc/sys/net, which shows each thread the variables of its own namespace.
func sysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
}
