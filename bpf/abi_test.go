package bpf

import (
	"encoding/binary"
	"github.com/rscctl/rscctl/bpf/meta"
	"reflect"
	"slices"
	"testing"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/rscctl/rscctl/flowtable/packet"
)

// The Go side of the ABI is compared with the types in the committed object. It needs no privilege.

func objectTypes(t *testing.T) *btf.Spec {
	t.Helper()
	spec, err := LoadRsc()
	if err != nil {
		t.Fatal(err)
	}
	return spec.Types
}

func structNamed(t *testing.T, types *btf.Spec, name string) *btf.Struct {
	t.Helper()
	var s *btf.Struct
	if err := types.TypeByName(name, &s); err != nil {
		t.Fatalf("struct %s: %v", name, err)
	}
	return s
}

func TestGoStructsLieAsInTheObject(t *testing.T) {
	tap, err := LoadRscTap()
	if err != nil {
		t.Fatal(err)
	}
	observe, err := LoadRscObserve()
	if err != nil {
		t.Fatal(err)
	}
	xdp := objectTypes(t)
	for _, c := range []struct {
		name  string
		types *btf.Spec
		goes  any
	}{
		{"port_key", xdp, PortKey{}}, {"port_value", xdp, PortValue{}}, {"excluded_key", xdp, excludedKey{}},
		{"rx_queue", xdp, rxQueue{}}, {"device", xdp, device{}}, {"rx_vm", xdp, rxVM{}},
		{"flow_slot", xdp, flowSlot{}}, {"flow_key", tap.Types, FlowKey{}}, {"flow_stats", tap.Types, FlowStats{}},

		{"observed", observe.Types, Observed{}}, {"observed_tcp", observe.Types, ObservedTCP{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, g := structNamed(t, c.types, c.name), reflect.TypeOf(c.goes)
			if int(s.Size) != int(g.Size()) || len(s.Members) != g.NumField() {
				t.Fatalf("C has %d bytes in %d members, Go %d in %d", s.Size, len(s.Members), g.Size(), g.NumField())
			}
			for i, m := range s.Members {
				f := g.Field(i)
				size, err := btf.Sizeof(m.Type)
				if err != nil {
					t.Fatal(err)
				}
				if m.Offset.Bytes() != uint32(f.Offset) || size != int(f.Type.Size()) {
					t.Errorf("C %s at %d of %d bytes, Go %s at %d of %d", m.Name, m.Offset.Bytes(), size, f.Name, f.Offset, f.Type.Size())
				}
			}
		})
	}
}

func TestTheMarkAndTheOutcomesAreTheObjects(t *testing.T) {
	spec, err := LoadRscHost()
	if err != nil {
		t.Fatal(err)
	}
	if n := spec.Maps[RscHostMapOutcomes].MaxEntries; int(n) != len(hostOutcomeNames) {
		t.Errorf("the object counts %d outcomes, Go names %d", n, len(hostOutcomeNames))
	}
	for name, prog := range spec.Programs {
		if name == RscHostProgRscWayIn { // which looks at nothing
			continue
		}
		if !slices.ContainsFunc(prog.Instructions, func(i asm.Instruction) bool { return i.Constant == meta.HostMark }) {
			t.Errorf("%s does not compare with %#x", name, meta.HostMark)
		}
	}
}

