package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// CheckFrags tells whether the kernel lets an XDP program have frames in several pieces (Linux 5.18): it loads the smallest one. Error:
// ErrUnsupported.
func CheckFrags() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "frags", Type: ebpf.XDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("xdp: frames in several pieces (xdp.frags, Linux 5.18): %w", ErrUnsupported)
	case err != nil:
		return nil // who loads the one that is needed learns why
	}
	return prog.Close()
}
