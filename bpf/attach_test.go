package bpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// attached returns the id of the XDP program on the side's interface, 0 when there is none.
func attached(t *testing.T, s *netnstest.Side) (id int) {
	t.Helper()
	s.Do(t, func() error {
		f, err := netdev.Inspect(s.Dev)
		if err == nil && f.XDP.Attached {
			id = int(f.XDP.ProgID)
		}
		return err
	})
	return id
}

func TestAttachAndDetach(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	n := netnstest.Pair(t, netnstest.Options{Queues: 2, NoIPv6: true})
	for _, native := range []bool{true, false} {
		want := ModeGeneric
		if native {
			want = ModeNative
		}
		t.Run(want, func(t *testing.T) {
			n.B.Do(t, func() error {
				p, err := Load(LoadOptions{Ifindex: n.B.Index, Queues: 2, Native: native})
				if err != nil {
					return err
				}
				defer p.Close()
				if p.Mode() != "" {
					t.Errorf("mode %q before attaching", p.Mode())
				}
				if err := p.Attach(native); err != nil {
					return err
				}
				if p.Mode() != want {
					t.Errorf("mode %q", p.Mode())
				}
				if !native && p.ReadsVLANTag() {
					t.Error("generic mode cannot see tags beside the frame")
				}
				if err := p.Attach(native); !errors.Is(err, ErrForeignXDP) {
					t.Errorf("attaching twice: %v", err)
				}
				return nil
			})
			if id := attached(t, n.B); id != 0 {
				t.Errorf("program %d is left", id)
			}
		})
	}
}

func TestDetachIsAtOnceAndTwiceIsNoError(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	var p *Program
	n.B.Do(t, func() (err error) {
		if p, err = Load(LoadOptions{Ifindex: n.B.Index, Queues: 1, Native: true}); err != nil {
			return err
		}
		return p.Attach(true)
	})
	defer p.Close()
	if attached(t, n.B) == 0 {
		t.Fatal("not attached")
	}
	for range 2 {
		if err := p.Detach(); err != nil {
			t.Error(err)
		}
		if id := attached(t, n.B); id != 0 {
			t.Errorf("program %d is left", id)
		}
	}
	n.B.Do(t, func() error { return p.Attach(true) }) // and on again
}

func TestAForeignProgramIsLeftAlone(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "other", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for name, flags := range map[string]link.XDPAttachFlags{ModeNative: link.XDPDriverMode, ModeGeneric: link.XDPGenericMode} {
		t.Run(name, func(t *testing.T) {
			n.B.Do(t, func() error {
				l, err := link.AttachXDP(link.XDPOptions{Program: other, Interface: n.B.Index, Flags: flags})
				if err != nil {
					return err
				}
				defer l.Close()
				before := attached(t, n.B)
				for _, native := range []bool{true, false} {
					p, err := Load(LoadOptions{Ifindex: n.B.Index, Queues: 1, Native: native})
					if err != nil {
						return err
					}
					if err := p.Attach(native); !errors.Is(err, ErrForeignXDP) {
						t.Errorf("native %t: %v", native, err)
					}
					p.Close()
				}
				if after := attached(t, n.B); after != before {
					t.Errorf("program %d was, program %d is there", before, after)
				}
				return l.Detach()
			})
		})
	}
}

func TestNativeModeThatTheDriverRefusesIsUnsupported(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	n := netnstest.Pair(t, netnstest.Options{MTU: 9000, NoIPv6: true}) // beyond a page
	n.B.Do(t, func() error {
		p, err := Load(LoadOptions{Ifindex: n.B.Index, Queues: 1, Native: true})
		if err != nil {
			return err
		}
		defer p.Close()
		if err := p.Attach(true); !errors.Is(err, ErrUnsupported) {
			t.Errorf("got %v", err)
		}
		return nil
	})
}

func TestAnInterfaceThatWentAwayIsNoErrorOnDetach(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	n.B.Do(t, func() error {
		p, err := Load(LoadOptions{Ifindex: n.B.Index, Queues: 1, Native: true})
		if err != nil {
			return err
		}
		if err := p.Attach(true); err != nil {
			return err
		}
		if err := deleteLink(n.B.Dev); err != nil {
			return err
		}
		return p.Close()
	})
	p, err := Load(LoadOptions{Ifindex: 1 << 20, Queues: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Attach(false); !errors.Is(err, ErrNoDevice) {
		t.Errorf("no such interface: %v", err)
	}
}

func deleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}
