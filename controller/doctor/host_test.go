package doctor

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/test/netnstest"
)

// gather is Gather and Examine in the namespace of a side.
func gather(t *testing.T, s *netnstest.Side, iface string) (f *Facts, list []Finding) {
	t.Helper()
	s.Do(t, func() (err error) {
		f, err = Gather(context.Background(), iface, "/sys/fs/bpf/rscctl")
		return err
	})
	return f, Examine(f)
}

func find(t *testing.T, list []Finding, id string) Finding {
	t.Helper()
	k := slices.IndexFunc(list, func(f Finding) bool { return f.ID == id })
	if k < 0 {
		t.Fatalf("no finding %s in %+v", id, list)
	}
	return list[k]
}

// features are all offloads of a side's interface, as they are and as they are asked for.
func features(t *testing.T, s *netnstest.Side) string { return s.Output(t, "ethtool", "-k", s.Dev) }

func fix(t *testing.T, s *netnstest.Side, dir string, list []Finding) (done []string) {
	t.Helper()
	s.Do(t, func() (err error) {
		done, err = Fix(dir, list)
		return err
	})
	return done
}

func undo(t *testing.T, s *netnstest.Side, dir, iface string) (done []string) {
	t.Helper()
	s.Do(t, func() (err error) {
		done, err = Undo(dir, iface)
		return err
	})
	return done
}

// What a veth's sender leaves to the receiver is found, mended, and put back bit by bit; a second time there is nothing to do.
func TestFixAndUndoOnARealVeth(t *testing.T) {
	netnstest.Need(t, netnstest.BPF, netnstest.Tool("ethtool"))
	n := netnstest.Pair(t, netnstest.Options{KeepTxChecksum: true, KeepTxVLAN: true, KeepTSO: true})
	dir := t.TempDir()
	before := features(t, n.A)

	f, list := gather(t, n.B, n.B.Dev)
	sums := find(t, list, "peer.tx_checksum")
	if sums.Severity != Warning || !sums.Fixable || !strings.Contains(sums.Remedy, n.A.NS.Path()) {
		t.Errorf("%+v", sums)
	}
	if !f.Programs.good() || find(t, list, "bpf.programs").Severity != OK {
		t.Errorf("a kernel that runs the other tests: %+v", f.Programs)
	}
	for _, id := range []string{"iface.uplink", "iface.link", "iface.mtu", "iface.xdp"} {
		if one := find(t, list, id); one.Severity != OK {
			t.Errorf("%+v", one)
		}
	}
	if features(t, n.A) != before {
		t.Error("looking changed something")
	}

	if done := fix(t, n.B, dir, list); !slices.Contains(done, "tx-checksumming switched off on "+n.A.Dev) {
		t.Errorf("done: %q", done)
	}
	_, list = gather(t, n.B, n.B.Dev)
	if one := find(t, list, "peer.tx_checksum"); one.Severity != OK {
		t.Errorf("after --fix: %+v", one)
	}
	fixed := features(t, n.A)
	if fixed == before {
		t.Error("nothing was switched")
	}
	if done := fix(t, n.B, dir, list); len(done) != 0 || features(t, n.A) != fixed {
		t.Errorf("a second time: %q", done)
	}

	if done := undo(t, n.B, dir, "other0"); len(done) != 0 || features(t, n.A) != fixed {
		t.Errorf("undone for another interface: %q", done)
	}
	if done := undo(t, n.B, dir, n.B.Dev); len(done) == 0 {
		t.Error("nothing was undone")
	}
	if after := features(t, n.A); after != before {
		t.Errorf("not put back:\n%s\nwas\n%s", after, before)
	}
	if done := undo(t, n.B, dir, ""); len(done) != 0 || features(t, n.A) != before {
		t.Errorf("undone twice: %q", done)
	}
}

