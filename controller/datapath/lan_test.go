package datapath

import (
	"bytes"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// lan is a worker with a wire and VMs beside it, for the tests of what may cross between them. It is stepped by the test.
type lan struct {
	tb   testing.TB
	w    *Worker
	nic  *lanNIC
	now  time.Duration
	from lanGroup
	vms  []*lanVM
}

const lanChunk = 2048

// lanNIC keeps what was sent. A chunk that is handed out is full of other VMs' bytes.
type lanNIC struct {
	mem  []byte
	free []uint64
	out  map[uint64]bool
	wire [][]byte
	rx   [][]byte
	room int // TX slots
	lazy bool
}

func newLANNIC(chunks int) *lanNIC {
	n := &lanNIC{mem: make([]byte, chunks*lanChunk), out: map[uint64]bool{}, room: 1 << 20}
	for i := range chunks {
		n.free = append(n.free, uint64(i*lanChunk))
	}
	return n
}

func (n *lanNIC) AllocTx() ([]byte, xsk.Desc, bool) {
	if len(n.free) == 0 {
		return nil, xsk.Desc{}, false
	}
	a := n.free[len(n.free)-1]
	n.free = n.free[:len(n.free)-1]
	b := n.mem[a : a+lanChunk : a+lanChunk]
	if !n.lazy {
		n.out[a] = true
		for i := range b {
			b[i] = 0xee
		}
	}
	return b, xsk.Desc{Addr: a, Len: lanChunk}, true
}

func (n *lanNIC) Free(ref uint64) {
	a := ref &^ (lanChunk - 1)
	if !n.lazy {
		if !n.out[a] {
			return
		}
		delete(n.out, a)
	}
	n.free = append(n.free, a)
}

func (n *lanNIC) FreeAll(refs []uint64) {
	for _, r := range refs {
		n.Free(r)
	}
}

func (n *lanNIC) Chunks() xsk.Chunks { return xsk.Chunks{} } // nothing in front of a frame is XDP's

func (n *lanNIC) Received(d xsk.Desc) (frame, meta []byte) {
	return n.mem[d.Addr : d.Addr+uint64(d.Len)], nil
}

func (n *lanNIC) Send(d xsk.Desc, l int) bool {
	if !n.lazy {
		n.wire = append(n.wire, bytes.Clone(n.mem[d.Addr:d.Addr+uint64(l)]))
	}
	n.Free(d.Addr)
	return true
}

func (n *lanNIC) Recv(d []xsk.Desc) (k int) {
	for k < len(d) && len(n.rx) > 0 {
		buf, desc, _ := n.AllocTx()
		desc.Len = uint32(copy(buf, n.rx[0]))
		d[k], n.rx = desc, n.rx[1:]
		k++
	}
	return k
}

func (n *lanNIC) Refill() int               { return 0 }
func (n *lanNIC) TxRoom() int               { return min(n.room, len(n.free)) }
func (n *lanNIC) Publish()                  {}
func (n *lanNIC) BusyPoll()                 {}
func (n *lanNIC) TxPending() int            { return 0 }
func (n *lanNIC) TxUnsent() bool            { return false }
func (n *lanNIC) Flush() error              { return nil }
func (n *lanNIC) FD() int                   { return -1 }
func (n *lanNIC) Stats() (xsk.Stats, error) { return xsk.Stats{}, nil }

// lanVM is a guest and its TX queue: one that takes all it is given, and keeps a copy.
type lanVM struct {
	nic   *lanNIC
	index uint32
	mac   [6]byte
	keeps bool // chunks, as the ring of a tap does
	kept  int
	sends []vhost.TxFrame
	got   [][]byte
	count int
	puts  []uint64

	tx, rx [flowtable.NumReasons]uint64 // when they were looked at last
}

func (g *lanVM) Begin(int) bool { return true }

func (g *lanVM) Put(f *Frame) error {
	if !g.nic.lazy {
		g.got = append(g.got, bytes.Join(f.Frags, nil))
	}
	g.count++
	g.puts = append(g.puts, f.Refs...)
	return nil
}

func (g *lanVM) Commit() (int, error) {
	n := len(g.puts)
	for _, r := range g.puts {
		if g.keeps {
			g.kept++
			continue
		}
		g.nic.Free(r)
	}
	g.puts = g.puts[:0]
	return n, nil
}

func (g *lanVM) Walked() int          { return 0 }
func (g *lanVM) Reap() int            { return g.kept }
func (g *lanVM) Arm(bool) (int, bool) { return -1, false }
func (g *lanVM) Ack()                 {}
func (g *lanVM) MaxFrame() int        { return 0 }
func (g *lanVM) Check(bool) error     { return nil }
func (g *lanVM) Close() (int, error)  { return 0, nil }

func (g *lanVM) Poll(budget int, fn func(*vhost.TxFrame) vhost.Next, before func() int) (n, walked int, err error) {
	for n < budget && n < len(g.sends) {
		f := vhost.TxFrame{Hdr: g.sends[n].Hdr, Data: bytes.Clone(g.sends[n].Data)} // the queue's frame is a copy, too
		next := fn(&f)
		if next == vhost.Leave {
			break
		}
		n++
		if next == vhost.TakeLast {
			break
		}
	}
	if n > 0 {
		n -= before()
	}
	g.sends = g.sends[n:]
	return n, n, nil
}

func (g *lanVM) ArmKick() bool { return len(g.sends) > 0 }
func (g *lanVM) DisarmKick()   {}
func (g *lanVM) KickFD() int   { return -1 }
func (g *lanVM) AckKick()      {}

// lanGroup is the socket of group frames: each with its VLAN's tag beside it, as the kernel gives them.
type lanGroup struct{ queue []lanGroupFrame }

type lanGroupFrame struct {
	data   []byte
	tci    uint16
	tagged bool
}

func (g *lanGroup) Recv(buf []byte) ([]byte, uint16, bool, error) {
	if len(g.queue) == 0 {
		return nil, 0, false, io.EOF
	}
	f := g.queue[0]
	g.queue = g.queue[1:]
	return buf[:copy(buf, f.data)], f.tci, f.tagged, nil
}

func (g *lanGroup) FD() int                   { return -1 }
func (g *lanGroup) Dropped() (uint64, uint64) { return 0, 0 }

var (
	lanHost    = [6]byte{2, 1, 0, 0, 0, 1} // the uplink's own address
	lanStation = [6]byte{2, 9, 0, 0, 0, 9} // somebody on the wire
	everybody  = [6]byte{255, 255, 255, 255, 255, 255}
)

func newLAN(tb testing.TB, chunks int) *lan {
	tb.Helper()
	l := &lan{tb: tb, nic: newLANNIC(chunks)}
	w, err := New(Config{
		MTU: 1500, Own: lanHost, NIC: l.nic, Multicast: &l.from, WakeFD: -1, Chunks: chunks, Slots: 64,
		Log: slog.New(slog.DiscardHandler), Clock: func() int64 { return int64(l.now) }, Trouble: func() {},
	})
	if err != nil {
		tb.Fatal(err)
	}
	l.w = w
	return l
}

// vm adds a running VM whose address is its place in the order of VMs.
func (l *lan) vm(edits ...func(*PortConfig)) *lanVM {
	l.tb.Helper()
	i := uint32(len(l.vms))
	cfg := PortConfig{Index: i, Addr: Addr{MAC: [6]byte{2, 0, 0, 0, 1, byte(i)}}}
	for _, e := range edits {
		e(&cfg)
	}
	l.w.addPort(cfg)
	g := &lanVM{nic: l.nic, index: i, mac: cfg.Addr.MAC}
	l.vms = append(l.vms, g)
	rules := flowtable.DefaultPortConfig()
	rules.Hold = 0
	if err := l.w.startPort(i, g, []Source{g}, rules); err != nil {
		l.tb.Fatal(err)
	}
	return g
}

func inLAN(vlan uint16) func(*PortConfig) { return func(c *PortConfig) { c.Addr.VLAN = vlan } }

func maySpoof(c *PortConfig) { c.AllowSpoof = true }

// send lets a VM send frames, and the worker take turns until they are gone. The clock stands.
func (l *lan) send(g *lanVM, frames ...[]byte) {
	l.tb.Helper()
	for _, f := range frames {
		l.sendHdr(g, virtio.NetHdr{}, f)
	}
}

func (l *lan) sendHdr(g *lanVM, h virtio.NetHdr, frame []byte) {
	l.tb.Helper()
	g.sends = append(g.sends, vhost.TxFrame{Hdr: h, Data: frame})
	for turn := 0; len(g.sends) > 0; turn++ {
		if turn == 10000 {
			l.tb.Fatal("the queue stands still")
		}
		l.w.step()
	}
}

// receiveGroup lets a group frame come from the wire.
func (l *lan) receiveGroup(f lanGroupFrame) {
	l.from.queue = append(l.from.queue, f)
	l.w.receiveGroup()
	l.w.step()
}

// sendTSO lets a VM send a TSO frame that becomes so many packets.
func (l *lan) sendTSO(g *lanVM, dst [6]byte, packets int) {
	l.tb.Helper()
	p := pt.TCP{DstMAC: dst, SrcMAC: g.mac, Len: 100 * packets}
	h := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: 100, CsumStart: 34, CsumOffset: 16}
	l.sendHdr(g, h, p.Frame())
}

