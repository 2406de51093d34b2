package bpf

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netns"
	"github.com/rscctl/rscctl/test/netnstest"
)

// vmTap is a tap of which the test is the VM.
type vmTap struct {
	ns    *netnstest.NS
	fd    int
	index int
}

func openVMTap(t *testing.T) *vmTap {
	t.Helper()
	netnstest.Need(t, netnstest.BPF, netnstest.Device("/dev/net/tun"))
	v := &vmTap{ns: netnstest.Namespace(t)}
	v.do(t, func() (err error) {
		if v.fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(v.fd) })
		ifr, err := unix.NewIfreq("tap0")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(v.fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		l, err := netlink.LinkByName("tap0")
		if err != nil {
			return err
		}
		v.index = l.Attrs().Index
		return netlink.LinkSetUp(l)
	})
	return v
}

func (v *vmTap) do(t *testing.T, fn func() error) {
	t.Helper()
	if err := v.ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// write sends a frame as the VM, with a virtio header of 10 bytes. headers says how many of its bytes lie in the first
// piece of the skb.
func (v *vmTap) write(t *testing.T, frame []byte, gsoType byte, headers, gsoSize uint16) {
	t.Helper()
	h := make([]byte, 10, 10+len(frame))
	h[1] = gsoType
	binary.LittleEndian.PutUint16(h[2:], headers)
	binary.LittleEndian.PutUint16(h[4:], gsoSize)
	if _, err := unix.Write(v.fd, append(h, frame...)); err != nil {
		t.Fatal(err)
	}
}

func (v *vmTap) load(t *testing.T) *TapProgram {
	t.Helper()
	p, err := LoadTap(TapOptions{Ifindex: v.index, MAC: peerMAC})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// attachAs attaches in one of the two ways, or skips where the kernel lacks it.
func (v *vmTap) attachAs(t *testing.T, p *TapProgram, mode string) {
	t.Helper()
	v.do(t, func() error {
		if mode == ModeClsact {
			return p.attachBy(tapHook.attachFilter)
		}
		return p.Attach()
	})
	if p.Mode() == mode {
		return
	}
	netnstest.Skip(t, "TCX (Linux 6.6)")
}

var tapModes = []string{ModeTCX, ModeClsact}

func TestWhatAVMSendsIsCountedLive(t *testing.T) {
	for _, mode := range tapModes {
		t.Run(mode, func(t *testing.T) {
			v := openVMTap(t)
			p := v.load(t)
			v.attachAs(t, p, mode)
			small := padded(60, ip4(6, 0x4000, nil, tcp(5, 0x10, 6)))
			v.write(t, small, 0, 0, 0)
			const payload, size = 20000, 1448
			for _, headers := range []uint16{14 + 20 + 32, 14, 14 + 20 + 3, 0} {
				v.write(t, ip4(6, 0x4000, nil, tcp(8, 0x18, payload)), 1, headers, size)
			}
			tag := tagged(0x8100, 0xe000, ip6(6, tcp(5, 0x10, 6))) // the kernel takes the tag out of it
			v.write(t, tag, 0, 0, 0)
			segment := ip4(6, 0x4000, nil, tcp(5, 0x10, 6))
			foreign := [][]byte{tagged(0x8100, testVLAN, segment), tagged(0x8100, 0xe000, tagged(0x8100, testVLAN, segment)),
				tagged(0x8100, 0xe000, tagged(0x8100, 0, segment)), tagged(0x88a8, 0, segment)}
			for _, f := range foreign {
				v.write(t, f, 0, 0, 0)
			}
			if out, err := p.Outcomes(); err != nil || out["foreign_tag"] != uint64(len(foreign)) {
				t.Errorf("%v, %v", out, err)
			}
			rows := takeFlows(t, p)
			slices.SortFunc(rows, func(a, b Flow) int { return int(a.Key.Family) - int(b.Key.Family) })
			if len(rows) != 2 {
				t.Fatalf("%+v", rows)
			}
			const segments = (payload + size - 1) / size
			s := rows[0].Stats
			if s.Packets() != 1+4*segments || s.Bytes != 60+4*(payload+segments*(14+20+32)) || s.PayloadBytes != 6+4*payload {
				t.Errorf("%d packets, %d bytes, %d of payload", s.Packets(), s.Bytes, s.PayloadBytes)
			}
			if s := rows[1].Stats; s.Packets() != 1 || s.Bytes != uint64(len(tag)) {
				t.Errorf("with a tag: %d packets, %d bytes of %d", s.Packets(), s.Bytes, len(tag))
			}
			if err := p.Detach(); err != nil {
				t.Fatal(err)
			}
			v.write(t, small, 0, 0, 0)
			if rows := takeFlows(t, p); len(rows) != 0 {
				t.Errorf("counted after detaching: %+v", rows)
			}
		})
	}
}

// filters returns the names of the BPF filters on the tap's ingress, and whether the qdisc is there.
func (v *vmTap) filters(t *testing.T) (names []string, qdisc bool) {
	t.Helper()
	v.do(t, func() error {
		l, err := netlink.LinkByName("tap0")
		if err != nil {
			return err
		}
		all, err := netlink.QdiscList(l)
		if err != nil {
			return err
		}
		for _, q := range all {
			qdisc = qdisc || q.Attrs().Parent == netlink.HANDLE_CLSACT
		}
		list, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
		for _, f := range list {
			names = append(names, f.(*netlink.BpfFilter).Name)
		}
		return err
	})
	return names, qdisc
}

// foreign hangs somebody else's filter on one side of clsact.
func (v *vmTap) foreign(t *testing.T, parent uint32) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	v.do(t, func() error {
		return netlink.FilterAdd(&netlink.BpfFilter{Fd: prog.FD(), Name: "other", DirectAction: true, FilterAttrs: netlink.FilterAttrs{
			LinkIndex: v.index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1}})
	})
}

func (v *vmTap) addClsact(t *testing.T) {
	t.Helper()
	v.do(t, func() error {
		f := tcFilter{hook: tapHook, ifindex: v.index}
		return netlink.QdiscAdd(f.qdisc())
	})
}

func (v *vmTap) want(t *testing.T, when string, qdisc bool, names ...string) {
	t.Helper()
	got, there := v.filters(t)
	if !slices.Equal(got, names) || there != qdisc {
		t.Errorf("%s: filters %q, qdisc %t; want %q, %t", when, got, there, names, qdisc)
	}
}

func TestClsactIsLeftAsItWasFound(t *testing.T) {
	for _, c := range []struct {
		name    string
		before  func(t *testing.T, v *vmTap)
		during  func(t *testing.T, v *vmTap)
		qdisc   bool
		filters []string
	}{
		{"nothing there", nil, nil, false, nil},
		{"the qdisc there", func(t *testing.T, v *vmTap) { v.addClsact(t) }, nil, true, nil},
		{"a filter there", func(t *testing.T, v *vmTap) { v.addClsact(t); v.foreign(t, netlink.HANDLE_MIN_INGRESS) }, nil, true, []string{"other"}},
		{"a filter came", nil, func(t *testing.T, v *vmTap) { v.foreign(t, netlink.HANDLE_MIN_INGRESS) }, true, []string{"other"}},
		{"a filter came on the other side", nil, func(t *testing.T, v *vmTap) { v.foreign(t, netlink.HANDLE_MIN_EGRESS) }, true, nil},
		{"the qdisc went", nil, func(t *testing.T, v *vmTap) {
			v.do(t, func() error { return netlink.QdiscDel((&tcFilter{hook: tapHook, ifindex: v.index}).qdisc()) })
		}, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := openVMTap(t)
			if c.before != nil {
				c.before(t, v)
			}
			p := v.load(t)
			v.attachAs(t, p, ModeClsact)
			if names, _ := v.filters(t); len(names) == 0 {
				t.Fatal("no filter")
			}
			if c.during != nil {
				c.during(t, v)
			}
			for range 2 {
				if err := p.Detach(); err != nil {
					t.Fatal(err)
				}
			}
			v.want(t, "afterwards", c.qdisc, c.filters...)
		})
	}
}

