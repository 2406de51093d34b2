package netdev_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// in opens a handle in a side's namespace, closed when the test ends.
func in(t *testing.T, s *netnstest.Side) *netdev.Handle {
	t.Helper()
	var h *netdev.Handle
	s.Do(t, func() (err error) { h, err = netdev.Open(); return err })
	t.Cleanup(func() { h.Close() })
	return h
}

func inspect(t *testing.T, h *netdev.Handle, name string) *netdev.Facts {
	t.Helper()
	f, err := h.Inspect(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// passXDP attaches a program that lets everything pass.
func passXDP(t *testing.T, s *netnstest.Side, flags link.XDPAttachFlags) (detach func()) {
	t.Helper()
	netnstest.Need(t, netnstest.BPF)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	var l link.Link
	s.Do(t, func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: s.Index, Flags: flags})
		return err
	})
	t.Cleanup(func() { l.Close() })
	return func() { l.Close() }
}

func TestAnInterfaceThatIsNotThere(t *testing.T) {
	netnstest.NeedLiveKernel(t)
	for _, name := range []string{"", "rscnone0", "lo\x00x", strings.Repeat("lo", 20)} {
		if _, err := netdev.Inspect(name); !errors.Is(err, netdev.ErrNoDevice) {
			t.Errorf("Inspect(%q): %v", name, err)
		}
		if _, _, err := netdev.Offload(name, netdev.TxChecksum); !errors.Is(err, netdev.ErrNoDevice) {
			t.Errorf("Offload(%q): %v", name, err)
		}
		if err := netdev.SetOffload(name, netdev.TxChecksum, true); !errors.Is(err, netdev.ErrNoDevice) {
			t.Errorf("SetOffload(%q): %v", name, err)
		}
		if _, err := netdev.VethPeer(name); !errors.Is(err, netdev.ErrNoDevice) {
			t.Errorf("VethPeer(%q): %v", name, err)
		}
	}
}

func TestLoopbackNeedsNoPrivileges(t *testing.T) {
	netnstest.NeedLiveKernel(t)
	f, err := netdev.Inspect("lo")
	if err != nil {
		t.Fatal(err)
	}
	if f.Index != 1 || f.RxQueues != 1 || f.XDP.Attached || f.Master != "" {
		t.Errorf("%+v", f)
	}
	if _, err := netdev.VethPeer("lo"); !errors.Is(err, netdev.ErrNotVeth) {
		t.Errorf("VethPeer(lo): %v", err)
	}
}

func TestFactsOfAVeth(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{Queues: 2, MTU: 1400})
	h := in(t, n.B)
	f := inspect(t, h, n.B.Dev)
	if f.Name != n.B.Dev || f.Index != n.B.Index || f.MTU != 1400 || f.Driver != "veth" || f.Kind != "veth" ||
		!bytes.Equal(f.MAC, n.B.MAC) || !f.Up || !f.Running || f.RxQueues != 2 || f.MaxRxQueues != 2 || f.Master != "" {
		t.Errorf("%+v", f)
	}
	if g, err := h.InspectIndex(f.Index); err != nil || g.Name != f.Name {
		t.Errorf("by index: %+v, %v", g, err)
	}
	if _, err := h.InspectIndex(4711); !errors.Is(err, netdev.ErrNoDevice) {
		t.Errorf("by a wrong index: %v", err)
	}
}

func TestRxQueuesAreThoseInUse(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{Queues: 4})
	h := in(t, n.B)
	for _, q := range []uint32{1, 3, 4} {
		if err := h.SetChannels(n.B.Dev, q, 4); err != nil {
			t.Fatal(err)
		}
		f := inspect(t, h, n.B.Dev)
		if f.RxQueues != int(q) || f.MaxRxQueues != 4 {
			t.Errorf("%d of 4 queues: %+v", q, f)
		}
		if got, err := h.ListedQueues(f.Index); err != nil || got != int(q) {
			t.Logf("listed by the kernel: %d, %v", got, err) // Linux 6.8
		}
	}
}

func TestXDPIsSeenWithItsMode(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{})
	h := in(t, n.B)
	for mode, flags := range map[string]link.XDPAttachFlags{"native": link.XDPDriverMode, "generic": link.XDPGenericMode} {
		detach := passXDP(t, n.B, flags)
		if x := inspect(t, h, n.B.Dev).XDP; !x.Attached || x.Mode != mode || x.ProgID == 0 {
			t.Errorf("%s: %+v", mode, x)
		}
		detach()
		if x := inspect(t, h, n.B.Dev).XDP; x != (netdev.XDP{}) {
			t.Errorf("%s: after detach %+v", mode, x)
		}
	}
}

func TestTheMasterIsNamed(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{})
	addBridge(t, n.B, "br0")
	if f := inspect(t, in(t, n.B), n.B.Dev); f.Master != "br0" {
		t.Errorf("%+v", f)
	}
	if f := inspect(t, in(t, n.B), "br0"); f.Kind != "bridge" || f.Driver != "bridge" {
		t.Errorf("%+v", f)
	}
}

// addBridge makes a bridge and puts the side's interface into it.
func addBridge(t *testing.T, s *netnstest.Side, name string) {
	t.Helper()
	err := s.NS.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		br := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		l, err := netlink.LinkByIndex(s.Index)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, br)
	})
	if err != nil {
		netnstest.Skip(t, "a bridge (CONFIG_BRIDGE): "+err.Error())
	}
}

// The kernel writes its answer to an address. A goroutine's stack moves when it grows: no answer may depend on how much of it is
// in use.
func TestAnswersComeWhateverTheStack(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{Queues: 2})
	h := in(t, n.B)
	for depth := range 1500 {
		wrong := make(chan string, 1)
		go atDepth(depth, func() {
			rx, tx, err := h.Channels(n.B.Dev)
			driver := h.Driver(n.B.Dev)
			_, _, offload := h.Offload(n.B.Dev, netdev.TxChecksum)
			if driver != "veth" || rx != 2 || tx != 2 || err != nil || offload != nil {
				wrong <- fmt.Sprintf("driver %q, channels %d and %d: %v, %v", driver, rx, tx, err, offload)
			}
			close(wrong)
		})
		if s := <-wrong; s != "" {
			t.Fatalf("%d calls deep: %s", depth, s)
		}
	}
}

// atDepth calls fn with that many frames of a few words on the stack.
//
//go:noinline
func atDepth(n int, fn func()) byte {
	var pad [16]byte
	if n == 0 {
		fn()
	} else {
		pad[n%16] = atDepth(n-1, fn)
	}
	return pad[(n+1)%16]
}
