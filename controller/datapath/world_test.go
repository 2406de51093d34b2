package datapath

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// world is a worker under random traffic, with counts of its own: what it handed to the worker for each VM, and what each
// VM's guests got, packet by packet. They are compared with the worker's accounts after every burst.
type world struct {
	*rig
	rnd     *rand.Rand
	group   *fakeMulticast
	vms     []*worldVM
	flows   []*worldFlow
	ids     uint32
	unknown uint64             // frames for nobody
	taken   uint64             // frames that the worker took from the NIC
	onWire  map[string]int     // what must still leave, and how often
	left    uint64             // frames that left
	mistake func(p *port) bool // is made once, when it can be
}

// place is where a packet stands in its flow.
type place struct {
	flow *worldFlow
	n    int
}

// worldVM is one VM, from Add to Remove.
type worldVM struct {
	cfg   PortConfig
	g     *fakeGuest // nil while it does not run
	src   *fakeSource
	lost  map[string]place // handed over and not arrived, by the bytes as they must arrive
	last  map[*worldFlow]int
	in    uint64 // packets handed over
	local uint64 // of them, from its neighbours

	got, frames, bytes, supers, merged uint64

	txFrames, txBytes, txWire uint64
	txDropped                 [flowtable.NumReasons]uint64
}

// worldFlow is a flow under way: over the wire to a VM, or from a VM.
type worldFlow struct {
	p    pt.TCP
	vlan uint16
	from int // a VM that sends, -1: the wire
	udp  bool
	n    int
}

const worldVMs = 5

func newWorld(tb testing.TB, seed uint64) *world {
	tb.Helper()
	w := &world{rnd: rand.New(rand.NewPCG(seed, 5)), group: &fakeMulticast{fd: -1}, onWire: map[string]int{}}
	w.rig = newRig(tb, func(c *Config) { c.Multicast, c.Chunks, c.Slots = w.group, 768, 24 })
	w.nic.keep(320) // a group frame has a chunk for each that hears it, beside a turn's packets to neighbours: what lacks one is in no VM's account
	w.vms = make([]*worldVM, worldVMs)
	for i := range w.vms {
		w.add(i)
		w.run(i)
	}
	for i := range 14 {
		f := &worldFlow{from: -1, udp: w.one(8)}
		if w.one(3) {
			f.from = w.n(worldVMs)
		}
		to := w.n(worldVMs)
		f.p = pt.TCP{
			V6: w.one(3), DstMAC: macOf(uint32(to)), SrcMAC: [6]byte{2, 5, 5, 5, 5, byte(i)}, SrcPort: 1000 + uint16(i),
			Len: 64 + w.n(1300), Opts: pt.Timestamps(uint32(i), 9),
		}
		f.vlan = w.vms[to].cfg.Addr.VLAN
		if f.from >= 0 {
			f.p.SrcMAC, f.vlan = macOf(uint32(f.from)), w.vms[f.from].cfg.Addr.VLAN
			if w.one(4) {
				f.p.DstMAC = wire
			}
		}
		w.flows = append(w.flows, f)
	}
	return w
}

func (w *world) n(most int) int    { return w.rnd.IntN(most) }
func (w *world) one(in int) bool   { return w.rnd.IntN(in) == 0 }
func (w *world) id() (next uint32) { w.ids++; return w.ids }

// add adds the VM with an index, with counts that begin at 0. VMs 3 and 4 are on a VLAN; a VM may be behind a bridge.
func (w *world) add(i int) {
	v := &worldVM{lost: map[string]place{}, last: map[*worldFlow]int{}}
	v.cfg = PortConfig{Index: uint32(i), Addr: Addr{MAC: macOf(uint32(i))}, NoteSenders: true, Bridged: w.one(8)}
	if i >= 3 {
		v.cfg.Addr.VLAN = 5
	}
	w.vms[i] = v
	w.addPort(v.cfg)
	w.shortQueue(v.cfg.Index, 16)
}

