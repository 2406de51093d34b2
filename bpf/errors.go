package bpf

import "errors"

// Errors to test for with errors.Is. Each is wrapped with what was tried and what the kernel said.
var (
	// ErrForeignXDP: the interface carries an XDP program that is not ours to replace.
	ErrForeignXDP = errors.New("another XDP program is attached")
	// ErrUnsupported: the kernel or the driver cannot do this (for Attach: not in the mode asked for).
	ErrUnsupported = errors.New("not supported by the kernel or the driver")
	// ErrPermission: CAP_BPF and CAP_NET_ADMIN are missing.
	ErrPermission = errors.New("no permission for BPF (root, or CAP_BPF and CAP_NET_ADMIN)")
	// ErrAttached: TapProgram.Attach was called twice.
	ErrAttached = errors.New("already attached")
	// ErrNoDevice: the interface index names no interface of this network namespace.
	ErrNoDevice = errors.New("no such interface")
	// ErrParts: a descriptor handed over is not what it should be.
	ErrParts = errors.New("not what was to be handed over")
	// ErrNoMap: there is no map of AF_XDP sockets at a path.
	ErrNoMap = errors.New("no XSKMAP")
	// ErrPlaceTaken: another socket is at that place of an XSKMAP.
	ErrPlaceTaken = errors.New("another socket is in it")
	// ErrNoPort: DeletePort was asked for a key that is not in the map.
	ErrNoPort = errors.New("no such port")
	// ErrName: a VM's name is empty, too long, or has a zero byte in it.
	ErrName = errors.New("not a VM's name")
	// ErrFull: the map of ports has no room for another VM.
	ErrFull = errors.New("too many ports")
	// ErrTooManyExcluded: the map of excluded TCP ports, of all VMs of an interface together, has no room for another.
	ErrTooManyExcluded = errors.New("too many excluded TCP ports")
)
