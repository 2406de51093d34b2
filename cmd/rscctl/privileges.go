package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// needed are the capabilities that attaching and detaching need while the controller runs; docs/security.md says what each is for. Those
// of the second group reach far, each for one thing, and the service's unit grants none of them.
var needed = []cap.Value{
	cap.NET_ADMIN, cap.NET_RAW, cap.BPF, cap.PERFMON, cap.IPC_LOCK, cap.CHOWN,

	cap.SYS_ADMIN,    // names of others' BPF programs; a veth's peer in another namespace
	cap.SYS_PTRACE,   // the proof by the command line of who has a tap open
	cap.DAC_OVERRIDE, // a socket's folder that belongs to QEMU's user
	cap.FOWNER,       // the mode of a socket there
}

// dropPrivileges gives up, on all threads and for good, the capabilities that no part of run needs, also for programs that are started.
func dropPrivileges() error {
	have := cap.GetProc()
	keep := cap.NewSet()
	for _, v := range needed {
		for _, f := range []cap.Flag{cap.Permitted, cap.Effective} {
			on, err := have.GetFlag(f, v)
			if err != nil {
				continue // the kernel is older than the capability
			}
			if err := keep.SetFlag(f, on, v); err != nil {
				return fmt.Errorf("%v: %w", v, err)
			}
		}
	}
	var beyond []cap.Value
	for v := range cap.MaxBits() {
		if on, err := keep.GetFlag(cap.Permitted, v); err == nil && !on {
			beyond = append(beyond, v)
		}
	}
	var unbound error
	if may, err := have.GetFlag(cap.Effective, cap.SETPCAP); err == nil && may { // without it whoever started us has set the bounds
		unbound = cap.DropBound(beyond...)
	}
	_, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	return errors.Join(unbound, err, cap.ResetAmbient(), keep.SetProc())
}