func (w *world) run(i int) {
	v := w.vms[i]
	v.g, v.src = w.newGuest(), &fakeSource{fd: -1}
	w.moods(v.g)
	var g Guest = v.g
	if i%2 == 1 {
		g = summingGuest{v.g}
	}
	if err := w.w.startPort(v.cfg.Index, g, []Source{v.src}, w.someRules()); err != nil {
		w.tb.Fatal(err)
	}
}

func (w *world) someRules() flowtable.PortConfig {
	return rules(func(c *flowtable.PortConfig) {
		c.Hold = []time.Duration{0, 0, 50 * time.Microsecond, time.Millisecond}[w.n(4)]
		c.Coalesce = !w.one(8)
		c.TSO6 = !w.one(4)
		c.GuestCsum = !w.one(8)
		c.MaxSegments = []int{0, 0, 3}[w.n(3)]
	})
}

// moods changes how a guest behaves.
func (w *world) moods(g *fakeGuest) {
	g.room, g.burst, g.most, g.longest, g.maxFrame, g.noOffer, g.refuse = -1, 0, -1, 0, 0, nil, nil
	g.stopped, g.linkDown, g.keeps, g.shortErr, g.brokeLate, g.broken = false, false, w.one(2), ErrFull, nil, nil
	g.keepMost = w.n(60)
	switch w.n(14) {
	case 0, 1:
		g.room = w.n(12)
	case 2:
		g.burst = 1 + w.n(4)
	case 3:
		g.most = w.n(5)
		g.shortErr = []error{ErrFull, ErrFull, ErrRefused, ErrLinkDown}[w.n(4)]
	case 4:
		g.longest = 200 + w.n(4000)
		g.room = []int{-1, w.n(8)}[w.n(2)]
	case 5:
		g.noOffer = func(h *virtio.NetHdr) bool { return h.GSOType != 0 }
		g.room = []int{-1, w.n(8)}[w.n(2)]
	case 6:
		g.noOffer = func(h *virtio.NetHdr) bool { return h.Flags != 0 }
	case 7:
		g.refuse = func(f *Frame) bool { return f.Len%7 == 0 }
	case 8:
		g.stopped = w.one(3)
	case 9:
		g.linkDown = w.one(3)
	case 10:
		if w.one(4) {
			g.broken = errFinished
		} else if w.one(4) {
			g.brokeLate = errFinished
		}
	case 11:
		g.maxFrame = 1000 + w.n(8000)
	case 12:
		g.room = 0
	}
}

// events is what happens between two bursts beside the traffic. It checks the accounts of a VM that goes.
func (w *world) events() error {
	for i, v := range w.vms {
		if v.g != nil && w.one(3) {
			w.moods(v.g)
		}
		switch {
		case w.one(40):
			w.w.removePort(v.cfg.Index)
			w.collect(v)
			if err := w.check(v); err != nil {
				return err
			}
			w.add(i)
			if w.one(2) {
				w.run(i)
			}
		case v.g == nil && w.one(6):
			w.run(i)
		case v.g != nil && w.one(40):
			w.w.stopPort(v.cfg.Index)
			w.collect(v)
			v.g, v.src = nil, nil
		case v.g != nil && w.one(30): // a new guest takes over
			old := v.g
			left := v.src.queue
			w.run(i)
			v.src.queue = left
			now := v.g
			v.g = old
			w.collect(v)
			v.g = now
		case v.g != nil && w.one(20):
			if err := w.w.table.SetPort(v.cfg.Index, w.someRules(), w.now.Load()); err != nil {
				w.tb.Fatal(err)
			}
			w.w.flush()
		}
	}
	w.nic.busy, w.nic.down = w.one(10), w.one(20)
	return nil
}

