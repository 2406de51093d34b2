package xsk

import "errors"

// Errors to test for with errors.Is. Each is wrapped with the call that failed and what to do about it.
var (
	ErrConfig      = errors.New("wrong configuration")
	ErrBusy        = errors.New("queue is in use by another AF_XDP socket")
	ErrUnsupported = errors.New("not supported by the kernel or the driver")
	ErrPermission  = errors.New("no permission (CAP_NET_RAW, and CAP_NET_ADMIN on older kernels)")
	ErrNoMemory    = errors.New("no memory for the UMEM")
	ErrNoDevice    = errors.New("no such interface or queue")
	ErrParts       = errors.New("descriptors that do not make this queue's AF_XDP socket")
	ErrDown        = errors.New("interface is down")
)
