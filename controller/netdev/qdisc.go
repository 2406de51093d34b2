package netdev

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// QueueInFront gives an interface of the calling thread's network namespace what a NIC has by itself: a queueing discipline (pfifo_fast) in front of
// it, where frames wait while the device takes no more. A veth stops its queue for that since Linux 6.16; without a discipline it loses
// what its 256 places have no room for.
func QueueInFront(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = setQdisc(l.Attrs().Index, "pfifo_fast")
	}
	if err != nil {
		return fmt.Errorf("%s: queueing discipline: %w", name, linkErrno(err))
	}
	return nil
}

// setQdisc puts a queueing discipline without settings in place of the one that an interface has.
func setQdisc(ifindex int, kind string) error {
	return netlink.QdiscReplace(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Parent: netlink.HANDLE_ROOT}, QdiscType: kind})
}