// packet is the next packet of a flow: as it is sent, and as it must arrive.
func (w *world) packet(f *worldFlow) (sent, arrives []byte) {
	if f.udp {
		id := w.id()
		u := pt.UDP{V6: f.p.V6, DstMAC: f.p.DstMAC, SrcMAC: f.p.SrcMAC, SrcPort: uint16(id >> 16), DstPort: uint16(id), Len: 64 + w.n(500)}
		arrives = u.Frame()
		if f.vlan != 0 && f.from < 0 {
			u.Tags = []uint16{f.vlan}
		}
		return u.Frame(), arrives
	}
	p := f.p
	switch w.n(20) {
	case 0:
		p.Flags = pt.ACK | pt.PSH
	case 1:
		f.p.Ack += 1000
		p.Ack = f.p.Ack
	case 2:
		p.Len /= 2
	case 3: // a pure acknowledgement, told from others by what it acknowledges
		f.p.Ack += 7
		p.Ack, p.Len, p.Pad = f.p.Ack, 0, true
	case 4:
		p.BadTCP = f.from < 0
	}
	f.p.Seq, f.p.ID = p.Next().Seq, p.ID+1
	arrives = p.Frame()
	if f.vlan != 0 && f.from < 0 {
		p.Tags = []uint16{f.vlan | uint16(w.n(2))<<13}
		if p.Pad { // padding is Ethernet's: what is behind the tag is as long
			b := append([]byte{}, arrives[:12]...)
			b = binary.BigEndian.AppendUint32(b, 0x8100<<16|uint32(p.Tags[0]))
			return append(b, arrives[12:]...), arrives
		}
	}
	return p.Frame(), arrives
}

// expects hands one packet over for a VM.
func (v *worldVM) expects(f *worldFlow, frame []byte) {
	v.in++
	v.lost[string(frame)] = place{f, f.n}
}

// fromWire receives one packet of a flow.
func (w *world) fromWire(f *worldFlow) {
	sent, arrives := w.packet(f)
	to := w.vms[f.p.DstMAC[5]]
	var meta []byte
	if w.one(2) {
		meta = metaOf(to.cfg.Index, sent)
	}
	if f.vlan != to.cfg.Addr.VLAN {
		w.tb.Fatal("a flow to another VLAN")
	}
	if !w.nic.inject(sent, meta) {
		return // the NIC had no chunk: nobody saw it
	}
	w.taken++
	f.n++
	to.expects(f, arrives)
}

// nobodys receives a frame that is for none of the VMs.
func (w *world) nobodys() {
	if w.nic.inject(pt.UDP{DstMAC: macOf(200), Len: 70}.Frame(), nil) {
		w.taken++
		w.unknown++
	}
}

// fromVM queues something in a VM's TX virtqueue.
func (w *world) fromVM(f *worldFlow) {
	src := w.vms[f.from].src
	if src == nil {
		return
	}
	switch {
	case w.one(12) && !f.udp: // a TSO frame
		p := f.p
		p.Len = 2000 + w.n(4000)
		h := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: 1000, CsumStart: 34, CsumOffset: 16}
		if p.V6 {
			h.GSOType = virtio.GSOTCPv6
		}
		src.send(h, p.Frame())
		f.p.Seq, f.p.ID = p.Next().Seq, p.ID+8
	case w.one(12) && f.udp: // a USO frame
		id := w.id()
		u := pt.UDP{V6: f.p.V6, SrcMAC: f.p.SrcMAC, DstMAC: f.p.DstMAC, SrcPort: uint16(id >> 16), DstPort: uint16(id), Len: 2064 + 1000*w.n(4), Partial: true}
		src.send(usoCuts(1000), u.Frame())
	case w.one(20):
		src.send(noHdr, f.p.With(func(p *pt.TCP) { p.SrcMAC = macOf(99) }).Frame())
	case w.one(10):
		id := w.id()
		src.send(noHdr, pt.UDP{SrcMAC: f.p.SrcMAC, DstMAC: [6]byte{0x33, 0x33, 0, 0, 0, 1}, SrcPort: uint16(id >> 16), DstPort: uint16(id), Len: 90}.Frame())
	default:
		_, b := w.packet(f)
		src.send(noHdr, b)
	}
}

// groupFrame lets a group frame come from the host's socket.
func (w *world) groupFrame() {
	id := w.id()
	u := pt.UDP{DstMAC: [6]byte{0x33, 0x33, 0, 0, 0, 2}, SrcPort: uint16(id >> 16), DstPort: uint16(id), Len: 80}.Frame()
	g := groupFrame{frame: u, tagged: w.one(2), tci: 5}
	w.group.queue = append(w.group.queue, g)
	vlan := uint16(0)
	if g.tagged {
		vlan = 5
	}
	w.toGroup(u, vlan, nil)
}

