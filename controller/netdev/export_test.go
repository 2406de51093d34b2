package netdev

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// What the tests outside the package need of its inside. They are outside because the helper package that gives them
// namespaces uses this one.

// SetChannels changes the number of channels by the ioctl, as `ethtool -L` of old did.
func (h *Handle) SetChannels(name string, rx, tx uint32) error {
	b := request(channelsSize, unix.ETHTOOL_SCHANNELS)
	putWord(b, 5, rx)
	putWord(b, 6, tx)
	return h.eth.ioctl(name, b)
}

// Channels are the numbers of RX and TX channels.
func (h *Handle) Channels(name string) (rx, tx uint32, err error) {
	c, err := h.eth.channels(name)
	return c.rx, c.tx, err
}

// Break leaves h with a socket that answers nothing.
func (h *Handle) Break() error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	return unix.Dup3(null, h.raw[unix.NETLINK_ROUTE].Socket.GetFd(), unix.O_CLOEXEC)
}

// Driver is the driver's name.
func (h *Handle) Driver(name string) string { return h.eth.driver(name) }

// Offload is Handle.Offload on a handle made for one call.
func Offload(name, feature string) (on, fixed bool, err error) {
	err = With(func(h *Handle) error {
		on, fixed, err = h.Offload(name, feature)
		return err
	})
	return on, fixed, err
}

// ListedQueues counts RX queues by the netdev family.
func (h *Handle) ListedQueues(index int) (int, error) { return h.netdevRxQueues(index) }

// NewWatcherEvery is NewWatcher with another interval.
func NewWatcherEvery(interval time.Duration) (*Watcher, error) { return newWatcher(interval) }

// BuiltInBy is how builtIn decides, from files.
var BuiltInBy = builtInBy

// Bypassed is RuleReader.Read and Rules.Bypassed.
func Bypassed(uplink, tap int, ports *BridgePorts) (out []string, err error) {
	r, err := NewRuleReader().Read()
	if err != nil {
		return nil, err
	}
	err = With(func(h *Handle) error {
		out, err = r.Bypassed(h, uplink, tap, ports)
		return err
	})
	return out, err
}

// FindPorts finds the bridge between an uplink and a tap in the calling thread's namespace. See Handle.FindPorts.
func FindPorts(uplink int, vlan uint16, tap int) (b *BridgePorts, err error) {
	err = With(func(h *Handle) error {
		b, err = h.FindPorts(uplink, vlan, tap)
		return err
	})
	return b, err
}

// RefreshFDB is Handle.RefreshFDB in the calling thread's namespace.
func RefreshFDB(port int, vid uint16, senders []net.HardwareAddr) error {
	return With(func(h *Handle) error { return h.RefreshFDB(port, vid, senders) })
}

// ConfirmGuest is Handle.ConfirmGuest in the calling thread's namespace.
func ConfirmGuest(g Guest, p *Proof) (again *Proof, err error) {
	err = With(func(h *Handle) error {
		again, err = h.ConfirmGuest(g, p)
		return err
	})
	return again, err
}