func TestAttachTakesWhatTheKernelHas(t *testing.T) {
	v := openVMTap(t)
	p := v.load(t)
	v.do(t, p.Attach)
	switch p.Mode() {
	case ModeTCX:
		v.want(t, "with TCX", false)
	case ModeClsact:
		v.want(t, "without TCX", true, TapProgramName+withQdisc)
	default:
		t.Errorf("mode %q", p.Mode())
	}
	v.write(t, padded(60, ip4(6, 0x4000, nil, tcp(5, 0x10, 6))), 0, 0, 0)
	if rows := takeFlows(t, p); len(rows) != 1 {
		t.Errorf("%+v", rows)
	}
}

func TestTapAttachTwice(t *testing.T) {
	for _, mode := range tapModes {
		t.Run(mode, func(t *testing.T) {
			v := openVMTap(t)
			p := v.load(t)
			v.attachAs(t, p, mode)
			v.do(t, func() error {
				if err := p.Attach(); !errors.Is(err, ErrAttached) {
					t.Errorf("got %v", err)
				}
				return nil
			})
			if err := p.Detach(); err != nil {
				t.Fatal(err)
			}
			v.attachAs(t, p, mode) // and on again
		})
	}
}

func TestATapThatWentAwayIsNoErrorOnDetach(t *testing.T) {
	for _, mode := range tapModes {
		t.Run(mode, func(t *testing.T) {
			v := openVMTap(t)
			p := v.load(t)
			v.attachAs(t, p, mode)
			v.do(t, func() error { return deleteLink("tap0") })
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			v.do(t, func() error {
				if err := RemoveStaleTap(v.index); err != nil {
					t.Error(err)
				}
				p := v.load(t)
				if err := p.Attach(); !errors.Is(err, ErrNoDevice) {
					t.Errorf("attaching to no tap: %v", err)
				}
				return nil
			})
		})
	}
}

