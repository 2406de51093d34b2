package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/netns"
)

// loan is two NICs of the host with a wire between them, which the demo has instead of a veth pair, and what they were like before. The
// parent makes it and hands it to the controller's process, which outlives a parent that is killed: either can give them back. The second
// one finds them at home as they were.
type loan struct {
	NICs [2]lent   `json:"nics"` // the sender's, the controller's
	Home string    `json:"home"` // the namespaces' files: of where they come from,
	Away [2]string `json:"away"` // and of where each is meanwhile

	// Open, so that a namespace outlives its processes: the kernel would move a NIC from a dead one to where it may not belong, and
	// remove a veth.
	home *netns.NS
	away [2]*netns.NS
}

// lent is a NIC as it was.
type lent struct {
	Name      string         `json:"name"`
	MTU       int            `json:"mtu"`
	Up        bool           `json:"up"`
	Addresses []netlink.Addr `json:"addresses"`
	Offloads  netdev.Change  `json:"offloads"`
}

// Refusals of a NIC that the host would miss, or that is none.
var (
	errOneNIC = errors.New("a wire has two ends")
	errInUse  = errors.New("the host uses it")
)

// borrow looks at two NICs of the calling thread's namespace and remembers what they are like. Nothing of them is changed.
func borrow(names [2]string) (_ *loan, err error) {
	if names[0] == names[1] {
		return nil, fmt.Errorf("demo: wire: %s: %w", names[0], errOneNIC)
	}
	l := &loan{}
	if l.home, err = netns.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("demo: wire: %w", err)
	}
	l.Home = pathFor(l.home)
	err = netdev.With(func(h *netdev.Handle) error {
		for i, name := range names {
			if l.NICs[i], err = inspect(h, name); err != nil {
				return fmt.Errorf("demo: wire: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		l.home.Close()
		return nil, err
	}
	return l, nil
}

// pathFor is how another process opens a namespace that is open here.
func pathFor(n *netns.NS) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }

func inspect(h *netdev.Handle, name string) (n lent, err error) {
	f, err := h.Inspect(name)
	if err != nil {
		return n, err
	}
	if f.Master != "" {
		return n, fmt.Errorf("%s: %w: it belongs to %s", name, errInUse, f.Master)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return n, fmt.Errorf("%s: %w", name, err)
	}
	// A route that somebody has set leads somewhere: to whoever starts this by ssh, perhaps. Those that come with an address go with it.
	routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return n, fmt.Errorf("%s: routes: %w", name, err)
	}
	for _, r := range routes {
		if r.Protocol != unix.RTPROT_KERNEL {
			return n, fmt.Errorf("%s: %w: a route leads over it (%v)", name, errInUse, r.Dst)
		}
	}
	n = lent{Name: name, MTU: f.MTU, Up: f.Up}
	if n.Addresses, err = netlink.AddrList(link, netlink.FAMILY_ALL); err != nil {
		return n, fmt.Errorf("%s: addresses: %w", name, err)
	}
	n.Offloads, err = h.Offloads(name)
	return n, err
}

// open opens the namespaces where the NICs go, which are those of two processes.
func (l *loan) open(pids [2]int) (err error) {
	for i, pid := range pids {
		if l.away[i], err = netns.Open(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
			return fmt.Errorf("demo: wire: %w", err)
		}
		l.Away[i] = pathFor(l.away[i])
	}
	return nil
}

// adopt opens what the parent has open.
func (l *loan) adopt() (err error) {
	if l.home, err = netns.Open(l.Home); err != nil {
		return err
	}
	for i, path := range l.Away {
		if l.away[i], err = netns.Open(path); err != nil {
			return err
		}
	}
	return nil
}

// take moves the NICs to where they are needed.
func (l *loan) take() error {
	for i, n := range l.NICs {
		if err := move(n.Name, l.home, l.away[i]); err != nil {
			return err
		}
		if err := l.away[i].Do(func() error { return bare(n.Name) }); err != nil {
			return err
		}
	}
	return nil
}

// move moves an interface, whose addresses and queueing discipline the kernel forgets on the way.
func move(name string, from, to *netns.NS) error {
	return from.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetDown(l)
		}
		if err == nil {
			err = netlink.LinkSetNsFd(l, to.FD())
		}
		if err != nil {
			return fmt.Errorf("%s: move to another namespace: %w", name, err)
		}
		return nil
	})
}

