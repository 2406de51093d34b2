package datapath

import (
	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
)

const ethHeader = 14

// receive takes one burst from the NIC into the flow table.
func (w *Worker) receive() int {
	if w.cfg.Shares != nil {
		if n := w.cfg.Shares.Overtaken(); n > 0 {
			w.overtaken = n
		}
	}
	n := w.nic.Recv(w.descs[:])
	w.take(w.descs[:n])
	if w.cfg.Shares != nil {
		w.cfg.Shares.Publish()
	}
	w.cnt.RxFrames += uint64(n)
	return n
}

// ahead is how many frames the worker asks the cache for before it looks at one: the kernel wrote them, mostly on another core. It asks for what
// the table reads, the headers. The payload is left to whoever copies it: line by line asked for here, it would fill the few places for lines
// that are awaited, and be out of the first cache again until a burst's end.
const ahead = 4

// take gives frames to the flow table.
func (w *Worker) take(descs []xsk.Desc) {
	w.table.Tick(w.now)
	for i := range min(ahead, len(descs)) {
		prefetchHead(w.memory, descs[i].Addr)
	}
	for i := range descs {
		if i+ahead < len(descs) {
			prefetchHead(w.memory, descs[i+ahead].Addr)
		}
		ref, asked := descs[i].Addr, false
		if frame, before := w.chunks.Frame(descs[i]); before != nil {
			var taken bool
			if taken, asked = w.follow(frame, (*meta.Block)(before), ref); taken {
				continue
			}
		}
		frame, before := w.nic.Received(descs[i])
		w.pkt.Asked = asked
		w.takeOne(frame, before, ref)
	}
}

// follow gives a frame to the flow table by the short way, on which nearly all frames go: the next segment of a train that the table holds,
// for a VM of which nothing is to be asked. Of any other it has done nothing; asked tells whether the table has said no.
func (w *Worker) follow(frame []byte, m *meta.Block, ref uint64) (taken, asked bool) {
	if !m.Plain(len(frame)) || w.overtaken != 0 || w.cfg.Foreign {
		return false, false
	}
	p := w.portByID(m.Port())
	if p == nil || p.guest == nil || p.late || p.probes != nil || tooLong(p, frame, false) {
		return false, false
	}
	if !w.table.Follow(p.Index, frame, ref) {
		return false, true
	}
	if w.cfg.Shares != nil {
		vm, queue := m.Tickets()
		w.cfg.Shares.Took(p.id, vm, queue)
	}
	w.cnt.WithMeta++
	if w.host.Stations != nil {
		w.fromWire(p, frame)
	}
	if p.senders != nil {
		p.senders.note(frame)
	}
	return true, true
}

// takeOne gives any frame to the flow table.
func (w *Worker) takeOne(frame, before []byte, ref uint64) {
	if w.cfg.Foreign {
		w.takeForeign(frame, ref)
		return
	}
	if w.isTorn(frame, before) {
		w.torn++
		w.nic.Free(ref)
		return
	}
	p := w.classify(frame, before)
	w.noteOvertaken(p)
	if p == nil { // detached between XDP's look and ours
		w.cnt.Unknown++
		w.nic.Free(ref)
		return
	}
	w.fromWire(p, frame)
	w.accept(p, frame, ref)
}

// noteOvertaken counts a frame, for p or for nobody, as late if it waited while the worker hung: the kernel may have brought the VM later
// ones of its flow.
func (w *Worker) noteOvertaken(p *port) {
	if w.overtaken == 0 {
		return
	}
	w.overtaken--
	if p != nil && p.Bridged && !p.late {
		p.cnt.Late++
	}
}

// classify finds the VM a frame is for and fills w.pkt.Info: from what XDP left in front of the frame, or where there is
// nothing by parsing here. nil: no VM has this address (any more).
func (w *Worker) classify(frame, before []byte) *port {
	var m meta.Meta
	if meta.Parse(before, len(frame), &m) {
		if w.cfg.Shares != nil { // whoever it is for, it is out of the ring
			w.cfg.Shares.Took(m.Port, m.VMTicket, m.QueueTicket)
		}
		if p := w.portByID(m.Port); p != nil {
			w.cnt.WithMeta++
			fillInfo(&w.pkt.Info, &m)
			return p
		}
	} // written for a VM that has gone: the address decides
	return w.byAddress(frame)
}

// byAddress is classify by the frame alone.
func (w *Worker) byAddress(frame []byte) *port {
	packet.Parse(frame, &w.pkt.Info)
	if len(frame) < ethHeader {
		return nil
	}
	addr := Addr{MAC: [6]byte(frame)}
	if w.pkt.Info.Tagged {
		addr.VLAN = w.pkt.Info.TCI & 0xfff
	}
	return w.byAddr[addr]
}

// fillInfo sets i to what XDP found out about a frame, as the parser here would have said it. All of i is written, in place: a
// copy per packet can be measured.
func fillInfo(i *packet.Info, m *meta.Meta) {
	i.L3, i.L4, i.Payload, i.PayloadLen = uint32(m.L3), uint32(m.L4), uint32(m.Payload), uint32(m.PayloadLen)
	i.Family, i.TCPFlags, i.Verdict = m.Family, m.TCPFlags, packet.Verdict(m.Verdict)
	i.Tagged, i.Keyed = m.Flags&meta.Tagged != 0, m.Flags&meta.Keyed != 0
	i.TCI = 0
	if i.Tagged { // an accelerated tag is not in the frame
		i.TCI = m.TCI
	}
}