// A controller's lock and undo list are its own: doctor works beside a running controller, and leaves what that one noted.
func TestDoctorLeavesTheControllersStateAlone(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	n := netnstest.Pair(t, netnstest.Options{KeepTxChecksum: true})
	dir := t.TempDir()
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	const theirs = `{"id":1,"kind":"offload","iface":"x","link":"x","feature":"rx-gro-hw","was":{"rx-gro-hw":true},"why":""}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "undo.jsonl"), []byte(theirs), 0o600); err != nil {
		t.Fatal(err)
	}
	_, list := gather(t, n.B, n.B.Dev)
	if done := fix(t, n.B, dir, list); len(done) == 0 {
		t.Error("nothing was done")
	}
	if done := undo(t, n.B, dir, ""); len(done) == 0 {
		t.Error("nothing was undone")
	}
	if b, err := os.ReadFile(filepath.Join(dir, "undo.jsonl")); err != nil || string(b) != theirs {
		t.Errorf("the controller's undo list is %q, %v", b, err)
	}
}

// An undo list that cannot be written stops the change, not the note of it.
func TestNothingIsSwitchedThatIsNotRecorded(t *testing.T) {
	netnstest.Need(t, netnstest.BPF, netnstest.Tool("ethtool"))
	n := netnstest.Pair(t, netnstest.Options{KeepTxChecksum: true})
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, ownFolder, "undo.jsonl.new"), 0o755); err != nil { // a folder where the file is written
		t.Fatal(err)
	}
	before := features(t, n.A)
	_, list := gather(t, n.B, n.B.Dev)
	n.B.Do(t, func() error {
		if done, err := Fix(dir, list); err == nil || len(done) != 0 {
			t.Errorf("done %q, %v", done, err)
		}
		return nil
	})
	if features(t, n.A) != before {
		t.Error("switched, and not recorded")
	}
}

func TestBridgesAndTheirPortsAreTold(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	n := netnstest.Pair(t, netnstest.Options{})
	n.B.Do(t, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		l, err := netlink.LinkByName(n.B.Dev)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, br)
	})
	_, list := gather(t, n.B, n.B.Dev)
	if one := find(t, list, "iface.bridge"); one.Severity != Note || !strings.Contains(one.What, "br0") {
		t.Errorf("%+v", one)
	}
	_, list = gather(t, n.B, "br0")
	if one := find(t, list, "iface.uplink"); one.Severity != Error || !strings.Contains(one.Remedy, "rscctl attach "+n.B.Dev) {
		t.Errorf("%+v", one)
	}
	_, list = gather(t, n.B, "")
	if one := find(t, list, "iface.none"); one.Severity != Warning {
		t.Errorf("a namespace without hardware: %+v", one)
	}
}

// A filter of ours is left over when no process has its program, and is what --fix removes; a living one's is left alone.
func TestWhatADeadControllerLeftOnATapIsRemoved(t *testing.T) {
	netnstest.Need(t, netnstest.BPF, netnstest.TAP)
	ns := netnstest.Namespace(t)
	s := &netnstest.Side{NS: ns, Dev: "tap0"}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	s.Do(t, func() error {
		tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: s.Dev}, Mode: netlink.TUNTAP_MODE_TAP}
		if err := netlink.LinkAdd(tap); err != nil {
			return err
		}
		s.Index = tap.Index
		if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: s.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}); err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{Fd: prog.FD(), Name: bpf.TapProgramName, DirectAction: true, FilterAttrs: netlink.FilterAttrs{
			LinkIndex: s.Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1}})
	})
	f, list := gather(t, s, "")
	if len(f.Taps) != 0 || find(t, list, "tap.leftover").Severity != OK {
		t.Errorf("while a process has the program: %+v", f.Taps)
	}
	prog.Close()
	f, _ = gather(t, s, "")
	if len(f.Taps) != 1 || f.Taps[0].Name != s.Dev {
		t.Fatalf("left over: %+v", f.Taps)
	}
	if f.Taps[0].Sure != initialPIDs() {
		t.Errorf("%+v", f.Taps[0])
	}
	f.Taps[0].Sure = true
	if done := fix(t, s, t.TempDir(), Examine(f)); len(done) != 1 || !strings.Contains(done[0], s.Dev) {
		t.Errorf("done: %q", done)
	}
	if f, _ = gather(t, s, ""); len(f.Taps) != 0 {
		t.Errorf("still there: %+v", f.Taps)
	}
}

// A program that hangs or talks without end costs its time and no more.
func TestAProgramThatDoesNotTellItsVersionIsNotWaitedFor(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"good": "echo 'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)'", "none": "echo hello", "fails": "echo 1.2.3; exit 1",
		"long": "echo 8.1; exec head -c 1000000 /dev/zero",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]Tool{
		"good": {filepath.Join(dir, "good"), Version{7, 2, 22}}, "none": {}, "fails": {}, "missing": {},
		"long": {filepath.Join(dir, "long"), Version{8, 1, 0}},
	} {
		if got := findTool(context.Background(), []string{filepath.Join(dir, name)}); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got := findTool(ctx, []string{filepath.Join(dir, "good")}); got != (Tool{}) {
		t.Errorf("interrupted: %+v", got)
	}
	var b bounded
	if n, err := b.Write(make([]byte, 2*toolOutput)); n != 2*toolOutput || err != nil || len(b) != toolOutput {
		t.Errorf("%d, %v, kept %d", n, err, len(b))
	}
}

// The kernel's word for a veth's native mode is what attach then finds.
func TestNativeXDPOfAVethNeedsTheQueues(t *testing.T) {
	netnstest.Need(t, netnstest.BPF, netnstest.Kernel(6, 3))
	n := netnstest.Pair(t, netnstest.Options{Queues: 2})
	_, list := gather(t, n.B, n.B.Dev)
	if one := find(t, list, "iface.xdp_native"); one.Severity != OK {
		t.Errorf("%+v", one)
	}
	n.B.Output(t, "ethtool", "-L", n.B.Dev, "rx", "1")
	_, list = gather(t, n.B, n.B.Dev)
	if one := find(t, list, "iface.xdp_native"); one.Severity != Warning || !strings.Contains(one.Remedy, "ethtool -L "+n.B.Dev+" rx 2") {
		t.Errorf("%+v", one)
	}
}
