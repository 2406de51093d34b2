package e2e

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/test/netnstest"
)

// stranger is somebody else, who has an XDP program on the uplink and a pinned map of AF_XDP sockets that it sends each queue's frames by.
type stranger struct {
	t    *testing.T
	rig  *rig
	dir  string // a BPF file system
	path string // of the map in use
	prog *ebpf.Program
	on   link.Link
}

// newStranger pins a map with places for so many queues, and has a program on the uplink that uses it.
func newStranger(r *rig, places int) *stranger {
	r.t.Helper()
	r.pinned() // or health would speak of the flow map
	s := &stranger{t: r.t, rig: r, dir: r.t.TempDir()}
	if err := unix.Mount("bpf", s.dir, "bpf", 0, ""); err != nil {
		netnstest.Skip(r.t, "mounting a BPF filesystem: "+err.Error())
	}
	r.t.Cleanup(func() { _ = unix.Unmount(s.dir, unix.MNT_DETACH) })
	s.path = filepath.Join(s.dir, "xsks")
	s.begin(s.pin(s.path, ebpf.XSKMap, places))
	return s
}

// pin makes a map and pins it.
func (s *stranger) pin(path string, kind ebpf.MapType, places int) *ebpf.Map {
	s.t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: 4, ValueSize: 4, MaxEntries: uint32(places)})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { m.Close() })
	if err := m.Pin(path); err != nil {
		s.t.Fatal(err)
	}
	return m
}

// begin puts a program on the uplink that sends the frames of each queue to the map's socket, and to the kernel where there is none.
func (s *stranger) begin(m *ebpf.Map) {
	s.t.Helper()
	const rxQueueIndex = 16 // in struct xdp_md
	const pass = 2          // XDP_PASS
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "theirs", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, rxQueueIndex, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Imm(asm.R3, pass),
		asm.FnRedirectMap.Call(),
		asm.Return(),
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { prog.Close() })
	if s.prog = prog; s.on != nil {
		if err := s.on.Update(prog); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	s.rig.net.B.Do(s.t, func() error {
		s.on, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: s.rig.net.B.Index, Flags: link.XDPDriverMode})
		return err
	})
	s.t.Cleanup(func() { s.on.Close() })
}

// off takes the program off the uplink.
func (s *stranger) off() {
	s.t.Helper()
	if err := s.on.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.rig.eventually("the stranger's program is off", func() error { // the kernel does it later
		if out := s.rig.net.B.Output(s.t, "ip", "link", "show", "dev", s.rig.net.B.Dev); strings.Contains(out, "xdp") {
			return errors.New(out)
		}
		return nil
	})
}

// attach attaches a VM by the map and returns its socket's path, and what attach has said.
func (s *stranger) attach(vm, mac string, extra ...string) (socket, said string) {
	s.t.Helper()
	socket = filepath.Join(s.rig.dir, vm+".sock")
	return socket, s.rig.must(append(s.flags(vm, mac), extra...)...)
}

func (s *stranger) flags(vm, mac string) []string {
	return []string{"attach", s.rig.net.B.Dev, "--vm", vm, "--mac", mac, "--vhost-user", filepath.Join(s.rig.dir, vm+".sock"), "--xsk-map", s.path}
}

// untouched fails the test when another program than theirs is on the uplink.
func (s *stranger) untouched(when string) {
	s.t.Helper()
	info, err := s.prog.Info()
	if err != nil {
		s.t.Fatal(err)
	}
	id, _ := info.ID()
	s.rig.net.B.Do(s.t, func() error {
		f, err := netdev.Inspect(s.rig.net.B.Dev)
		if err == nil && (f.XDP.ProgID != uint32(id) || f.XDP.Mode != "native") {
			s.t.Errorf("%s: the uplink has program %d in mode %q, not %d of the stranger's", when, f.XDP.ProgID, f.XDP.Mode, id)
		}
		return err
	})
}

// socket is an AF_XDP socket of the stranger's own, on the other end of the wire.
func (s *stranger) socket() *xsk.Socket {
	s.t.Helper()
	var sock *xsk.Socket
	s.rig.net.A.Do(s.t, func() (err error) {
		sock, err = xsk.Open(xsk.Config{Ifindex: s.rig.net.A.Index, Chunks: 64, ChunkSize: 2048, RxSize: 32, TxSize: 16, FillSize: 32, CompSize: 16})
		return err
	})
	s.t.Cleanup(func() { sock.Close() })
	return sock
}

// taken reports whether a socket that is not sock is in the map that is pinned, and leaves it as it is.
func (s *stranger) taken(queue int, sock *xsk.Socket) bool {
	s.t.Helper()
	m, err := bpf.OpenSocketMap(s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer m.Close()
	err = m.Take(queue, sock.FD())
	if err != nil && !errors.Is(err, bpf.ErrPlaceTaken) {
		s.t.Fatal(err)
	}
	if err == nil {
		if err := m.Leave(queue, sock.FD()); err != nil {
			s.t.Fatal(err)
		}
	}
	return err != nil
}
