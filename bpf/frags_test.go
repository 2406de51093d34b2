package bpf

import (
	"errors"
	"testing"

	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/test/netnstest"
)

var frags = netnstest.Kernel(5, 18)

// A frame in several pieces is parsed by what is in the first one, and described with all of its length: as the other parser does, which has it in
// one piece. The smaller ones are as ever.
func TestAFrameInSeveralPiecesIsParsedAsOne(t *testing.T) {
	netnstest.Need(t, netnstest.BPF, frags)
	p, err := Load(LoadOptions{Ifindex: 1, Queues: 1, Jumbo: true})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer p.Close()
	for _, vlan := range []uint16{0, testVLAN} {
		p.mustSetPort(t, vlan, PortValue{Port: uint32(vlan), Flags: FlagSteer})
	}
	for _, s := range samples() {
		sameParse(t, p, s.name, s.frame)
		sameParse(t, p, s.name+", long", append(s.frame[:len(s.frame):len(s.frame)], make([]byte, 9000)...)) // a trailer, for most
	}
	for _, n := range []int{3000, 4000, 8960, 16000} {
		f := ip4(6, 0x4000, nil, tcp(5, 0x10, n))
		sameParse(t, p, "TCP", f)
		sameParse(t, p, "TCP, cut in a piece behind the first", f[:len(f)-1])
	}
	flows, err := p.readFlows(t, 0)
	if err != nil || len(flows) == 0 {
		t.Fatalf("%v, %v", flows, err)
	}
	most := uint64(0)
	for _, f := range flows {
		most = max(most, f.Stats.PayloadBytes)
	}
	if most < 3000+4000+8960+16000 {
		t.Errorf("at most %d bytes of payload are counted of a flow", most)
	}
}

// A driver that refuses an MTU takes it with a program that takes frames in several pieces.
func TestADriverTakesAJumboMTUWithFrags(t *testing.T) {
	netnstest.Need(t, netnstest.BPF, frags)
	if err := CheckFrags(); err != nil {
		t.Fatal(err)
	}
	n := netnstest.Pair(t, netnstest.Options{MTU: 9000, NoIPv6: true})
	n.B.Do(t, func() error {
		for _, jumbo := range []bool{false, true} {
			p, err := Load(LoadOptions{Ifindex: n.B.Index, Queues: 1, Native: true, Jumbo: jumbo})
			if err != nil {
				return err
			}
			defer p.Close()
			if err := p.Attach(true); jumbo && err != nil || !jumbo && !errors.Is(err, ErrUnsupported) {
				t.Errorf("frags %t: %v", jumbo, err)
			}
		}
		return nil
	})
}

// What contradicts a frame is a description of another length, and nothing else.
func TestMetadataOfAnotherLengthContradicts(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	p := loadForTest(t)
	p.mustSetPort(t, 0, PortValue{Port: 0, Flags: FlagSteer})
	f := ip4(6, 0x4000, nil, tcp(5, 0x10, 1000))
	_, out := p.run(t, f)
	for n, want := range map[int]bool{len(f): false, len(f) - 1: true, 2 * len(f): true} {
		if got := meta.Contradicts(out, n); got != want {
			t.Errorf("of %d bytes, as one of %d: %t", len(f), n, got)
		}
	}
	if meta.Contradicts(make([]byte, meta.Size), 100) || meta.Contradicts(out[:meta.Size-1], 1) {
		t.Error("what is no description contradicts")
	}
}