// toGroup hands a group frame over for all that get it.
func (w *world) toGroup(frame []byte, vlan uint16, but *worldVM) {
	f := &worldFlow{}
	for _, v := range w.vms {
		if v != but && v.g != nil && v.cfg.Addr.VLAN == vlan && !v.cfg.Bridged {
			v.expects(f, frame)
		}
	}
}

// left sorts out what a VM's source has given to the worker.
func (w *world) leftVM(v *worldVM, sent []vhost.TxFrame) {
	for _, f := range sent {
		if [6]byte(f.Data[6:12]) != v.cfg.Addr.MAC {
			v.txDropped[flowtable.ReasonSourceMAC]++
			continue
		}
		if [6]byte(f.Data) == v.cfg.Addr.MAC {
			v.txDropped[flowtable.ReasonHairpin]++
			continue
		}
		v.txFrames++
		v.txBytes += uint64(len(f.Data))
		packets, err := cutAgain(&received{hdr: f.Hdr, data: f.Data}, false)
		if err != nil {
			w.tb.Fatal(err)
		}
		for _, p := range packets {
			v.txWire++
			w.leaves(v, p)
		}
	}
}

// leaves says where one packet of a VM goes.
func (w *world) leaves(v *worldVM, p []byte) {
	if p[0]&1 != 0 {
		w.toGroup(p, v.cfg.Addr.VLAN, v)
	} else if p[4] == 1 && int(p[5]) < worldVMs {
		if to := w.vms[p[5]]; to.cfg.Addr.VLAN == v.cfg.Addr.VLAN && !to.cfg.Bridged {
			f := w.flowOf(p)
			f.n++
			to.local++
			to.expects(f, p)
			return
		}
	}
	if id := v.cfg.Addr.VLAN; id != 0 {
		b := binary.BigEndian.AppendUint32(append([]byte{}, p[:12]...), 0x8100<<16|uint32(id))
		p = append(b, p[12:]...)
	}
	w.onWire[string(p)]++
	w.left++
}

// flowOf finds a VM's flow by its addresses and its port.
func (w *world) flowOf(p []byte) *worldFlow {
	in := parse(p)
	for _, f := range w.flows {
		if f.p.SrcMAC == [6]byte(p[6:12]) && f.from >= 0 {
			if f.udp && in.L4 == 0 || !f.udp && in.L4 != 0 && binary.BigEndian.Uint16(p[in.L4:]) == f.p.SrcPort {
				return f
			}
		}
	}
	return &worldFlow{}
}

// collect takes what a VM's guest got: each packet once, with the bytes that it had, and in the order of its flow.
func (w *world) collect(v *worldVM) {
	w.tb.Helper()
	if v.g == nil {
		return
	}
	for _, r := range v.g.take() {
		v.frames++
		v.bytes += uint64(len(r.data))
		packets, err := cutAgain(&r, false)
		if err != nil {
			w.tb.Fatal(err)
		}
		if r.hdr.GSOType != 0 {
			v.supers++
			v.merged += uint64(len(packets))
		}
		for _, p := range packets {
			at, ok := v.lost[string(p)]
			if !ok {
				w.tb.Fatalf("VM %d got what nobody sent to it, or got it twice: %x", v.cfg.Index, head(p))
			}
			delete(v.lost, string(p))
			v.got++
			if last, ok := v.last[at.flow]; ok && at.n < last {
				w.tb.Fatalf("VM %d: packet %d of a flow came behind packet %d", v.cfg.Index, at.n, last)
			}
			v.last[at.flow] = at.n
		}
	}
}

