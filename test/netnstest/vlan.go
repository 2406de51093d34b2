package netnstest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PushVLAN gives every frame that leaves this side an 802.1Q tag, as an 802.1Q device over the interface would (one
// needs a kernel module; this does not). While the side's tx-vlan-offload is on (Options.KeepTxVLAN), the tag travels
// beside the frame and the receiver's XDP program sees an untagged frame: an accelerated tag. With it off the tag is in
// the frame. stop takes the program off again; the end of the test does too.
func (s *Side) PushVLAN(t testing.TB, tci uint16) (stop func()) {
	t.Helper()
	Need(t, BPF)
	// R1 is the skb on entry. The tag's protocol is in network order, the TCI in host order (bpf-helpers(7)).
	const protocol = unix.ETH_P_8021Q>>8 | unix.ETH_P_8021Q&0xff<<8
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "push_vlan", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, protocol),
			asm.Mov.Imm(asm.R3, int32(tci)),
			asm.FnSkbVlanPush.Call(),
			asm.Mov.Imm(asm.R0, -1), // TCX_NEXT, TC_ACT_UNSPEC
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatalf("push vlan: %v", err)
	}
	var detach func() error
	err = s.NS.Do(func() (err error) {
		detach, err = s.attachEgress(prog)
		return err
	})
	if err != nil {
		prog.Close()
		Skip(t, fmt.Sprintf("a BPF program on egress, by TCX (Linux 6.6) or clsact (CONFIG_NET_CLS_BPF): %v", err))
	}
	done := false
	stop = func() {
		t.Helper()
		if done {
			return
		}
		done = true
		if err := s.NS.Do(detach); err != nil {
			t.Errorf("push vlan: detach: %v", err)
		}
		prog.Close()
	}
	t.Cleanup(stop)
	return stop
}

// attachEgress attaches by TCX, and on kernels that have none by a clsact qdisc. It runs in the side's namespace, and so
// does what it returns.
func (s *Side) attachEgress(prog *ebpf.Program) (detach func() error, err error) {
	l, err := link.AttachTCX(link.TCXOptions{Interface: s.Index, Program: prog, Attach: ebpf.AttachTCXEgress})
	if err == nil {
		return l.Close, nil
	}
	if !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) {
		return nil, err
	}
	attrs := netlink.QdiscAttrs{LinkIndex: s.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	qdisc := &netlink.Clsact{QdiscAttrs: attrs}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		return nil, fmt.Errorf("clsact: %w", err)
	}
	remove := func() error { return netlink.QdiscDel(qdisc) }
	err = netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: s.Index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Fd: prog.FD(), Name: "push_vlan", DirectAction: true,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("clsact filter: %w", err), remove())
	}
	return remove, nil
}
