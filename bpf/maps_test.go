package bpf

import (
	"errors"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/rscctl/rscctl/test/netnstest"
)

func TestPortsAreSetAndDeleted(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	p, err := Load(LoadOptions{Ifindex: 1, Queues: 1, PortEntries: 2})
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
	rows, err := p.readFlows(t, 3)
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

func TestVethTagIsFoundOnlyWithBothTypes(t *testing.T) {
	at, ok := vethTagOffsets() // of this kernel, or none
	if ok != (at.skb != 0 && at.vlan != 0) {
		t.Errorf("%+v, %t", at, ok)
	}
	if ok {
		netnstest.Need(t, netnstest.BPF)
		p, err := load(LoadOptions{Ifindex: 1, Queues: 1}, at, nil)
		if err != nil {
			t.Fatalf("the kernel refuses the program that reads tags: %+v", err)
		}
		p.Close()
	}
}