// bare makes an end of a wire of a veth, which is not one by itself.
func bare(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if l.Type() != "veth" {
		return nil
	}
	return asWire(name)
}

// carrierTimeout is how long two NICs may take to agree on their speed.
const carrierTimeout = 15 * time.Second

// carriers waits until both ends of the wire see each other.
func (l *loan) carriers(ctx context.Context) error {
	for end := time.Now().Add(carrierTimeout); ; {
		silent := ""
		for i, n := range l.NICs {
			err := l.away[i].Do(func() error {
				link, err := netlink.LinkByName(n.Name)
				if err == nil && link.Attrs().RawFlags&unix.IFF_RUNNING == 0 {
					silent = n.Name
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("demo: wire: %s: %w", n.Name, err)
			}
		}
		if silent == "" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("demo: wire: %s: no carrier within %v: is there a wire between %s and %s?", silent, carrierTimeout, l.NICs[0].Name, l.NICs[1].Name)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// giveBack brings the NICs home, as they were.
func (l *loan) giveBack() error {
	var errs []error
	for i, n := range l.NICs {
		if away := l.away[i]; away != nil && has(away, n.Name) {
			errs = append(errs, move(n.Name, away, l.home))
		}
		errs = append(errs, l.home.Do(n.restore))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("demo: give back: %w", err)
	}
	return nil
}

func has(n *netns.NS, name string) bool {
	return n.Do(func() error {
		_, err := netlink.LinkByName(name)
		return err
	}) == nil
}

// restore makes a NIC that is at home what it was.
func (n lent) restore() error {
	l, err := netlink.LinkByName(n.Name)
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	errs := []error{
		netlink.LinkSetMTU(l, n.MTU),
		netdev.With(func(h *netdev.Handle) error { return h.UndoOffload(n.Name, n.Offloads) }),
	}
	if n.Up {
		errs = append(errs, netlink.LinkSetUp(l))
	}
	for _, a := range n.Addresses {
		a.LinkIndex = l.Attrs().Index
		a.Flags &^= unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
		errs = append(errs, netlink.AddrReplace(l, &a))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return nil
}

// end gives back what still is away, and closes the namespaces. Without a loan there is nothing to do.
func (l *loan) end() error {
	if l == nil {
		return nil
	}
	err := l.giveBack()
	for _, n := range append(l.away[:], l.home) {
		if n != nil {
			err = errors.Join(err, n.Close())
		}
	}
	return err
}

// napi is what an operator may tune of an interface's NAPI, by the file that has it. An offload it is none, and the kernel's own way
// (see Extra) changes it.
var napiFiles = [...]string{"gro_flush_timeout", "napi_defer_hard_irqs"}

// napi reads an interface's, in the caller's namespace.
func napi(name string) (values [len(napiFiles)]string, err error) {
	err = withSys(func(sys string) error {
		for i, f := range napiFiles {
			b, err := os.ReadFile(filepath.Join(sys, "class/net", name, f))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			values[i] = strings.TrimSpace(string(b))
		}
		return nil
	})
	return values, err
}

// setNAPI writes what napi has read.
func setNAPI(name string, values [len(napiFiles)]string) error {
	return withSys(func(sys string) error {
		for i, f := range napiFiles {
			if _, err := strconv.Atoi(values[i]); err != nil {
				continue // this kernel does not have it
			}
			if err := os.WriteFile(filepath.Join(sys, "class/net", name, f), []byte(values[i]), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// withSys calls fn with a sysfs of the caller's namespace, in the folder that the controller's process has for itself.
func withSys(fn func(sys string) error) (err error) {
	sys := filepath.Join(netns.Dir, "demo-sys")
	if err := os.Mkdir(sys, 0o700); err != nil {
		return err
	}
	defer os.Remove(sys)
	if err := mountSys(sys); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(sys, 0)) }()
	return fn(sys)
}
