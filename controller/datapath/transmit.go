package datapath

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

const maxTxPackets = 256 // wire packets of one guest TSO frame: gso_size is the guest's word

// transmit takes a turn's frames from the sources this worker reads, to the wire and to the VMs beside it: round after round of
// the VMs, from where the last turn was interrupted, until the turn is over, the TX ring is full, or nobody has anything.
func (w *Worker) transmit() (total int) {
	w.txStalled, w.txShort = false, false
	if w.txNeed > 0 && w.nic.TxRoom() < w.txNeed {
		w.txStalled = true
		return 0
	}
	w.txNeed = 0 // unless a frame says so again
	r := &w.round
	r.left = txTurn
	for idle := 0; idle < len(r.vms) && r.left > 0; {
		p := r.vms[r.at]
		n := w.visit(p)
		total += n
		if idle++; n > 0 || p.credit.tx <= 0 { // or it has a debt, and may have frames behind it
			idle = 0
		}
		if w.txNeed > 0 || (r.left <= 0 && p.credit.tx > 0) {
			break // it goes on here
		}
		r.next()
	}
	if total > 0 {
		w.flush() // what went to a VM beside it
	}
	return total
}

// visit lets one VM send for its part of the round, from each of its sources in turn.
func (w *Worker) visit(p *port) (total int) {
	w.round.enter(p)
	if w.resting(p) || w.txPaced(p) {
		return 0
	}
	from := w.touching()
	defer w.touched(p, from)
	for range p.sources {
		if p.credit.tx <= 0 || w.round.left <= 0 || p.txAt != 0 {
			break
		}
		e := p.sources[p.source]
		if e.idle != w.turn {
			e.short = false
			n, walked, err := e.src.Poll(txBudget, e.emit, w.publishTx) // one that has failed says so itself; the others go on
			w.charge(p, walked)
			if total += n; w.txNeed > 0 {
				break // it is the first when there is room
			}
			if n == 0 || err != nil || e.short {
				e.idle = w.turn // each round would ask it again
			}
		}
		if p.source++; p.source == len(p.sources) {
			p.source = 0
		}
	}
	return total
}

// beforeUsed is called when frames of a source are about to be completed: what they became is the kernel's before.
func (w *Worker) beforeUsed() (back int) {
	w.sendBatch()
	w.sendHostGroups()
	back, w.batch.back = w.batch.back, 0
	w.nic.Publish()
	return back
}

// emit sends one guest frame and charges its VM. Where there is no room the frame stays in the virtqueue, which slows the guest
// down instead of losing its frames.
func (w *Worker) emit(e *egress, f *vhost.TxFrame) vhost.Next {
	before, size := w.cnt.TxSlots, f.Len()
	w.batch.added = false
	need, left := w.emitFrame(e, f)
	if left || need == heldBack {
		return vhost.Leave
	}
	if need > 0 {
		if w.nic.TxPending() > 0 {
			w.txStalled, w.txNeed = true, need
		} else { // the wire will not make room: guests have the chunks, so nobody waits behind this frame
			w.later(e)
		}
		return vhost.Leave
	}
	cost := max(1, int(w.cnt.TxSlots-before), size/bytesPacket) * perPacket
	if w.batch.added { // the kernel does the rest
		it := &w.batch.items[w.batch.n-1]
		cost = max(1, it.packets) * perPacket
		it.cost = cost
	}
	if w.charge(e.port, cost); e.port.credit.tx <= 0 || w.round.left <= 0 {
		return vhost.TakeLast
	}
	return vhost.TakeOn
}