// check compares the accounts of a VM with what was counted here.
func (w *world) check(v *worldVM) error {
	l, p := w.ledger(v.cfg.Index), w.w.port(v.cfg.Index)
	if n := l.Unexplained(); n != 0 {
		return fmt.Errorf("VM %d: %d packets unexplained", v.cfg.Index, n)
	}
	done, queued := uint64(0), uint64(0) // pieces of frames that still wait
	if p != nil {
		for i := range p.out.n {
			done += uint64(p.out.at(i).done)
			queued += uint64(p.out.at(i).entry.Packets)
		}
	}
	delivered, dropped := l.Merged, uint64(0)
	for i := range l.Passed {
		delivered += l.Passed[i]
		dropped += l.Dropped[i]
	}
	inside := l.Held + queued - done
	switch {
	case l.In+l.Refused != v.in:
		return fmt.Errorf("VM %d: %d packets came, it counts %d and refused %d", v.cfg.Index, v.in, l.In, l.Refused)
	case delivered+done != v.got:
		return fmt.Errorf("VM %d: the guest got %d packets, the ledger says %d, and %d in pieces", v.cfg.Index, v.got, delivered, done)
	case uint64(len(v.lost)) != dropped+inside:
		return fmt.Errorf("VM %d: %d packets did not arrive, %d were dropped and %d are inside", v.cfg.Index, len(v.lost), dropped, inside)
	case l.Queued != queued:
		return fmt.Errorf("VM %d: %d packets wait, the ledger says %d", v.cfg.Index, queued, l.Queued)
	case l.Frames+done != v.frames || l.Superframes != v.supers || l.Merged != v.merged:
		return fmt.Errorf("VM %d: %d frames, %d superframes of %d packets arrived: %+v", v.cfg.Index, v.frames, v.supers, v.merged, *l)
	case done == 0 && l.FrameBytes != v.bytes:
		return fmt.Errorf("VM %d: %d bytes arrived, the ledger says %d", v.cfg.Index, v.bytes, l.FrameBytes)
	}
	if p == nil {
		return nil
	}
	c := &p.cnt
	if c.Local != v.local || c.TxFrames != v.txFrames || c.TxBytes != v.txBytes || c.TxWire != v.txWire || c.TxDropped != v.txDropped {
		return fmt.Errorf("VM %d: sent %d frames of %d bytes as %d packets, %d came from neighbours: %+v",
			v.cfg.Index, v.txFrames, v.txBytes, v.txWire, v.local, *c)
	}
	return nil
}

// burst is one burst of everything, and the check behind it.
func (w *world) burst() error {
	if err := w.events(); err != nil {
		return err
	}
	for range w.n(50) {
		f := w.flows[w.n(len(w.flows))]
		for range 1 + w.n(4) {
			if f.from >= 0 {
				w.fromVM(f)
			} else if len(w.nic.rx) < BurstFrames {
				w.fromWire(f)
			}
		}
	}
	if w.one(4) && len(w.nic.rx) < BurstFrames {
		w.nobodys()
	}
	for range w.n(3) {
		w.groupFrame()
	}
	w.w.receiveGroup()
	queued := make([][]vhost.TxFrame, len(w.vms))
	for i, v := range w.vms {
		if v.src != nil {
			queued[i] = v.src.queue
		}
	}
	w.w.step()
	for i, v := range w.vms {
		if v.src != nil {
			w.leftVM(v, queued[i][:len(queued[i])-len(v.src.queue)])
		}
	}
	w.advance(time.Duration(w.n(200)) * time.Microsecond)
	for i := 0; w.mistake != nil && i < len(w.w.list); i++ {
		if w.mistake(w.w.list[i]) {
			w.mistake = nil
		}
	}
	return w.compare()
}

// compare is the check after a burst.
func (w *world) compare() error {
	for _, v := range w.vms {
		w.collect(v)
	}
	for _, f := range w.nic.sent() {
		if w.onWire[string(f)] == 0 {
			w.tb.Fatalf("on the wire is what nobody sent: %x", head(f))
		}
		w.onWire[string(f)]--
	}
	for _, v := range w.vms {
		if err := w.check(v); err != nil {
			return err
		}
	}
	if c := w.w.cnt; c.RxFrames != w.taken || c.Unknown != w.unknown || c.TxFrames != w.left || c.TxRingFull != 0 {
		return fmt.Errorf("queue: %d frames received, %d for nobody, %d sent: %+v", w.taken, w.unknown, w.left, c)
	}
	return w.books()
}
