package bpf

import (
	"errors"
	"fmt"
	"net"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Names of the XDP modes, as Mode returns them.
const (
	ModeNative  = "native"
	ModeGeneric = "generic"
)

// Attach puts the program on its interface, native or generic, through a BPF link that dies with this process: when the
// controller is gone, the kernel has the frames back. Errors: ErrForeignXDP, ErrUnsupported (in this mode), ErrPermission,
// ErrNoDevice. A program that reads tags (ReadsVLANTag) refuses generic mode.
func (p *Program) Attach(native bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	mode, flags := ModeGeneric, link.XDPGenericMode
	if native {
		mode, flags = ModeNative, link.XDPDriverMode
	}
	if p.link != nil {
		return fmt.Errorf("xdp: attach %s: %w (ours, %s)", mode, ErrForeignXDP, p.mode)
	}
	if p.readsTag && !native {
		return fmt.Errorf("xdp: attach generic: %w: the program was loaded for native mode", ErrUnsupported)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: p.prog, Interface: p.ifindex, Flags: flags})
	if err != nil {
		return attachError(p.ifindex, mode, err)
	}
	p.link, p.mode = l, mode
	return nil
}

// attachError sorts what the kernel answers (net/core/dev.c dev_xdp_attach, and the drivers' ndo_bpf).
func attachError(ifindex int, mode string, err error) error {
	what, hint := ErrUnsupported, ""
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		what = ErrForeignXDP
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		what = ErrPermission
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL) && !exists(ifindex):
		what = ErrNoDevice
	case errors.Is(err, unix.ERANGE):
		hint = ": the MTU is too large for XDP (veth: the peer's counts as well)"
	case errors.Is(err, unix.ENOSPC):
		hint = ": fewer RX queues than the driver needs for XDP (veth: at least the peer's TX queues)"
	}
	return fmt.Errorf("xdp: attach %s: %w%s: %w", mode, what, hint, err)
}

func exists(ifindex int) bool {
	_, err := net.InterfaceByIndex(ifindex)
	return err == nil
}

// Detach takes the program off the interface, at once. Detaching twice, or from an interface that is gone, is no error.
func (p *Program) Detach() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link == nil {
		return nil
	}
	// Closing alone would leave the moment of detaching to the kernel's work queue.
	err := p.link.Detach()
	if errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		err = nil // the interface went first and took the program with it
	}
	err = errors.Join(err, p.link.Close())
	p.link, p.mode = nil, ""
	if err != nil {
		return fmt.Errorf("xdp: detach: %w", err)
	}
	return nil
}

// Mode returns ModeNative, ModeGeneric, or "" when not attached.
func (p *Program) Mode() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mode
}

// ID is the kernel's id of the program, by which its interface shows it while it is attached; 0 when the kernel does not tell.
func (p *Program) ID() uint32 {
	id := p.id.Load()
	if id == 0 {
		id = progID(p.prog)
		p.id.Store(id)
	}
	return id
}
