package bpf

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// onOneCPU keeps the rest of a test on one CPU: its frames have one set of slots. The thread ends with the test.
func onOneCPU(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if may.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
}

// fromPort is a frame of 60 bytes of the flow from a TCP port.
func fromPort(n int) []byte {
	return padded(60, withPorts(n, 80, ip4(6, 0x4000, nil, tcp(5, 0x10, 2))))
}

// repeat gives the program one frame so many times and returns how many it got: a run that a signal interrupts is begun anew.
func (p *Program) repeat(t testing.TB, frame []byte, n uint32) uint64 {
	t.Helper()
	before, err := p.Outcomes()
	if err == nil {
		_, err = p.prog.Run(&ebpf.RunOptions{Data: frame, Repeat: n})
	}
	after, err2 := p.Outcomes()
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return after["pass_port"] - before["pass_port"]
}

// sharingASlot are two flows, by their port, that have one slot.
func (p *Program) sharingASlot(t testing.TB) (a, b int) {
	t.Helper()
	had := map[int]int{} // by slot of a CPU
	for n := 1; n < 10*flowSlots; n++ {
		p.run(t.(*testing.T), fromPort(n))
		for at := range p.slots.slots {
			s := &p.slots.slots[at]
			if s.Owner == 0 || s.Key.SrcPort != uint16(n) {
				continue
			}
			if other := had[at%flowSlots]; other != 0 && other != n {
				return other, n
			}
			had[at%flowSlots] = n
		}
		if len(had) < n-1 { // the second in a row takes a slot
			p.run(t.(*testing.T), fromPort(n))
			n--
		}
	}
	t.Fatal("no two flows share a slot")
	return 0, 0
}

// expectFlow looks at what is known of one flow, which is listed once.
func expectFlow(t *testing.T, rows []Flow, port int, packets uint64) {
	t.Helper()
	found := 0
	for _, r := range rows {
		if r.Key.SrcPort != uint16(port) {
			continue
		}
		found++
		if s := r.Stats; s.Packets() != packets || s.Bytes != 60*packets || s.PayloadBytes != 2*packets || s.TCPFlags != 0x10 || s.FirstNS == 0 || s.LastNS < s.FirstNS {
			t.Errorf("flow %d: %+v, want %d packets", port, s, packets)
		}
	}
	if found != 1 {
		t.Errorf("flow %d is listed %d times", port, found)
	}
}

// A flow's counts are partly in its row and partly in slots. However flows take slots from one another, each is listed once and nothing of it
// is lost or counted twice, also with a packet that the parser does not find whole.
func TestEveryFlowIsListedOnceWithAllOfIt(t *testing.T) {
	p := loadForTest(t)
	p.mustSetPort(t, 0, PortValue{Port: 3})
	a, b := p.sharingASlot(t)
	p.countIn(t, 3, 4096)
	for at := range p.slots.slots {
		p.slots.slots[at] = flowSlot{}
	}
	var want [2]uint64
	for _, runs := range []uint32{1, 1, 1, 5, 7, 1, 1, 2, 6} {
		want[0] += p.repeat(t, fromPort(a), runs)
		want[1] += p.repeat(t, fromPort(b), runs)
		rows, err := p.readFlows(t, 3)
		if err != nil || len(rows) != 2 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		expectFlow(t, rows, a, want[0])
		expectFlow(t, rows, b, want[1])
	}
	rows, err := ReadFlows(p.flowsOf(t, 3))
	if err != nil || len(rows) != 2 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	var inRows uint64
	for _, r := range rows {
		inRows += r.Stats.Packets()
	}
	if inRows == want[0]+want[1] {
		t.Error("nothing is in a slot")
	}
}

// Read while two flows take a slot from each other, counts never exceed what was sent, and never fall.
func TestCountsNeverFallWhileSlotsChangeHands(t *testing.T) {
	p := loadForTest(t)
	p.mustSetPort(t, 0, PortValue{Port: 3})
	a, b := p.sharingASlot(t)
	p.countIn(t, 3, 4096)
	for at := range p.slots.slots {
		p.slots.slots[at] = flowSlot{}
	}
	var sent, stop atomic.Uint64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; stop.Load() == 0; i++ {
			sent.Add(1)
			if _, err := p.prog.Run(&ebpf.RunOptions{Data: fromPort([]int{a, a, b, b, b}[i%5]), Repeat: 1}); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	var last uint64
	for range 2000 {
		rows, err := p.readFlows(t, 3)
		if err != nil {
			t.Error(err)
			break
		}
		var n uint64
		for _, r := range rows {
			n += r.Stats.Packets()
		}
		if most := sent.Load(); n < last || n > most+most/1000+10 { // what a signal interrupts is sent again
			t.Errorf("%d packets of at most %d, %d before", n, most, last)
			break
		}
		last = n
	}
	stop.Store(1)
	<-done
}

// A VM that leaves leaves its counts in its map, also those that were in slots, and none of them in anybody's slot.
func TestWhatAVMLeavesIsAllInItsMap(t *testing.T) {
	p := loadForTest(t)
	p.mustSetPort(t, 0, PortValue{Port: 3})
	m := p.flowsOf(t, 3)
	want := map[int]uint64{}
	for n := 1; n <= 200; n++ {
		want[n] = p.repeat(t, fromPort(n), 9)
	}
	if err := errors.Join(p.DeletePort(PortKey{MAC: vmMAC}), p.EndFlows(3, m)); err != nil {
		t.Fatal(err)
	}
	rows, err := ReadFlows(m)
	if err != nil || len(rows) != len(want) {
		t.Fatalf("%d rows of %d, %v", len(rows), len(want), err)
	}
	for n, packets := range want {
		expectFlow(t, rows, n, packets)
	}
	if held := p.Slots().held; len(held) != 0 {
		t.Errorf("%d VMs have slots", len(held))
	}
}

// A busy flow's row is brought up to date once a second, so that it is no old one, and a crash loses no more.
func TestABusyFlowsRowIsBroughtUpToDate(t *testing.T) {
	onOneCPU(t)
	p := loadForTest(t)
	p.mustSetPort(t, 0, PortValue{Port: 3})
	n := p.repeat(t, fromPort(7), 5)
	for at := range p.slots.slots {
		if s := &p.slots.slots[at]; s.Owner != 0 {
			s.SinceNS -= 1e9
			s.Tick--
		}
	}
	for range 2 {
		n += p.repeat(t, fromPort(7), 1)
	}
	if rows, err := p.readFlows(t, 3); err != nil {
		t.Error(err)
	} else {
		expectFlow(t, rows, 7, n)
	}
	rows, err := ReadFlows(p.flowsOf(t, 3))
	if err != nil || len(rows) != 1 || rows[0].Stats.Packets() < n-2 {
		t.Errorf("rows %+v of %d packets, %v", rows, n, err)
	}
}

// An heir, of this version or another, goes on with what was counted and is in no row yet.
func TestAnHeirHasWhatIsInSlots(t *testing.T) {
	for _, object := range []string{"", "another version's"} {
		old := loadForTest(t)
		old.mustSetPort(t, 0, PortValue{Port: 3})
		n := old.repeat(t, fromPort(7), 5)
		parts := mustParts(t, old.Parts)
		if object != "" {
			parts.Object = object
		}
		p, err := Adopt(LoadOptions{Ifindex: 1, Queues: 1}, parts, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		n += p.repeat(t, fromPort(7), 5)
		rows, err := p.readFlows(t, 3)
		if err != nil || len(rows) != 1 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		expectFlow(t, rows, 7, n)
	}
}
