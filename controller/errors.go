package controller

import "errors"

// Sentinels of the control side. Each message that wraps one says what failed, on what, and what to do.
var (
	// ErrHeld: the state directory, the control socket or an interface belongs to another controller.
	ErrHeld = errors.New("held by another controller")
	// ErrTaken: a VM name or a (VLAN, MAC) is already attached.
	ErrTaken = errors.New("already taken")
	// ErrUnknownVM and ErrUnknownIface: the operator named something that is not attached.
	ErrUnknownVM    = errors.New("no such VM is attached")
	ErrUnknownIface = errors.New("not attached")
	// ErrFiltered: rules of the host touch the path that a VM's frames would no longer take.
	ErrFiltered = errors.New("rules would be bypassed")
	// ErrUsage: the request itself is wrong; the command line exits with 2.
	ErrUsage = errors.New("wrong usage")
	// ErrWorker: a worker did not answer within its bound, or is gone.
	ErrWorker = errors.New("worker does not answer")
	// ErrMTU: the interface's frames do not fit a UMEM chunk.
	ErrMTU = errors.New("MTU too large")
)
