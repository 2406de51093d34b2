package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"github.com/rscctl/rscctl/bpf/meta"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
)

// bpffs mounts a BPF filesystem on a folder of the test's.
func bpffs(t *testing.T) string {
	t.Helper()
	netnstest.Need(t, netnstest.BPF)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		netnstest.Skip(t, "mounting a BPF filesystem: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func flowSpec(t testing.TB, entries int) *FlowSpec {
	t.Helper()
	spec, err := NewFlowSpec(entries)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func openFlows(t *testing.T, pin string, entries int) *Flows {
	t.Helper()
	netnstest.Need(t, netnstest.BPF)
	f, pinned, err := OpenFlows(pin, flowSpec(t, entries))
	if err != nil || pinned != (pin != "") {
		t.Fatalf("pinned %t, %v", pinned, err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// rowsOf are the bytes counted in a VM's rows.
func rowsOf(t *testing.T, f *Flows, vm string) (out []uint64) {
	t.Helper()
	m, err := f.VM(vm)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := ReadFlows(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		out = append(out, r.Stats.Bytes)
	}
	return out
}

func addRow(t *testing.T, f *Flows, vm string, bytes uint64) {
	t.Helper()
	m, err := f.VM(vm)
	if err == nil {
		err = m.Put(FlowKey{Family: 4, SrcPort: 1}, FlowStats{Bytes: bytes})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func expectRows(t *testing.T, f *Flows, vm string, want ...uint64) {
	t.Helper()
	if got := rowsOf(t, f, vm); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("VM %s: rows of %v bytes, want %v", vm, got, want)
	}
}

// After a restart each VM has its own flows, by its name.
func TestPinnedFlowsAreFoundAgainByVM(t *testing.T) {
	pin := filepath.Join(bpffs(t), "rscctl", "flows")
	f := openFlows(t, pin, 64)
	names := []string{"vm1", "vm2", "vm.with:all-kinds_of", strings.Repeat("x", 64)}
	for i, vm := range names {
		addRow(t, f, vm, uint64(100+i))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = openFlows(t, pin, 64)
	for i := len(names) - 1; i >= 0; i-- { // in another order
		expectRows(t, f, names[i], uint64(100+i))
	}
	t.Run("found without a change", func(t *testing.T) {
		large := openFlows(t, pin, 128)
		for vm, has := range map[string]bool{"vm1": true, "nobody": false} {
			if f.Has(vm) != has {
				t.Errorf("%s: %t", vm, !has)
			}
			if large.Has(vm) {
				t.Errorf("%s: found in a map of another size", vm)
			}
		}
		again := openFlows(t, pin, 64)
		expectRows(t, again, "vm1", 100)
		if again.Has("nobody") {
			t.Error("looking has made a map")
		}
	})
	t.Run("made anew by another process", func(t *testing.T) {
		const vm = "vm.with:all-kinds_of"
		other := openFlows(t, pin, 64)
		if err := other.Retain(func(name string) bool { return name != vm }); err != nil {
			t.Fatal(err)
		}
		addRow(t, other, vm, 7)
		f.Reopen(vm)
		expectRows(t, f, vm, 7)
	})
	t.Run("those retained alone", func(t *testing.T) {
		if err := f.Retain(func(vm string) bool { return vm == "vm2" }); err != nil {
			t.Fatal(err)
		}
		expectRows(t, f, "vm1")
		expectRows(t, f, "vm2", 101)
	})
	t.Run("of another size begin anew", func(t *testing.T) {
		f.Close()
		f = openFlows(t, pin, 128)
		expectRows(t, f, "vm2")
	})
}

// A pinned map of an older version is replaced: its rows mean something else.
func TestPinnedFlowsOfAnotherLayoutAreNotRead(t *testing.T) {
	rows := func(key, value uint32) *ebpf.MapSpec {
		return &ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: key, ValueSize: value, MaxEntries: 64}
	}
	nested := func(name string, inner *ebpf.MapSpec) *ebpf.MapSpec {
		return &ebpf.MapSpec{Name: name, Type: ebpf.HashOfMaps, KeySize: 64, ValueSize: 4, MaxEntries: maxVMs, Flags: unix.BPF_F_NO_PREALLOC, InnerMap: inner}
	}
	key, value := uint32(binary.Size(FlowKey{})), uint32(binary.Size(FlowStats{}))
	for name, spec := range map[string]*ebpf.MapSpec{
		"one map of all VMs":   rows(48, value),
		"the same sizes":       nested(fmt.Sprintf("vms_%d_%d_0", key, value), rows(key, value)),
		"rows of another size": nested(fmt.Sprintf("vms_%d_%d_%d", key, value-8, flowsVersion), rows(key, value-8)),
	} {
		t.Run(name, func(t *testing.T) {
			pin := filepath.Join(bpffs(t), "flows")
			old, err := ebpf.NewMap(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			if err := old.Pin(pin); err != nil {
				t.Fatal(err)
			}
			if spec.InnerMap != nil {
				inner, err := ebpf.NewMap(spec.InnerMap)
				if err != nil {
					t.Fatal(err)
				}
				defer inner.Close()
				k, _ := keyOf("vm1")
				if err := inner.Put(make([]byte, spec.InnerMap.KeySize), make([]byte, spec.InnerMap.ValueSize)); err != nil {
					t.Fatal(err)
				}
				if err := old.Put(k, inner); err != nil {
					t.Fatal(err)
				}
			}
			expectRows(t, openFlows(t, pin, 64), "vm1")
		})
	}
}

func TestWithoutABPFFilesystemNothingIsPinned(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	dir := t.TempDir()
	f, pinned, err := OpenFlows(filepath.Join(dir, "rscctl", "flows"), flowSpec(t, 64))
	if err != nil || pinned {
		t.Fatalf("pinned %t, %v", pinned, err)
	}
	f.Close()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWhatIsNoVMsNameHasNoFlows(t *testing.T) {
	f := openFlows(t, "", 64)
	for _, name := range []string{"", "a\x00", strings.Repeat("x", 65)} {
		if _, err := f.VM(name); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestAFullFlowMapForgetsTheOldest(t *testing.T) {
	p := loadForTest(t)
	p.mustSetPort(t, 0, PortValue{Port: 3})
	p.countIn(t, 3, 512)
	const n = 4096
	for i := range n {
		seg := tcp(5, 0x10, 0)
		seg[0], seg[1] = byte(i>>8), byte(i)
		p.run(t, padded(60, ip4(6, 0x4000, nil, seg)))
	}
	rows, err := p.readFlows(t, 3)
	if err != nil || len(rows) == 0 || len(rows) > 512 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if got := p.Evicted(3, rows); got != n-uint64(len(rows)) {
		t.Errorf("%d flows are said to have given way, %d of %d are left", got, len(rows), n)
	}
	for _, r := range rows {
		if r.Key.SrcPort == n-1 {
			return
		}
	}
	t.Error("the newest flow is not there")
}

// One VM's flood of made-up senders pushes out none of another VM's flows, and leaves the VM itself counted.
func TestAFloodOfFlowsEvictsNoOtherVMs(t *testing.T) {
	const others, each, flood = 4, 500, 100_000
	p := loadForTest(t)
	vlan := func(i int) uint16 { return uint16(i + 1) }
	for i := range others {
		p.mustSetPort(t, vlan(i), PortValue{Port: uint32(i + 1)})
		for n := range each {
			p.run(t, tagged(0x8100, int(vlan(i)), withPorts(n+1, 80, ip4(6, 0x4000, nil, tcp(5, 0x10, 0)))))
		}
	}
	p.mustSetPort(t, 0, PortValue{Port: 0})
	syn := padded(60, ip4(6, 0x4000, nil, tcp(5, 0x02, 0)))
	for n := range flood {
		binary.BigEndian.PutUint32(syn[14+12:], 0x0b000000+uint32(n)) // the sender's address
		p.run(t, syn)
	}
	for i := range others {
		rows, err := p.readFlows(t, uint32(i+1))
		if err != nil || len(rows) != each {
			t.Errorf("VM %d has %d flows of %d, %v", i+1, len(rows), each, err)
		}
	}
	rows, err := p.readFlows(t, 0)
	if err != nil || len(rows) < 2048 || len(rows) > 4096 {
		t.Errorf("the flooded VM has %d flows, %v", len(rows), err)
	}
	if v, err := p.Outcomes(); err != nil || v["flow_lost"] != 0 {
		t.Errorf("counted nowhere: %d, %v", v["flow_lost"], err)
	}
}

// A VM that leaves takes its flows with it: they are not its successor's, who has the place now.
func TestAPlaceGivenOutAgainHasNoFlows(t *testing.T) {
	p := loadForTest(t)
	frame := padded(60, ip4(6, 0x4000, nil, tcp(5, 0x10, 0)))
	left, next := meta.PortID(5, 0), meta.PortID(5, 1)
	p.mustSetPort(t, 0, PortValue{Port: left})
	old := p.flowsOf(t, left)
	p.run(t, frame)
	p.run(t, frame)
	if err := errors.Join(p.DeletePort(PortKey{MAC: vmMAC}), p.EndFlows(left, old), p.EndFlows(left, old)); err != nil {
		t.Fatal(err)
	}
	if err := p.SetPort(PortKey{MAC: vmMAC}, PortValue{Port: next}); err != nil {
		t.Fatal(err)
	}
	if got := moved(t, p, func() { p.run(t, frame) }); got["flow_lost"] != 1 {
		t.Errorf("counted %v before there is a map", got)
	}
	p.mustSetPort(t, 0, PortValue{Port: next})
	for range 3 {
		p.run(t, frame)
	}
	if rows, err := ReadFlows(old); err != nil || len(rows) != 1 || rows[0].Stats.Packets() != 2 {
		t.Errorf("left: %+v, %v", rows, err)
	}
	if rows, err := p.readFlows(t, next); err != nil || len(rows) != 1 || rows[0].Stats.Packets() != 3 {
		t.Errorf("next: %+v, %v", rows, err)
	}
}
