package datapath

import (
	"encoding/binary"
	"log/slog"
	"testing"

	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// What an index of a VM that left still reaches, when another VM has got it.

// ringNIC is an RX ring with frames in it. Whatever else a NIC does, it does not.
type ringNIC struct {
	NIC
	frames, metas [][]byte
}

func (n *ringNIC) put(frame []byte, id uint32) {
	n.frames, n.metas = append(n.frames, frame), append(n.metas, xdpMeta(frame, id))
}

func (n *ringNIC) Recv(d []xsk.Desc) int {
	k := min(len(d), len(n.frames))
	for i := range d[:k] {
		d[i] = xsk.Desc{Addr: uint64(i), Len: uint32(len(n.frames[i]))}
	}
	return k
}
func (n *ringNIC) Chunks() xsk.Chunks { return xsk.Chunks{} }
func (n *ringNIC) Received(d xsk.Desc) (frame, meta []byte) {
	return n.frames[d.Addr], n.metas[d.Addr]
}
func (n *ringNIC) Free(uint64)               {}
func (n *ringNIC) FreeAll([]uint64)          {}
func (n *ringNIC) Refill() int               { n.frames, n.metas = nil, nil; return 0 } // the end of a burst
func (n *ringNIC) TxRoom() int               { return 0 }
func (n *ringNIC) Publish()                  {}
func (n *ringNIC) BusyPoll()                 {}
func (n *ringNIC) TxPending() int            { return 0 }
func (n *ringNIC) TxUnsent() bool            { return false }
func (n *ringNIC) Stats() (xsk.Stats, error) { return xsk.Stats{}, nil }

// xdpMeta is what XDP writes in front of a frame for a VM: struct frame_meta in bpf/abi.h.
func xdpMeta(frame []byte, id uint32) []byte {
	var i packet.Info
	packet.Parse(frame, &i)
	b := make([]byte, meta.Size)
	le := binary.LittleEndian
	le.PutUint32(b, 0x31435352)
	le.PutUint32(b[4:], id)
	le.PutUint16(b[8:], uint16(len(frame)))
	for off, v := range map[int]uint32{12: i.L3, 14: i.L4, 16: i.Payload, 18: i.PayloadLen} {
		le.PutUint16(b[off:], uint16(v))
	}
	b[22], b[23], b[24], b[25] = i.Family, uint8(i.Verdict), meta.Keyed, i.TCPFlags
	return b
}

// lens is a guest that takes everything and remembers the frames' lengths.
type lens struct {
	got   []int
	burst int
	limit int
}

func (g *lens) Walked() int          { return 1 }
func (g *lens) Begin(int) bool       { g.burst = 0; return true }
func (g *lens) Put(f *Frame) error   { g.burst++; g.got = append(g.got, f.Len); return nil }
func (g *lens) Commit() (int, error) { return g.burst, nil }
func (g *lens) Reap() int            { return 0 }
func (g *lens) Arm(bool) (int, bool) { return -1, false }
func (g *lens) Ack()                 {}
func (g *lens) MaxFrame() int        { return g.limit }
func (g *lens) Check(bool) error     { return nil }
func (g *lens) Close() (int, error)  { return 0, nil }

var (
	leftMAC = [6]byte{2, 0, 0, 0, 0, 1}
	newMAC  = [6]byte{2, 0, 0, 0, 0, 2}
)

func ringWorker(t *testing.T) (*Worker, *ringNIC) {
	t.Helper()
	n := &ringNIC{}
	w, err := New(Config{MTU: 1500, NIC: n, WakeFD: -1, Chunks: 1024, Slots: 64, Log: slog.New(slog.DiscardHandler), Clock: func() int64 { return 1 }, Trouble: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	return w, n
}

func (w *Worker) admit(t *testing.T, c PortConfig, g Guest) {
	t.Helper()
	rules := flowtable.DefaultPortConfig()
	rules.Hold, rules.GuestCsum, rules.TSO4, rules.TSO6 = 0, true, true, true
	w.addPort(c)
	if err := w.startPort(c.Index, g, nil, rules); err != nil {
		t.Fatal(err)
	}
}

// XDP's metadata in the RX ring outlives its VM. The VM that has the index now gets none of these frames.
func TestFramesInTheRingOfAVMThatLeftDoNotReachItsSuccessor(t *testing.T) {
	w, nic := ringWorker(t)
	left, next := &lens{}, &lens{}
	w.admit(t, PortConfig{Index: 5, Addr: Addr{MAC: leftMAC}}, left)
	for _, p := range (pt.TCP{DstMAC: leftMAC, Len: 1000}).Train(20) {
		nic.put(p.Frame(), meta.PortID(5, 0))
	}
	w.removePort(5)
	w.admit(t, PortConfig{Index: 5, Generation: 1, Addr: Addr{MAC: newMAC}}, next)
	w.step()
	if len(next.got)+len(left.got) != 0 || w.cnt.Unknown != 20 {
		t.Errorf("the new VM got %d frames of the old one, %d are counted as nobody's", len(next.got), w.cnt.Unknown)
	}
	nic.put(pt.TCP{DstMAC: newMAC, Len: 1000}.Frame(), meta.PortID(5, 1))
	w.step()
	if len(next.got) != 1 || w.cnt.Unknown != 20 {
		t.Errorf("the new VM got %d of its own frames, %d are nobody's", len(next.got), w.cnt.Unknown)
	}
}

// Counters and the limit that the old VM's small buffers set are not the new VM's.
func TestAnIndexGivenOutAgainStartsAnew(t *testing.T) {
	w, nic := ringWorker(t)
	small, large := &lens{limit: 1514}, &lens{}
	w.admit(t, PortConfig{Index: 5, Addr: Addr{MAC: leftMAC}}, small)
	send := func(mac [6]byte, id uint32) {
		for _, p := range (pt.TCP{DstMAC: mac, Len: 1000}).Train(10) {
			nic.put(p.Frame(), id)
		}
		w.step()
	}
	send(leftMAC, meta.PortID(5, 0))
	send(leftMAC, meta.PortID(5, 0))
	w.removePort(5)
	w.admit(t, PortConfig{Index: 5, Generation: 1, Addr: Addr{MAC: newMAC}}, large)
	s := w.snapshot().Port(5)
	if s.Ledger != (flowtable.Ledger{}) || s.Counters != (PortCounters{}) {
		t.Errorf("the new VM starts with %+v %+v", s.Ledger, s.Counters)
	}
	send(newMAC, meta.PortID(5, 1))
	if len(large.got) != 1 || large.got[0] < 10*1000 {
		t.Errorf("ten segments came as frames of %v bytes: the limit is the old VM's", large.got)
	}
}
