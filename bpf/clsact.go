package bpf

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Before TCX (Linux 6.6) a program hangs on an interface as a filter of the qdisc clsact. A filter outlives the process that made
// it, so it carries what its successor must know in its name: the program's, and whether the qdisc was made for this filter as
// well, and goes with it when nobody else uses it.
const (
	withQdisc = "+clsact"

	filterHandle   = 1
	filterPriority = 0x5253 // lets filters of the usual small priorities be, and would be odd for anyone else
)

// tcFilter is the filter of a hook on an interface. Its netlink socket stays in the network namespace of the interface.
type tcFilter struct {
	hook    tcHook
	h       *netlink.Handle
	ifindex int
}

func addFilter(hook tcHook, ifindex, prog int) (*tcFilter, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: open: %w", err)
	}
	f := &tcFilter{hook: hook, h: h, ifindex: ifindex}
	if err := f.add(prog); err != nil {
		h.Close()
		return nil, err
	}
	return f, nil
}

func (f *tcFilter) add(prog int) error {
	owed, err := f.removeOurs()
	if err != nil {
		return err
	}
	name := f.hook.name
	made, err := f.ensureQdisc()
	if err != nil {
		return err
	}
	if made || owed {
		name += withQdisc
	}
	b := &netlink.BpfFilter{Fd: prog, Name: name, DirectAction: true, FilterAttrs: netlink.FilterAttrs{
		LinkIndex: f.ifindex, Parent: f.hook.parent, Handle: filterHandle, Protocol: unix.ETH_P_ALL, Priority: filterPriority,
	}}
	if err := f.h.FilterAdd(b); err != nil {
		err = fmt.Errorf("filter (module cls_bpf): %w", err)
		if made {
			err = errors.Join(err, f.removeQdisc())
		}
		return err
	}
	return nil
}

// link is what the netlink package asks for where an index would do.
func (f *tcFilter) link() netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: f.ifindex}}
}

// ensureQdisc adds clsact unless it, or the older qdisc ingress, which takes filters just as well, is there.
func (f *tcFilter) ensureQdisc() (made bool, err error) {
	all, err := f.h.QdiscList(f.link())
	if err != nil {
		return false, fmt.Errorf("qdiscs: %w", err)
	}
	for _, q := range all {
		if q.Attrs().Parent == netlink.HANDLE_CLSACT {
			return false, nil
		}
	}
	err = f.h.QdiscAdd(f.qdisc())
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("qdisc clsact (module sch_ingress): %w", err)
	}
	return err == nil, nil
}

func (f *tcFilter) qdisc() netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: f.ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

// ours lists the filters of the hook's program, whoever made them.
func (f *tcFilter) ours() (out []*netlink.BpfFilter, err error) {
	list, err := f.h.FilterList(f.link(), f.hook.parent)
	if err != nil {
		return nil, fmt.Errorf("filters: %w", err)
	}
	for _, one := range list {
		if b, ok := one.(*netlink.BpfFilter); ok && (b.Name == f.hook.name || b.Name == f.hook.name+withQdisc) {
			out = append(out, b)
		}
	}
	return out, nil
}

// removeOurs takes away every filter of the hook's program that is there, and the qdisc if it was made for one and holds no other. owed:
// it was made for one, and stays for others.
func (f *tcFilter) removeOurs() (owed bool, err error) {
	list, err := f.ours()
	if err != nil {
		return false, err
	}
	madeQdisc := false
	for _, b := range list {
		madeQdisc = madeQdisc || b.Name == f.hook.name+withQdisc
		b.Fd = -1
		if err := f.h.FilterDel(b); err != nil && !errors.Is(err, unix.ENOENT) {
			return false, fmt.Errorf("filter: remove: %w", err)
		}
	}
	if !madeQdisc {
		return false, nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if list, err := f.h.FilterList(f.link(), parent); err != nil || len(list) > 0 {
			return err == nil, err // somebody else uses it by now
		}
	}
	return false, f.removeQdisc()
}

func (f *tcFilter) removeQdisc() error {
	err := f.h.QdiscDel(f.qdisc())
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("qdisc clsact: remove: %w", err)
	}
	return nil
}

// remove takes the filter off. That the interface is gone already is no error.
func (f *tcFilter) remove() error {
	defer f.h.Close()
	if _, err := f.removeOurs(); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// TapFilters returns the kernel ids of the programs that hang on a tap by a filter of ours, in the network namespace of the calling
// thread. A filter whose program no process has open was left by one that died: RemoveStaleTap.
func TapFilters(ifindex int) (programs []uint32, err error) { return filtersOf(ifindex, tapHook) }

// HostFilters is TapFilters for the programs of a HostProgram on an uplink: RemoveStaleHost.
func HostFilters(ifindex int) (programs []uint32, err error) {
	var hooks []tcHook
	for _, at := range hostPlaces {
		if !at.way {
			hooks = append(hooks, at.hook)
		}
	}
	return filtersOf(ifindex, hooks...)
}

func filtersOf(ifindex int, hooks ...tcHook) (programs []uint32, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("tc: netlink: %w", err)
	}
	defer h.Close()
	for _, hook := range hooks {
		list, err := (&tcFilter{h: h, ifindex: ifindex, hook: hook}).ours()
		if err != nil {
			return nil, fmt.Errorf("tc: %w", err)
		}
		for _, b := range list {
			programs = append(programs, uint32(b.Id))
		}
	}
	return programs, nil
}

// removeStale is remove for what another process left, in the network namespace of the calling thread.
func (h tcHook) removeStale(ifindex int) error {
	n, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("tc: netlink: %w", err)
	}
	f := tcFilter{hook: h, h: n, ifindex: ifindex}
	if err := f.remove(); err != nil {
		return fmt.Errorf("tc: remove what was left: %w", err)
	}
	return nil
}

// RemoveStaleTap removes what a process that was killed left on a tap, in the network namespace of the calling thread: with
// clsact its filter, and the qdisc if that process had made it. With TCX nothing is left. That there is nothing to remove, or
// no tap, is no error.
func RemoveStaleTap(ifindex int) error { return tapHook.removeStale(ifindex) }
