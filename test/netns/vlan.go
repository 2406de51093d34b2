package netnstest

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// PushVLAN gives every frame that leaves this side an 802.1Q tag, as an 802.1Q device over the interface would (one
// needs a kernel module; this does not). While the side's tx-vlan-offload is on (Options.KeepTxVLAN), the tag travels
// beside the frame and the receiver's XDP program sees an untagged frame: an accelerated tag. With it off the tag is in
// the frame. stop takes the program off again; the end of the test does too.
func (s *Side) PushVLAN(t testing.TB, tci uint16) (stop func()) {
	t.Helper()
	Need(t, BPF, TCX)
	// R1 is the skb on entry. The tag's protocol is in network order, the TCI in host order (bpf-helpers(7)).
	const protocol = unix.ETH_P_8021Q>>8 | unix.ETH_P_8021Q&0xff<<8
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "push_vlan", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, protocol),
			asm.Mov.Imm(asm.R3, int32(tci)),
			asm.FnSkbVlanPush.Call(),
			asm.Mov.Imm(asm.R0, -1), // TCX_NEXT
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatalf("push vlan: %v", err)
	}
	var l link.Link
	s.Do(t, func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: s.Index, Program: prog, Attach: ebpf.AttachTCXEgress})
		return err
	})
	done := false
	stop = func() {
		if !done {
			done = true
			l.Close()
			prog.Close()
		}
	}
	t.Cleanup(stop)
	return stop
}
