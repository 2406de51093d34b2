package datapath

import (
	"slices"
	"testing"

	"github.com/rscctl/rscctl/bpf/meta"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// heardShares remembers what the worker says.
type heardShares struct {
	took      []uint32
	published int // of took
	beats     int // calls of Publish
	overtaken int // what Overtaken says next
}

func (s *heardShares) Took(port uint32, vm, queue uint16) {
	s.took = append(s.took, port, uint32(vm), uint32(queue))
}

func (s *heardShares) Publish() {
	s.published = len(s.took)
	s.beats++
}

func (s *heardShares) Overtaken() (n int) {
	n, s.overtaken = s.overtaken, 0
	return n
}

// Every frame that leaves the RX ring is told of, also one for a VM that has gone, and shown to XDP before the burst is over.
func TestXDPHearsOfEveryFrameTakenFromTheRing(t *testing.T) {
	w, nic := ringWorker(t)
	s := &heardShares{}
	w.cfg.Shares = s
	w.admit(t, PortConfig{Index: 5, Generation: 1, Addr: Addr{MAC: newMAC}}, &lens{})
	frame := pt.TCP{DstMAC: newMAC, Len: 100}.Frame()
	var want []uint32
	for i, id := range []uint32{meta.PortID(5, 1), meta.PortID(5, 0), meta.PortID(9, 0)} {
		nic.put(frame, id)
		m := nic.metas[i]
		m[10], m[26] = byte(40+i), byte(20+i) // the tickets
		want = append(want, id, uint32(20+i), uint32(40+i))
	}
	nic.frames, nic.metas = append(nic.frames, frame), append(nic.metas, make([]byte, meta.Size)) // without metadata
	w.step()
	if !slices.Equal(s.took, want) || s.published != len(want) {
		t.Errorf("told %v, of which %d shown; want %v", s.took, s.published, want)
	}
}

// A worker beats behind every burst, also when the ring was empty: XDP then knows that it does not hang.
func TestAWorkerBeatsBehindEveryBurst(t *testing.T) {
	r := newRig(t)
	s := &heardShares{}
	r.w.cfg.Shares = s
	r.vm(1)
	for want := 1; want <= 3; want++ {
		if r.step(); s.beats != want {
			t.Errorf("%d beats in %d steps without frames", s.beats, want)
		}
	}
	for range BurstFrames + 1 {
		r.inject(to(1, 100).Frame())
	}
	if r.step(); s.beats != 5 {
		t.Errorf("%d beats, want one for each of the two bursts more", s.beats)
	}
	if r.w.drain(); s.beats != 6 { // so a switch of the steering leaves nobody waited for
		t.Errorf("%d beats, want one more for the drain of an empty ring", s.beats)
	}
}

// What waited while the worker hung is late, if the kernel may have brought later frames of its flow: that is for a VM behind a bridge.
func TestFramesThatWaitedForAHungWorkerAreLate(t *testing.T) {
	r := newRig(t)
	s := &heardShares{overtaken: BurstFrames + 6}
	r.w.cfg.Shares = s
	r.vm(1, func(c *PortConfig) { c.Bridged = true })
	r.vm(2)
	for range BurstFrames { // two of three are for the VM behind the bridge
		r.inject(to(1, 100).Frame(), to(1, 100).Frame(), to(2, 100).Frame())
	}
	for r.step() {
	}
	const waited = (BurstFrames + 6) / 3 * 2
	if a, b := r.w.ports[1].cnt.Late, r.w.ports[2].cnt.Late; a != waited+1 || b != 0 {
		t.Errorf("%d and %d frames were late", a, b)
	}
}
