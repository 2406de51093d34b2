package bpf

import (
	"runtime"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// testRun is what BPF_PROG_TEST_RUN takes (include/uapi/linux/bpf.h, union bpf_attr).
type testRun struct {
	prog, answer    uint32
	dataIn, dataOut uint32 // bytes
	in, out         uint64
	repeat, took    uint32
	ctxIn, ctxOut   uint32
	ctx, ctxBack    uint64
	flags, cpu      uint32
	batch, _        uint32
}

// runInARow gives a program frames with as little between them as can be: what lies between two of ebpf's own runs is longer than a train may
// take once the race detector looks on. The program must leave the frames alone.
func runInARow(t *testing.T, prog *ebpf.Program, frames [][]byte) {
	t.Helper()
	runs := make([]testRun, len(frames))
	for i, f := range frames {
		runs[i] = testRun{prog: uint32(prog.FD()), dataIn: uint32(len(f)), in: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(f)))), repeat: 1}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range runs {
		r := &runs[i]
		if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(r)), unsafe.Sizeof(*r)); errno != 0 || int32(r.answer) != -1 {
			t.Fatalf("frame %d: answer %d, %v", i, int32(r.answer), errno)
		}
	}
	runtime.KeepAlive(frames)
}