// emitFrame returns how much room in the TX ring a frame needs that has to wait for it, heldBack for one that has to wait for its VM's
// rate; left, when it has to wait for something else; neither, when it has been dealt with.
func (w *Worker) emitFrame(e *egress, f *vhost.TxFrame) (need int, left bool) {
	p := e.port
	var o outgoing
	if why, refused := w.judge(p, f, &o); refused {
		return 0, !w.refuseBehind(p, why, f, &o)
	}
	if o.host = w.toHost(p, &o); o.host && p.Isolated && w.byAddr[Addr{VLAN: p.Addr.VLAN, MAC: [macLen]byte(o.data)}] != nil { // a VM behind the host's bridge
		return 0, !w.refuseBehind(p, flowtable.ReasonIsolated, f, &o)
	}
	if o.host && w.cutsHere(f, &o) {
		return 0, !w.emitHostCut(e, f, &o)
	}
	if o.host || w.forWire(e, f, &o) {
		return 0, !w.emitWire(e, f, &o)
	}
	if !w.sendBatch() {
		return 0, true
	}
	if isTSO(f) && !o.group {
		if q := w.neighbour(p, &o); q != nil {
			if done, need := w.emitWhole(e, f, &o, q); done || need != 0 {
				return need, false
			}
		}
	}
	if !w.whole(f, &o) {
		return 0, true
	}
	return w.emitXDP(e, f, &o), false
}

// emitXDP sends a frame, of which all is private, as packets in chunks: to the wire by AF_XDP, and to VMs beside. It returns how much
// room the frame needs when it has to wait for it.
func (w *Worker) emitXDP(e *egress, f *vhost.TxFrame, o *outgoing) (need int) {
	p := e.port
	o.from = e
	if o.group && !p.group.admits(w.now) {
		w.refuseTx(p, flowtable.ReasonGroupShare, o.data)
		return 0
	}
	packets, header := 1, 0
	o.packet = len(o.data)
	gso := f.Hdr.GSOType != virtio.GSONone
	if gso {
		w.txFrag[0] = o.data
		if err := w.txCut.Init(w.txFrag[:], flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize}); err != nil {
			w.refuseTx(p, flowtable.ReasonMalformed, o.data)
			return 0
		}
		packets, header = w.txCut.Count(), w.txCut.HeaderLen()
		o.packet = header + int(f.Hdr.GSOSize)
	}
	if packets > mostPackets(f.Hdr.GSOType, maxTxPackets) {
		w.refuseTx(p, flowtable.ReasonBadLength, o.data)
		return 0
	}
	room := packets
	if o.group && w.nic.TxPending() > 0 {
		room++ // copies take chunks as long as there is more room than its packets need, and a full ring says that there is not
	}
	room += packets * (w.slotsFor(o.packet) - 1)
	if w.nic.TxRoom() < room {
		return room
	}
	if w.lacksLarge(packets, o.packet) {
		w.later(o.from)
		return heldBack
	}
	if w.pacesTx(p, wireBytes(len(o.data), header, packets, o.tci != 0)) {
		return heldBack
	}
	p.cnt.TxFrames++
	p.cnt.TxBytes += uint64(len(f.Data))
	w.txLeft = packets
	if gso {
		w.emitGSO(p, o)
	} else {
		w.emitOne(p, o)
	}
	w.txLeft = 0
	return 0
}

// emitOne sends a frame that is a packet already, with its checksum completed.
func (w *Worker) emitOne(p *port, o *outgoing) {
	buf, d, ok := w.allocFor(len(o.data))
	if !ok {
		w.cnt.TxRingFull++
		return
	}
	if len(o.data) > w.mtuOf(p)+ethHeader || len(o.data)+vlanTag > len(buf) {
		w.nic.Free(d.Addr)
		w.refuseTx(p, flowtable.ReasonBadLength, o.data)
		return
	}
	w.txLeft--
	n := copy(buf, o.data)
	if o.partial && !w.staysPartial(p, o, buf[:n]) {
		if err := checksum.Complete(buf[:n], o.csumStart, o.csumAt-o.csumStart); err != nil {
			w.nic.Free(d.Addr)
			w.refuseTx(p, flowtable.ReasonMalformed, o.data)
			return
		}
		o.partial = false
	}
	w.route(p, o, buf, n, d)
}

