package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	netnstest "github.com/rscctl/rscctl/test/netns"
)

func TestPortsAreSetAndDeleted(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	p, err := Load(LoadOptions{Ifindex: 1, Queues: 1, PortEntries: 2, FlowEntries: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	k := PortKey{VLAN: 7, MAC: vmMAC}
	if err := p.DeletePort(k); !errors.Is(err, ErrNoPort) {
		t.Errorf("deleting none: %v", err)
	}
	for vlan := range uint16(2) {
		p.mustSetPort(t, vlan, PortValue{})
	}
	if err := p.SetPort(k, PortValue{}); !errors.Is(err, ErrFull) {
		t.Errorf("a third of two: %v", err)
	}
	p.mustSetPort(t, 0, PortValue{Port: 9}) // changing one takes no room
	if err := p.DeletePort(PortKey{MAC: vmMAC}); err != nil {
		t.Error(err)
	}
	p.mustSetPort(t, 7, PortValue{})
}

func TestOneFlowOnSeveralCPUsIsCountedExactly(t *testing.T) {
	p := loadForTest(t)
	p.mustSetPort(t, 0, PortValue{Port: 3})
	const runners, each, repeat = 4, 50, 100
	frame := padded(60, ip4(6, 0x4000, nil, tcp(5, 0x10, 2)))
	var wg sync.WaitGroup
	for range runners {
		wg.Go(func() {
			for range each {
				o := ebpf.RunOptions{Data: frame, Repeat: repeat}
				if _, err := p.prog.Run(&o); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	rows, err := ReadFlows(p.Flows())
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	// A run that a signal of the Go runtime interrupts is begun anew, so a few more may have run; all were counted per CPU.
	v, err := p.Outcomes()
	n := v["pass_port"]
	if err != nil || n < runners*each*repeat {
		t.Errorf("%d outcomes of at least %d, %v", n, runners*each*repeat, err)
	}
	if s := rows[0].Stats; s.Packets() != n || s.Bytes != n*60 || s.PayloadBytes != n*2 {
		t.Errorf("%d packets, %d bytes, %d of payload; want %d", s.Packets(), s.Bytes, s.PayloadBytes, n)
	}
}

func TestAFullFlowMapForgetsTheOldest(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	p, err := Load(LoadOptions{Ifindex: 1, Queues: 1, FlowEntries: 512})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.mustSetPort(t, 0, PortValue{Port: 3})
	const n = 4096
	for i := range n {
		seg := tcp(5, 0x10, 0)
		seg[0], seg[1] = byte(i>>8), byte(i)
		p.run(t, padded(60, ip4(6, 0x4000, nil, seg)))
	}
	rows, err := ReadFlows(p.Flows())
	if err != nil || len(rows) == 0 || len(rows) > 512 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	for _, r := range rows {
		if r.Key.SrcPort == n-1 {
			return
		}
	}
	t.Error("the newest flow is not there")
}

func TestSharedFlowMapOutlivesTheProgram(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	m, pinned, err := OpenFlows("", 64)
	if err != nil || pinned {
		t.Fatalf("pinned %t, %v", pinned, err)
	}
	defer m.Close()
	for range 2 { // two interfaces, one map
		p, err := Load(LoadOptions{Ifindex: 1, Queues: 1, Flows: m})
		if err != nil {
			t.Fatal(err)
		}
		p.mustSetPort(t, 0, PortValue{Port: 3})
		p.run(t, padded(60, ip4(6, 0x4000, nil, tcp(5, 0x10, 0))))
		if p.Flows() != nil {
			t.Error("the shared map is called its own")
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := ReadFlows(m)
	if err != nil || len(rows) != 1 || rows[0].Stats.Packets() != 2 {
		t.Errorf("rows %+v, %v", rows, err)
	}
}

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

func TestPinnedFlowMapIsFoundAgain(t *testing.T) {
	pin := filepath.Join(bpffs(t), "rscctl", "flows")
	m, pinned, err := OpenFlows(pin, 64)
	if err != nil || !pinned {
		t.Fatalf("pinned %t, %v", pinned, err)
	}
	k := FlowKey{Ifindex: 5, Family: 4, SrcPort: 1}
	if err := m.Put(k, FlowStats{Bytes: 77}); err != nil {
		t.Fatal(err)
	}
	m.Close()
	m, pinned, err = OpenFlows(pin, 64)
	if err != nil || !pinned {
		t.Fatalf("again: pinned %t, %v", pinned, err)
	}
	rows, err := ReadFlows(m)
	m.Close()
	if err != nil || len(rows) != 1 || rows[0].Key != k || rows[0].Stats.Bytes != 77 {
		t.Fatalf("rows %+v, %v", rows, err)
	}

	t.Run("of another size is replaced", func(t *testing.T) {
		m, pinned, err := OpenFlows(pin, 128)
		if err != nil || !pinned || m.MaxEntries() != 128 {
			t.Fatalf("pinned %t, %v", pinned, err)
		}
		defer m.Close()
		if rows, err := ReadFlows(m); err != nil || len(rows) != 0 {
			t.Errorf("rows %+v, %v", rows, err)
		}
	})
}

func TestWithoutABPFFilesystemNothingIsPinned(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	dir := t.TempDir()
	m, pinned, err := OpenFlows(filepath.Join(dir, "rscctl", "flows"), 64)
	if err != nil || pinned {
		t.Fatalf("pinned %t, %v", pinned, err)
	}
	m.Close()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestVethTagIsFoundOnlyWithBothTypes(t *testing.T) {
	at, ok := vethTagOffsets() // of this kernel, or none
	if ok != (at.skb != 0 && at.vlan != 0) {
		t.Errorf("%+v, %t", at, ok)
	}
	if ok {
		netnstest.Need(t, netnstest.BPF)
		p, err := load(LoadOptions{Ifindex: 1, Queues: 1, FlowEntries: 16}, at)
		if err != nil {
			t.Fatalf("the kernel refuses the program that reads tags: %+v", err)
		}
		p.Close()
	}
}
