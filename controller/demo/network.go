package demo

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netdev"
)

// The demo's network: one wire from the sender to the controller's uplink, and the guest's NIC, a tap. Addresses need
// not be free on the host, because no interface of the host is in any of the three namespaces, two NICs that are lent (see loan) apart.
const (
	wireName   = "wire0"   // sender
	uplinkName = "uplink0" // controller
	nicName    = "nic0"    // guest
	vmName     = "demo"
	mtu        = 1500

	senderIP4, guestIP4 = "10.77.0.1", "10.77.0.2"
	senderIP6, guestIP6 = "fd77::1", "fd77::2"
	bits4, bits6        = 24, 64
)

// guestMAC is the VM's address, locally administered.
var guestMAC = net.HardwareAddr{0x02, 0x72, 0x73, 0x63, 0x00, 0x02}

// setSysctl writes a setting of the child's own network namespace. One that this kernel lacks is passed over: without
// IPv6, for instance, nothing of it has to be configured.
func setSysctl(path, value string) error {
	err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("sysctl net/%s: %w", path, err)
}

// makeWire creates the veth pair in the caller's namespace and puts its other end into that of the process peer. The
// controller's end has one queue: the demo measures one worker.
func makeWire(peer int) error {
	la := netlink.NewLinkAttrs()
	la.Name, la.MTU = wireName, mtu
	la.NumTxQueues, la.NumRxQueues = 1, 1
	la.TxQLen = 1000
	err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: la, PeerName: uplinkName, PeerMTU: mtu, PeerNamespace: netlink.NsPid(peer),
		PeerNumTxQueues: 1, PeerNumRxQueues: 1,
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("veth pair: this kernel has no veth; load it (modprobe veth) or enable CONFIG_VETH: %w", err)
	}
	if err != nil {
		return fmt.Errorf("veth pair: %w", err)
	}
	return asWire(wireName)
}

// asWire makes a veth's end carry whole frames, as a real wire does. It would hand over frames whose checksum is only the pseudo-header's
// sum, and VLAN tags beside the frame; a program with AF_XDP is told of neither.
func asWire(name string) error {
	for _, feature := range []string{netdev.TxChecksum, netdev.TxVLAN} {
		if err := netdev.SetOffload(name, feature, false); err != nil {
			return fmt.Errorf("wire: %w", err)
		}
	}
	if err := netdev.QueueInFront(name); err != nil { // or the sender's TCP never gets going
		return fmt.Errorf("wire: %w", err)
	}
	return nil
}

// bringUp gives an interface an address, without waiting for duplicate detection, and sets it up.
func bringUp(name, address string, bits int, txqlen int) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := netlink.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("%s: mtu: %w", name, err)
	}
	if txqlen > 0 {
		if err := netlink.LinkSetTxQLen(l, txqlen); err != nil {
			return fmt.Errorf("%s: queue length: %w", name, err)
		}
	}
	if address != "" {
		ip := net.ParseIP(address)
		size := 32
		flags := 0
		if ip.To4() == nil {
			size, flags = 128, unix.IFA_F_NODAD
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, size)}, Flags: flags}
		if err := netlink.AddrAdd(l, a); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) {
				return fmt.Errorf("%s: address %s: this kernel or container has IPv6 switched off: %w", name, address, err)
			}
			return fmt.Errorf("%s: address %s: %w", name, address, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("%s: up: %w", name, err)
	}
	return nil
}

// mountSys mounts the sysfs of the caller's namespace at an empty folder: sysfs shows the namespace it was mounted in. The children
// have mounts of their own, so nobody else sees it.
func mountSys(dir string) error {
	if err := unix.Mount("sysfs", dir, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("sysfs: mount: %w", err)
	}
	return nil
}

// receiveApart has the stack process what an interface receives on one processor (RPS) instead of in the context of whoever sent it.
// On a veth the controller would otherwise pay, in the system call that sends an acknowledgement, for all that the sender's TCP does
// about it, up to the next data on the wire: two machines' work in one thread. A kernel without RPS does without.
func receiveApart(sys, name string) error {
	err := os.WriteFile(filepath.Join(sys, "class/net", name, "queues/rx-0/rps_cpus"), []byte("1"), 0)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%s: receive packet steering: %w", name, err)
}

// nic reads an interface's counters.
func nic(name string) (nicCounters, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nicCounters{}, fmt.Errorf("%s: %w", name, err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return nicCounters{}, fmt.Errorf("%s: the kernel told no counters", name)
	}
	return nicCounters{RxPackets: s.RxPackets, RxBytes: s.RxBytes, RxDropped: s.RxDropped}, nil
}

// ipReceived is how many IP packets the namespace's stack has taken in. Packets that GRO merged are one.
func ipReceived() (total uint64, err error) {
	for _, x := range []struct{ file, table, counter string }{
		{"/proc/net/snmp", "Ip:", "InReceives"}, {"/proc/net/snmp6", "", "Ip6InReceives"},
	} {
		b, err := os.ReadFile(x.file)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return 0, fmt.Errorf("packet counters: %w", err)
		}
		total += procCounter(string(b), x.table, x.counter)
	}
	return total, nil
}

// procCounter reads one counter of /proc/net/snmp (a line of names, then a line of numbers, per table) or, without a
// table, of /proc/net/snmp6 (a name and a number per line); 0 if it is not there.
func procCounter(text, table, name string) uint64 {
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		value := ""
		switch {
		case table == "" && len(f) == 2 && f[0] == name:
			value = f[1]
		case table != "" && len(f) > 0 && f[0] == table && names == nil:
			names = f
			continue
		case table != "" && len(f) > 0 && f[0] == table:
			if i := slices.Index(names, name); i > 0 && i < len(f) {
				value = f[i]
			}
		}
		if value != "" {
			n, _ := strconv.ParseUint(value, 10, 64)
			return n
		}
	}
	return 0
}

// socketBuffers sizes the buffers of new connections, which tcp_rmem and tcp_wmem do per namespace: a few megabytes from
// the start are what bulk transfers ask for. Superframes do not grow by it. They end where the sender's TSO bursts end,
// because Linux (since 5.4) marks the last segment of each with PSH; at the demo's rates a burst is 64 KB.
func socketBuffers() error {
	if err := setSysctl("ipv4/tcp_rmem", "4096 1048576 16777216"); err != nil {
		return err
	}
	return setSysctl("ipv4/tcp_wmem", "4096 4194304 16777216")
}
