package netdev

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// XDP is the XDP program of an interface.
type XDP struct {
	Attached bool
	Mode     string // "native", "generic", "offload" or "multi"; "" when nothing is attached
	ProgID   uint32 // kernel id of the program, 0 if unknown (multi)
}

// Off is the command that takes the program off interface name. Without its mode in the command, the kernel looks for a program in
// the mode that the driver prefers, and leaves one in another mode where it is.
func (x XDP) Off(name string) string {
	word := "xdp"
	switch x.Mode {
	case "generic":
		word = "xdpgeneric"
	case "offload":
		word = "xdpoffload"
	}
	return fmt.Sprintf("ip link set dev %s %s off", name, word)
}

// Facts are what is true of an interface at one moment.
type Facts struct {
	Name        string
	Index       int // ifindex
	MTU         int // bytes of an IP packet
	RxQueues    int // receive queues in use now (at least 1)
	MaxRxQueues int // receive queues the interface could use
	TxQueues    int // transmit queues in use now (at least 1)
	Driver      string
	Kind        string // "veth", "bridge", "tun", ...; "" for hardware
	MAC         net.HardwareAddr
	Master      string // the bridge or bond it belongs to, "" if none
	Up          bool   // administratively up (IFF_UP)
	Running     bool   // carrier and operation (IFF_RUNNING)
	Promisc     int    // how many users hold it in promiscuous mode
	XDP         XDP
	RxVLAN      bool // offloads of frames that come in, see the constants of these names
	LRO         bool
	GROHW       bool
	Backup      bool // it belongs to a bond, as a backup
	TSO         bool // it takes TCP superframes to send, of both families
	USO         bool // it takes UDP superframes to send
}

// Handle is the netlink and ethtool sockets of one network namespace. Its methods may be called from several goroutines.
type Handle struct {
	nl  *netlink.Handle
	raw map[int]*nl.SocketHandle // by netlink family, for requests that the netlink package has no words for
	eth *ethtool
}

// Open opens a handle in the namespace of the calling thread. Close it.
func Open() (*Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("netlink: open: %w", err)
	}
	n := &Handle{nl: h, raw: map[int]*nl.SocketHandle{}}
	for _, family := range []int{unix.NETLINK_ROUTE, unix.NETLINK_GENERIC} {
		s, err := nl.Subscribe(family)
		if err != nil {
			n.closeNetlink()
			return nil, fmt.Errorf("netlink: open: %w", err)
		}
		n.raw[family] = &nl.SocketHandle{Socket: s}
	}
	if n.eth, err = openEthtool(); err != nil {
		n.closeNetlink()
		return nil, err
	}
	return n, nil
}

// Close closes its sockets.
func (h *Handle) Close() error {
	h.closeNetlink()
	return h.eth.close()
}

func (h *Handle) closeNetlink() {
	h.nl.Close()
	for _, s := range h.raw {
		s.Close()
	}
}

// With runs fn on a handle made for one call, in the namespace of the calling thread.
func With(fn func(h *Handle) error) error {
	h, err := Open()
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

// Inspect returns the facts of the interface with that name.
func Inspect(name string) (f *Facts, err error) {
	err = With(func(h *Handle) error {
		f, err = h.Inspect(name)
		return err
	})
	return f, err
}

// Inspect returns the facts of the interface with that name, or ErrNoDevice.
func (h *Handle) Inspect(name string) (*Facts, error) {
	l, err := h.link(name)
	if err != nil {
		return nil, err
	}
	return h.facts(l), nil
}

// InspectIndex is Handle.InspectIndex in the calling thread's namespace.
func InspectIndex(index int) (f *Facts, err error) {
	err = With(func(h *Handle) error {
		f, err = h.InspectIndex(index)
		return err
	})
	return f, err
}

// InspectIndex returns the facts of the interface with that index, or ErrNoDevice.
func (h *Handle) InspectIndex(index int) (*Facts, error) {
	l, err := h.nl.LinkByIndex(index)
	if err != nil {
		return nil, linkError(fmt.Sprintf("index %d", index), err)
	}
	return h.facts(l), nil
}

func (h *Handle) link(name string) (netlink.Link, error) {
	if !validName(name) {
		return nil, fmt.Errorf("interface %q: %w", name, ErrNoDevice)
	}
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return nil, linkError(name, err)
	}
	return l, nil
}

// validName keeps out what the kernel would cut short, at IFNAMSIZ or at a NUL, and so take for another interface.
func validName(name string) bool {
	return name != "" && len(name) < unix.IFNAMSIZ && !strings.ContainsRune(name, 0)
}

// isNoDevice tells the errors by which the kernel says that an interface is gone.
func isNoDevice(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

func linkError(what string, err error) error {
	if isNoDevice(err) {
		err = ErrNoDevice
	}
	return fmt.Errorf("interface %s: %w", what, err)
}

func (h *Handle) facts(l netlink.Link) *Facts {
	a := l.Attrs()
	f := &Facts{
		Name: a.Name, Index: a.Index, MTU: a.MTU, MAC: a.HardwareAddr, Promisc: a.Promisc,
		Up: a.RawFlags&unix.IFF_UP != 0, Running: a.RawFlags&unix.IFF_RUNNING != 0,
		MaxRxQueues: max(a.NumRxQueues, 1),
	}
	if k := l.Type(); k != "device" {
		f.Kind = k
	}
	f.Driver = h.eth.driver(a.Name)
	c, _ := h.eth.channels(a.Name) // zero where the driver does not tell
	f.RxQueues, f.TxQueues = h.rxQueues(a, c), txQueues(a, c)
	if a.MasterIndex > 0 {
		if m, err := h.nl.LinkByIndex(a.MasterIndex); err == nil {
			f.Master = m.Attrs().Name
		}
	}
	if m, ok := a.Slave.(*netlink.BondSlave); ok {
		f.Backup = m.State == netlink.BondStateBackup
	}
	if x := a.Xdp; x != nil && x.Attached {
		f.XDP = XDP{Attached: true, Mode: xdpMode(x.AttachMode), ProgID: x.ProgId}
	}
	if bits, _, err := h.features(a.Name, "rx-*"); err == nil {
		for _, b := range bits {
			switch b.name {
			case featurePattern(RxVLAN):
				f.RxVLAN = b.active
			case featurePattern(LRO):
				f.LRO = b.active
			case GROHW:
				f.GROHW = b.active
			}
		}
	}
	if bits, _, err := h.features(a.Name, "tx-*-segmentation"); err == nil {
		tso := map[string]bool{}
		for _, b := range bits {
			tso[b.name] = b.active
		}
		f.TSO = tso["tx-tcp-segmentation"] && tso["tx-tcp6-segmentation"]
		f.USO = tso["tx-udp-segmentation"]
	}
	return f
}

// xdpMode names IFLA_XDP_ATTACHED values (linux/if_link.h, XDP_ATTACHED_*).
func xdpMode(mode uint32) string {
	switch mode {
	case 1:
		return "native"
	case 2:
		return "generic"
	case 3:
		return "offload"
	case 4:
		return "multi"
	}
	return ""
}
