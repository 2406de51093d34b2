package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names of the ways a TC program hangs on its interface, as TapProgram.Mode returns them.
const (
	ModeTCX    = "tcx"    // a BPF link, gone with its process (Linux 6.6)
	ModeClsact = "clsact" // a filter, which stays behind when the process dies (see RemoveStaleTap, RemoveStaleObserver)
)

// tcHook is where one of our TC programs hangs: its name as the kernel shows it, and the place for TCX and for clsact.
type tcHook struct {
	name   string
	at     ebpf.AttachType
	parent uint32
}

// tcAttachment is a program on an interface: a link or a filter.
type tcAttachment struct {
	link   link.Link
	filter *tcFilter
}

// attach hangs a program on an interface of the calling thread's namespace: by TCX, in front of all other programs, or where the
// kernel has no TCX by a filter under clsact. Errors: ErrUnsupported, ErrPermission, ErrNoDevice.
func (h tcHook) attach(ifindex int, prog *ebpf.Program) (*tcAttachment, error) {
	a, err := h.attachTCX(ifindex, prog)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return h.attachFilter(ifindex, prog)
	}
	return a, err
}

// attachAlone is attach where another process may have left the program behind by a filter: that one goes.
func (h tcHook) attachAlone(ifindex int, prog *ebpf.Program) (*tcAttachment, error) {
	a, err := h.attachTCX(ifindex, prog)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return h.attachFilter(ifindex, prog) // which replaces it
	}
	if err != nil {
		return nil, err
	}
	return a, h.removeStale(ifindex)
}

// attachTCX is attach by TCX alone. ebpf.ErrNotSupported is in the error's chain where the kernel has none.
func (h tcHook) attachTCX(ifindex int, prog *ebpf.Program) (*tcAttachment, error) {
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: h.at, Anchor: link.Head()})
	if err != nil {
		return nil, tcError("attach", ifindex, err)
	}
	return &tcAttachment{link: l}, nil
}

// attachFilter is attach by clsact.
func (h tcHook) attachFilter(ifindex int, prog *ebpf.Program) (*tcAttachment, error) {
	f, err := addFilter(h, ifindex, prog.FD())
	if err != nil {
		return nil, tcError("attach", ifindex, err)
	}
	return &tcAttachment{filter: f}, nil
}

// hangs tells whether the hook's program is on an interface, whoever put it there. Where that cannot be asked the answer is no.
func (h tcHook) hangs(ifindex int) bool {
	if r, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: h.at}); err == nil {
		for _, p := range r.Programs {
			if NameOf(p.ID) == h.name {
				return true
			}
		}
	}
	n, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false
	}
	defer n.Close()
	filters, err := (&tcFilter{hook: h, h: n, ifindex: ifindex}).ours()
	return err == nil && len(filters) > 0
}

// tcError sorts what the kernel answers.
func tcError(doing string, ifindex int, err error) error {
	what := ErrUnsupported
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		what = ErrPermission
	case errors.Is(err, unix.ENODEV), !exists(ifindex):
		what = ErrNoDevice
	}
	return fmt.Errorf("tc: %s: %w: %w", doing, what, err)
}

// detach takes the program off, at once. That the interface is gone is no error.
func (a *tcAttachment) detach() (err error) {
	switch {
	case a == nil:
		return nil
	case a.link != nil:
		// Closing alone would leave the moment of detaching to the kernel's work queue.
		if err = a.link.Detach(); errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
			err = nil // the interface went first and took the program with it
		}
		err = errors.Join(err, a.link.Close())
	default:
		err = a.filter.remove()
	}
	if err != nil {
		return fmt.Errorf("tc: detach: %w", err)
	}
	return nil
}

// hangs reports whether the program still is on its interface.
func (a *tcAttachment) hangs() bool {
	if a.link == nil {
		list, err := a.filter.ours()
		return err == nil && len(list) > 0
	}
	_, on := tcxProgram(a.link)
	return on
}

// tcxProgram is the kernel's number of the program that a link has on its interface; on is false for a link that was detached, with its interface or by
// somebody.
func tcxProgram(l link.Link) (id uint32, on bool) {
	info, err := l.Info()
	if err != nil || info.TCX() == nil || info.TCX().Ifindex == 0 {
		return 0, false
	}
	return uint32(info.Program), true
}

// leave closes what this process has of it, and leaves the program where it is. nil is no error.
func (a *tcAttachment) leave() error {
	switch {
	case a == nil:
		return nil
	case a.link != nil:
		return closeLink(a.link)
	}
	a.filter.h.Close()
	return nil
}

// mode returns ModeTCX, ModeClsact, or "" for nil.
func (a *tcAttachment) mode() string {
	switch {
	case a == nil:
		return ""
	case a.link != nil:
		return ModeTCX
	}
	return ModeClsact
}