// emitGSO sends the packets that w.txCut makes of a guest's TSO frame. Their Ethernet header is the frame's, which was judged.
func (w *Worker) emitGSO(p *port, o *outgoing) {
	for w.txLeft > 0 { // not until Next has no more: that would take a chunk that may not be there
		if o.group && !p.group.admits(w.now) { // the rest of it
			w.refuseTx(p, flowtable.ReasonGroupShare, o.data)
			return
		}
		buf, d, ok := w.allocFor(o.packet)
		if !ok {
			w.cnt.TxRingFull++
			return
		}
		w.txLeft--
		n, more, err := w.txCut.Next(buf[:min(len(buf)-vlanTag, w.mtuOf(p)+ethHeader)])
		if err != nil || !more {
			w.nic.Free(d.Addr)
			if err != nil {
				w.refuseTx(p, flowtable.ReasonBadLength, o.data)
			}
			return
		}
		w.route(p, o, buf, n, d)
	}
}

// route sends one complete wire packet in a TX chunk where it belongs: to a VM of this interface and VLAN, to all of them
// and the wire when its destination is a group, otherwise to the wire.
func (w *Worker) route(p *port, o *outgoing, buf []byte, n int, d xsk.Desc) {
	n = pad(buf, n)
	dst := Addr{VLAN: p.Addr.VLAN, MAC: [macLen]byte(buf)}
	p.cnt.TxWire++
	w.cnt.TxSlots++
	if o.group {
		copies := w.copyToNeighbours(buf[:n], p)
		if w.hearsHost(p) {
			copies++
		}
		w.cnt.TxSlots += uint64(copies) // the sender pays, not those who hear it
		p.group.charge(w.now, 1+copies)
	} else if q := w.byAddr[dst]; q != nil && !q.Bridged { // the bridge would not bring the answer of a VM behind it
		if p.Isolated || q.Isolated { // not to the wire either: what reflects there would bring it back
			w.refuseTx(p, flowtable.ReasonIsolated, buf[:n])
			w.nic.Free(d.Addr)
			return
		}
		if p.probes != nil {
			w.probeSent(p, 1, buf[:n])
		}
		q.cnt.Local++
		packet.Parse(buf[:n], &w.pkt.Info)
		if o.partial {
			w.pkt.CsumStart, w.pkt.CsumOffset = uint16(o.csumStart), uint16(o.csumAt-o.csumStart)
		}
		w.accept(q, buf[:n], d.Addr)
		w.pkt.CsumStart = 0
		return
	}
	if o.tci != 0 {
		n = insertTag(buf, n, o.tci)
	}
	if o.group && w.hearsHost(p) {
		w.groupToHost(buf[:n])
	}
	if p.probes != nil {
		w.probeSent(p, 1, buf[:n])
	}
	if !w.send(d, n) {
		w.nic.Free(d.Addr)
		w.cnt.TxRingFull++
		return
	}
	w.cnt.TxFrames++
	if o.from != nil && !o.group {
		o.from.mark = w.sent
	}
}

// copyToNeighbours gives a VM's group frame to the running VMs of its VLAN, each a chunk of its own, and returns to how many.
func (w *Worker) copyToNeighbours(frame []byte, from *port) (copies int) {
	for _, q := range w.list {
		if q == from || q.Isolated || from.Isolated || !q.hears(from.Addr.VLAN) {
			continue
		}
		if !w.copyToPort(frame, q) {
			w.refuseTx(from, flowtable.ReasonGroupShare, frame) // once for all that do not get it
			break
		}
		copies++
	}
	return copies
}

// insertTag puts an 802.1Q tag behind the addresses and returns the new length. buf has room for it.
func insertTag(buf []byte, n int, tci uint16) int {
	copy(buf[2*macLen+vlanTag:], buf[2*macLen:n])
	binary.BigEndian.PutUint16(buf[2*macLen:], etherVLAN)
	binary.BigEndian.PutUint16(buf[2*macLen+2:], tci)
	return n + vlanTag
}
