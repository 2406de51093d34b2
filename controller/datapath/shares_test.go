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
}

func (s *heardShares) Took(port uint32, vm, queue uint16) {
	s.took = append(s.took, port, uint32(vm), uint32(queue))
}
func (s *heardShares) Publish() { s.published = len(s.took) }

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