func TestParseMetaReadsWhatTheObjectWrites(t *testing.T) {
	s := structNamed(t, objectTypes(t), "frame_meta")
	if s.Size != meta.Size {
		t.Fatalf("frame_meta has %d bytes", s.Size)
	}
	// Every member gets a value of its own, at the object's offset.
	value := map[string]uint64{"magic": 0x31435352, "frame_len": 1514, "port": 0x01020304, "l3": 0x0506, "l4": 0x0708, "payload": 0x090a,
		"payload_len": 0x0b0c, "tci": 0x0d0e, "family": 6, "verdict": 10, "flags": 7, "tcp_flags": 0x18, "queue_ticket": 0xfedc, "vm_ticket": 0xba98, "reserved": 0}
	b := make([]byte, meta.Size)
	for _, m := range s.Members {
		v, ok := value[m.Name]
		if !ok {
			t.Fatalf("member %s is new", m.Name)
		}
		size, _ := btf.Sizeof(m.Type)
		var le [8]byte
		binary.LittleEndian.PutUint64(le[:], v)
		copy(b[m.Offset.Bytes():], le[:size])
	}
	var got meta.Meta
	if !meta.Parse(b, 1514, &got) {
		t.Fatal("not taken for metadata")
	}
	want := meta.Meta{Port: 0x01020304, L3: 0x0506, L4: 0x0708, Payload: 0x090a, PayloadLen: 0x0b0c, TCI: 0x0d0e, Family: 6, Verdict: 10, Flags: 7, TCPFlags: 0x18, VMTicket: 0xba98, QueueTicket: 0xfedc}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseMetaRefusesWhatIsNotOurs(t *testing.T) {
	good := make([]byte, meta.Size)
	binary.LittleEndian.PutUint32(good, 0x31435352)
	binary.LittleEndian.PutUint32(good[8:], 60)
	var m meta.Meta
	if !meta.Parse(good, 60, &m) {
		t.Fatal("the good one was refused")
	}
	for name, c := range map[string]struct {
		b []byte
		n int
	}{
		"nothing":              {nil, 60},
		"cut":                  {good[:meta.Size-1], 60},
		"another frame's":      {good, 61},
		"length of 2^16 + 60":  {good, 1<<16 + 60},
		"without magic":        {append(make([]byte, 4), good[4:]...), 60},
		"a negative length":    {good, -1},
		"zeroes of a new page": {make([]byte, meta.Size), 0},
	} {
		if meta.Parse(c.b, c.n, &m) {
			t.Errorf("%s: taken for metadata", name)
		}
	}
}

func TestVerdictsAreThoseOfThePacketPackage(t *testing.T) {
	if NumVerdicts != packet.NumVerdicts {
		t.Fatalf("%d verdicts here, %d there", NumVerdicts, packet.NumVerdicts)
	}
	for v := range NumVerdicts {
		if VerdictName(v) != packet.Verdict(v).String() {
			t.Errorf("%d is %q here and %q there", v, VerdictName(v), packet.Verdict(v))
		}
	}
	if VerdictName(-1) != "" || VerdictName(NumVerdicts) != "" {
		t.Error("a name out of range")
	}
}

func TestEveryPortHasAPlaceForItsFlows(t *testing.T) {
	spec, err := LoadRsc()
	if err != nil {
		t.Fatal(err)
	}
	if n := spec.Maps[RscMapFlows].MaxEntries; n < 2*meta.MaxPorts {
		t.Errorf("%d places for the maps of %d VMs and of those before them", n, meta.MaxPorts)
	}
	if n := spec.Maps[RscMapRowsMade].MaxEntries; n != meta.MaxPorts {
		t.Errorf("%d places in C, %d in Go", n, meta.MaxPorts)
	}
	if n := spec.Maps[RscMapFlowSlots].MaxEntries; n != flowSlots {
		t.Errorf("%d slots in C, %d in Go", n, flowSlots)
	}
}

func TestEveryOutcomeHasAName(t *testing.T) {
	spec, err := LoadRsc()
	if err != nil {
		t.Fatal(err)
	}
	if n := spec.Maps[RscMapOutcomes].MaxEntries; int(n) != len(outcomeNames) {
		t.Errorf("%d outcomes in C, %d names in Go", n, len(outcomeNames))
	}
}

func TestParseMetaDoesNotAllocate(t *testing.T) {
	b := make([]byte, meta.Size)
	binary.LittleEndian.PutUint32(b, 0x31435352)
	var m meta.Meta
	if n := testing.AllocsPerRun(100, func() { meta.Parse(b, 0, &m) }); n != 0 {
		t.Errorf("meta.Parse allocates %v times", n)
	}
}

func TestAPortIDIsNotGivenOutAgainWithItsPlace(t *testing.T) {
	seen := map[uint32]bool{}
	for _, place := range []uint32{0, 1, meta.MaxPorts - 1} {
		for _, before := range []uint32{0, 1, 2, 1<<24 - 1} {
			id := meta.PortID(place, before)
			if meta.PortIndex(id) != place || seen[id] {
				t.Errorf("place %d after %d VMs: id %#x of place %d, seen %t", place, before, id, meta.PortIndex(id), seen[id])
			}
			seen[id] = true
		}
	}
}
