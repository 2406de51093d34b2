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

// transmit takes a turn's frames from the sources this worker reads, to the wire and to the VMs beside it. The sources take
// turns at being the first; where the TX ring was full, the one that found it full is the first of the next turn.
func (w *Worker) transmit() int {
	if w.txNeed > 0 && w.nic.TxRoom() < w.txNeed {
		w.txStalled = len(w.egress) > 0
		return 0
	}
	w.txNeed, w.txStalled = 0, false // unless a frame says so again
	total, senders := 0, 0
	for i := range w.egress {
		at := (w.first + i) % len(w.egress)
		e := w.egress[at]
		p := e.port
		w.fill(p)
		if p.credit.tx <= 0 {
			w.owed = true
			continue
		}
		n, walked, err := e.src.Poll(txBudget, e.emit)
		if err != nil && n == 0 {
			continue // the source has failed and says so itself; the others go on
		}
		p.credit.tx -= walked / walkPerPacket
		if n > 0 && p.sentIn != w.turn {
			p.sentIn = w.turn
			senders++
		}
		total += n
		if w.txNeed > 0 { // for all that follow too
			w.first = at
			break
		}
	}
	if w.txNeed == 0 && len(w.egress) > 0 {
		w.first = (w.first + 1) % len(w.egress)
	}
	w.senders = senders
	if total > 0 {
		w.flush() // what went to a VM beside it
	}
	return total
}

// emit sends one guest frame and charges its VM. Where there is no room in the TX ring the frame stays in the virtqueue, which
// slows the guest down instead of losing its frames.
func (w *Worker) emit(p *port, f *vhost.TxFrame) vhost.Next {
	before := w.cnt.TxSlots
	if w.emitFrame(p, f) {
		return vhost.Leave
	}
	if p.credit.tx -= max(1, int(w.cnt.TxSlots-before)); p.credit.tx <= 0 {
		return vhost.TakeLast
	}
	return vhost.TakeOn
}

// emitFrame reports whether the frame has to wait for room.
func (w *Worker) emitFrame(p *port, f *vhost.TxFrame) (full bool) {
	var o outgoing
	if why, refused := w.judge(p, f, &o); refused {
		p.cnt.TxDropped[why]++
		return false
	}
	if o.group && !p.group.admits(w.now) {
		p.cnt.TxDropped[flowtable.ReasonGroupShare]++
		return false
	}
	packets := 1
	gso := f.Hdr.GSOType != virtio.GSONone
	if gso {
		w.txFrag[0] = o.data
		if err := w.txCut.Init(w.txFrag[:], flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize}); err != nil {
			p.cnt.TxDropped[flowtable.ReasonMalformed]++
			return false
		}
		packets = w.txCut.Count()
	}
	if packets > maxTxPackets {
		p.cnt.TxDropped[flowtable.ReasonBadLength]++
		return false
	}
	if w.nic.TxRoom() < packets {
		w.txStalled, w.txNeed = true, packets
		return true
	}
	p.cnt.TxFrames++
	p.cnt.TxBytes += uint64(len(f.Data))
	w.txLeft = packets
	if gso {
		w.emitGSO(p, &o)
	} else {
		w.emitOne(p, &o)
	}
	w.txLeft = 0
	return false
}

// emitOne sends a frame that is a packet already, with its checksum completed.
func (w *Worker) emitOne(p *port, o *outgoing) {
	buf, d, ok := w.nic.AllocTx()
	if !ok {
		w.cnt.TxRingFull++
		return
	}
	if len(o.data) > w.cfg.MTU+ethHeader || len(o.data)+vlanTag > len(buf) {
		w.nic.Free(d.Addr)
		p.cnt.TxDropped[flowtable.ReasonBadLength]++
		return
	}
	w.txLeft--
	n := copy(buf, o.data)
	if o.partial {
		if err := checksum.Complete(buf[:n], o.csumStart, o.csumAt-o.csumStart); err != nil {
			w.nic.Free(d.Addr)
			p.cnt.TxDropped[flowtable.ReasonMalformed]++
			return
		}
	}
	w.route(p, o, buf, n, d)
}

// emitGSO sends the packets that w.txCut makes of a guest's TSO frame. Their Ethernet header is the frame's, which was judged.
func (w *Worker) emitGSO(p *port, o *outgoing) {
	for w.txLeft > 0 { // not until Next has no more: that would take a chunk that may not be there
		if o.group && !p.group.admits(w.now) { // the rest of it
			p.cnt.TxDropped[flowtable.ReasonGroupShare]++
			return
		}
		buf, d, ok := w.nic.AllocTx()
		if !ok {
			w.cnt.TxRingFull++
			return
		}
		w.txLeft--
		n, more, err := w.txCut.Next(buf[:min(len(buf)-vlanTag, w.cfg.MTU+ethHeader)])
		if err != nil || !more {
			w.nic.Free(d.Addr)
			if err != nil {
				p.cnt.TxDropped[flowtable.ReasonBadLength]++
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
		w.cnt.TxSlots += uint64(copies) // the sender pays, not those who hear it
		p.group.charge(w.now, 1+copies)
	} else if q := w.byAddr[dst]; q != nil && !q.Bridged { // the bridge would not bring the answer of a VM behind it
		if p.Isolated || q.Isolated { // not to the wire either: what reflects there would bring it back
			p.cnt.TxDropped[flowtable.ReasonIsolated]++
			w.nic.Free(d.Addr)
			return
		}
		q.cnt.Local++
		packet.Parse(buf[:n], &w.pkt.Info)
		w.accept(q, buf[:n], d.Addr)
		return
	}
	if o.tci != 0 {
		n = insertTag(buf, n, o.tci)
	}
	if !w.nic.Send(d, n) {
		w.nic.Free(d.Addr)
		w.cnt.TxRingFull++
		return
	}
	w.cnt.TxFrames++
}

// copyToNeighbours gives a VM's group frame to the running VMs of its VLAN, each a chunk of its own, and returns to how many.
func (w *Worker) copyToNeighbours(frame []byte, from *port) (copies int) {
	for _, q := range w.list {
		if q == from || q.Isolated || from.Isolated || !q.hears(from.Addr.VLAN) {
			continue
		}
		if !w.copyToPort(frame, q) {
			from.cnt.TxDropped[flowtable.ReasonGroupShare]++ // once for all that do not get it
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