// accept gives one frame in a chunk to the flow table as a packet for p. w.pkt.Info describes it.
func (w *Worker) accept(p *port, frame []byte, ref uint64) {
	if p.guest == nil && !p.paused {
		w.refuse(p, flowtable.ReasonPortDown, frame)
		w.nic.Free(ref)
		return
	}
	if p.late {
		p.cnt.Late++
	}
	if p.senders != nil {
		p.senders.note(frame)
	}
	if why, refused := refusesTags(frame, &w.pkt.Info); refused {
		w.refuse(p, why, frame)
		w.nic.Free(ref)
		return
	}
	if tooLong(p, frame, w.pkt.Info.Tagged) {
		w.refuse(p, flowtable.ReasonBadLength, frame)
		w.nic.Free(ref)
		return
	}
	probed := p.probes != nil
	if probed {
		w.probeEntering(p, frame, ref)
	}
	if w.pkt.Info.Tagged && p.Addr.VLAN == w.pkt.Info.TCI&0xfff {
		frame = packet.StripTag(frame, &w.pkt.Info)
		ref += vlanTag // where the frame begins: see asItCame
		w.entering.ref = ref
	}
	w.pkt.Data, w.pkt.Ref, w.pkt.Port = frame, ref, p.Index
	w.table.Add(&w.pkt, w.now)
	if probed {
		w.probeEntered(p)
	}
}

// receiveGroup takes multicast and broadcast frames, which XDP leaves to the host, for every VM of their VLAN.
func (w *Worker) receiveGroup() {
	w.now = w.clock()
	for range groupBudget {
		frame, tci, tagged, err := w.group.Recv(w.mbuf)
		if err != nil {
			return
		}
		vlan := uint16(0)
		if tagged {
			vlan = tci & 0xfff
		}
		w.groupFromWire(frame, vlan)
	}
}

// groupFromWire gives a group frame of the wire to the VMs that hear it. Who sent it is on the wire.
func (w *Worker) groupFromWire(frame []byte, vlan uint16) {
	if w.host.Stations != nil && len(frame) >= ethHeader {
		w.host.Stations.giveUp(Addr{VLAN: vlan, MAC: [macLen]byte(frame[macLen:])})
	}
	w.groupToPorts(frame, vlan, false)
}

// groupToPorts gives a group frame of the wire or, if host is set, of the host, without its VLAN's tag, to every running VM of the VLAN that hears
// that. What no VM may get is counted at each that does not get it.
func (w *Worker) groupToPorts(frame []byte, vlan uint16, host bool) {
	why, refused := refusesGroup(frame)
	for _, p := range w.list {
		switch {
		case !p.hears(vlan), host && !p.Host:
		case refused:
			w.refuse(p, why, frame)
		case p.owns([macLen]byte(frame[macLen:])): // its own, sent back
			w.refuse(p, flowtable.ReasonHairpin, frame)
		case w.apart(p, Addr{VLAN: vlan, MAC: [macLen]byte(frame[macLen:])}, host): // a neighbour's, sent back
			w.refuse(p, flowtable.ReasonIsolated, frame)
		case !w.copyToPort(frame, p):
			w.refuse(p, flowtable.ReasonGuestNoBuffers, frame)
		}
	}
}

// apart reports whether an address is that of a VM beside this one, and one of the two is isolated. What one behind a bridge sends comes from
// the host.
func (w *Worker) apart(p *port, from Addr, host bool) bool {
	q := w.byAddr[from]
	return q != nil && q != p && (host || !q.Bridged) && (p.Isolated || q.Isolated)
}

// hears reports whether group frames of a VLAN are for a VM. What the VM behind a bridge hears, the bridge brings.
func (p *port) hears(vlan uint16) bool {
	return p.Addr.VLAN == vlan && (p.guest != nil || p.paused) && !p.Bridged
}

// copyToPort gives a VM a frame in a chunk of its own, and reports false when there is none, also after what waits in the output
// queues has gone.
func (w *Worker) copyToPort(frame []byte, p *port) bool {
	buf, d, ok := w.copyChunkNow(len(frame))
	if !ok {
		return false
	}
	if len(frame) > len(buf) {
		w.refuse(p, flowtable.ReasonBadLength, frame)
		w.nic.Free(d.Addr)
		return true
	}
	n := copy(buf, frame)
	packet.Parse(buf[:n], &w.pkt.Info)
	w.accept(p, buf[:n], d.Addr)
	return true
}

// copyChunkNow is copyChunk, once more after what waits in the output queues has gone.
func (w *Worker) copyChunkNow(n int) (buf []byte, d xsk.Desc, ok bool) {
	if buf, d, ok = w.copyChunk(n); !ok {
		w.flush()
		buf, d, ok = w.copyChunk(n)
	}
	return buf, d, ok
}

// copyChunk takes a chunk, or a buffer for a frame that needs one, beyond those that the guest's frame in hand still needs.
func (w *Worker) copyChunk(n int) (buf []byte, d xsk.Desc, ok bool) {
	if w.isLarge(n) {
		if w.cfg.Large.LargeRoom() <= w.txLeft {
			return nil, xsk.Desc{}, false
		}
		return w.cfg.Large.AllocLarge()
	}
	if w.txLeft > 0 && w.nic.TxRoom() <= w.txLeft {
		return nil, xsk.Desc{}, false
	}
	return w.nic.AllocTx()
}

// drain moves what the NIC has received into the guests.
func (w *Worker) drain() {
	for n := 0; n < MaxRing; {
		w.turn++
		k := w.receiveBurst()
		if k == 0 {
			break
		}
		n += k
	}
}