const staleEnv = "RSC_STALE_TAP" // the namespace's path, for the process that is killed

// TestDiesAttached is run by the next test, in a process of its own.
func TestDiesAttached(t *testing.T) {
	path, mode := os.Getenv(staleEnv), os.Getenv(staleEnv+"_MODE")
	if path == "" {
		return
	}
	ns, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	v := &vmTap{ns: &netnstest.NS{NS: ns}}
	v.do(t, func() error {
		l, err := netlink.LinkByName("tap0")
		if err == nil {
			v.index = l.Attrs().Index
		}
		return err
	})
	v.attachAs(t, v.load(t), mode)
	if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {}
}

func TestWhatAKilledProcessLeaves(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		qdisc      bool // before
		left       []string
	}{
		{"tcx", ModeTCX, false, nil},
		{"clsact of its own", ModeClsact, false, []string{TapProgramName + withQdisc}},
		{"clsact of another", ModeClsact, true, []string{TapProgramName}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := openVMTap(t)
			if c.qdisc {
				v.addClsact(t)
			}
			if c.mode == ModeTCX {
				v.attachAs(t, v.load(t), ModeTCX) // or skip
			}
			die := func() {
				cmd := exec.Command(os.Args[0], "-test.run", "^TestDiesAttached$")
				cmd.Env = append(os.Environ(), staleEnv+"="+v.ns.Path(), staleEnv+"_MODE="+c.mode)
				out, _ := cmd.CombinedOutput()
				if ws := cmd.ProcessState; ws == nil || ws.ExitCode() != -1 {
					t.Fatalf("it was not killed: %s", out)
				}
			}
			die()
			v.want(t, "after the kill", c.left != nil, c.left...)
			v.do(t, func() error { return errors.Join(RemoveStaleTap(v.index), RemoveStaleTap(v.index)) })
			v.want(t, "after RemoveStaleTap", c.qdisc)
			if c.mode == ModeTCX {
				return
			}
			die()
			p := v.load(t)
			v.attachAs(t, p, c.mode)
			v.want(t, "after a successor attached", true, c.left...)
			v.write(t, padded(60, ip4(6, 0x4000, nil, tcp(5, 0x10, 6))), 0, 0, 0)
			if rows := takeFlows(t, p); len(rows) != 1 {
				t.Errorf("the successor counts %+v", rows)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			v.want(t, "after the successor", c.qdisc)
		})
	}
}