// lanReasons is a count of frames by reason, without zeros.
type lanReasons map[flowtable.Reason]uint64

// txDropped is what was counted for a VM's frames since the last call.
func (l *lan) txDropped(g *lanVM) lanReasons {
	return sinceLast(&g.tx, &l.w.port(g.index).cnt.TxDropped)
}

// rxDropped is the same of what was for the VM.
func (l *lan) rxDropped(g *lanVM) lanReasons {
	l.tb.Helper()
	ledger := l.w.table.Ledger(g.index)
	if n := ledger.Unexplained(); n != 0 {
		l.tb.Errorf("%d packets unexplained", n)
	}
	return sinceLast(&g.rx, &ledger.Dropped)
}

func sinceLast(last, now *[flowtable.NumReasons]uint64) lanReasons {
	m := lanReasons{}
	for r, n := range now {
		if n != last[r] {
			m[flowtable.Reason(r)] = n - last[r]
		}
	}
	*last = *now
	return m
}

// sent returns what went to the wire, and forgets it.
func (l *lan) sent() [][]byte {
	s := l.nic.wire
	l.nic.wire = nil
	return s
}

// heard returns what a VM got, and forgets it.
func (g *lanVM) heard() [][]byte {
	h := g.got
	g.got = nil
	return h
}
