package datapath

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// A TSO or USO frame for a VM beside its sender need not be cut: the receiver's driver takes a superframe, and what it would get of the packets
// is this frame again. So it is handed over whole where the flow table would have made it (flowtable.TakesWhole), one copy from the one
// guest's memory into the other's. What the receiver is told of it (virtio_net_hdr) is built from the private headers, as for the kernel
// (wirehead.go), and so are lengths and the pseudo header's sum. Its checksum is never completed: the bytes leave this machine's memory
// nowhere. The sender may write to its payload meanwhile, as it may before it sends.
//
//	lent     the frame is put into the receiver's queue with the sender's memory, which stays mapped until its Poll ends, and moved into
//	         the receiver at once
//	staged   where the receiver does not take it now, a copy in chunks waits in its queue, as other frames do; so it does where somebody
//	         listens, and where one of the two has made the worker sleep
//	cut      where the receiver, or its policy, wants no such superframe: emitXDP
const (
	stagePieces = wirePieces // a frame in more pieces is gathered first
	stageChunks = 64         // of the longest frame, and of the smallest chunks
)

// staging is the superframe in hand.
type staging struct {
	sf    flowtable.Superframe
	info  packet.Info
	frags [][]byte
	refs  []uint64
}

// neighbour is the VM beside the sender that a frame is for, nil where there is none. Between isolated VMs nothing is handed over here: emitXDP
// says so, packet by packet.
func (w *Worker) neighbour(p *port, o *outgoing) *port {
	q := w.byAddr[Addr{VLAN: p.Addr.VLAN, MAC: [macLen]byte(o.data)}]
	if q == nil || q.Bridged || q.guest == nil || q.err != nil || p.Isolated || q.Isolated || w.cutAll {
		return nil
	}
	return q
}

// emitWhole hands a TSO frame over to the VM beside it. done: it has been dealt with. Otherwise need is as emitFrame's, and 0 says that the
// frame is to be cut.
func (w *Worker) emitWhole(e *egress, f *vhost.TxFrame, o *outgoing, q *port) (done bool, need int) {
	p, st := e.port, &w.staging
	total := f.Len() - (len(f.Data) - len(o.data)) // without the tag that was taken off
	h := wireHead{bytes: o.data[:min(len(o.data), HeadRoom)]}
	if _, ok := h.buildGSO(total, flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize}, min(w.mtuOf(p), w.mtuOf(q)), &w.txCut); !ok || h.packets > maxTxPackets {
		return false, 0 // it is refused where it is cut
	}
	if !w.isWhole(q, o.data, total, &h) {
		return false, 0
	}
	paid := wireBytes(total, int(h.hdr.HdrLen), h.packets, o.tci != 0)
	lent := p.probes == nil && q.probes == nil && !q.waiting && w.now >= p.apart && w.now >= q.apart
	if !lent {
		chunks := (total + w.chunkRoom() - 1) / w.chunkRoom()
		if most, _ := w.waitMost(q); q.out.chunks+chunks > most {
			return false, 0 // some of its packets fit
		}
		if w.nic.TxRoom() < chunks {
			return false, chunks
		}
	}
	if w.pacesTx(p, paid) {
		return false, heldBack
	}
	if (!lent || len(f.Rest) > stagePieces) && !w.whole(f, o) {
		p.TxRate.giveBack(paid)
		return false, heldBack // its VM has failed
	}
	if st.frags = append(st.frags[:0], o.data); lent {
		st.frags = append(st.frags, f.Rest...)
	}
	st.sf.Frags = st.frags
	if !lent && !w.stage(q, o.data) {
		p.TxRate.giveBack(paid)
		return false, stageChunks
	}
	w.handOver(p, q, f, o)
	clear(st.frags) // nothing of a guest's memory is kept
	return true, 0
}

// isWhole makes a superframe of total bytes, of which data is the beginning at least, the one in w.staging, and says whether q takes it whole.
func (w *Worker) isWhole(q *port, data []byte, total int, h *wireHead) bool {
	st := &w.staging
	st.frags = append(st.frags[:0], data)
	st.sf = flowtable.Superframe{
		Port: q.Index, Frags: st.frags, Refs: st.refs[:0],
		GSOType: h.hdr.GSOType, GSOSize: h.hdr.GSOSize, HdrLen: h.hdr.HdrLen,
	}
	st.sf.Packets, st.sf.Len = h.packets, total
	packet.ParseHead(data, total, &st.info)
	return w.table.TakesWhole(&st.sf, &st.info)
}

// handOver gives the frame in w.staging to its receiver, and books it.
func (w *Worker) handOver(p, q *port, f *vhost.TxFrame, o *outgoing) {
	sf := &w.staging.sf
	packets := uint64(sf.Packets)
	p.cnt.TxFrames++
	p.cnt.TxBytes += uint64(f.Len())
	p.cnt.TxWire += packets
	p.cnt.TxWhole++
	q.cnt.Local += packets
	if q.late {
		q.cnt.Late += packets
	}
	if q.senders != nil {
		q.senders.note(o.data)
	}
	if p.probes != nil {
		w.probeSent(p, sf.Packets, sf.Frags...)
	}
	if q.probes != nil {
		w.probeWhole(q, sf)
	}
	lent := len(sf.Refs) == 0
	w.table.PassWhole(sf, &w.staging.info, w.now)
	if !lent {
		return
	}
	w.lender = p
	w.flushPort(q)
	w.lender = nil
	if n := q.out.n; n > 0 && q.out.at(n-1).lent {
		w.keepLent(q, f, o)
	}
}

// keepLent copies the newest frame of a queue, which the guest did not take, out of its sender's memory, or gives it up.
func (w *Worker) keepLent(q *port, f *vhost.TxFrame, o *outgoing) {
	if w.whole(f, o) {
		w.keep(q, o.data)
	} else {
		w.dropLent(q, flowtable.ReasonPortDown) // the sender's: its frame has no end
	}
}

// keep copies the newest frame of a queue, all of which is data, out of memory that is not ours to keep, or gives it up.
func (w *Worker) keep(q *port, data []byte) {
	out := q.out.at(q.out.n - 1)
	if w.stage(q, data) {
		st := &w.staging
		clear(out.Frags)
		out.Frags, out.Refs = append(out.Frags[:0], st.sf.Frags...), append(out.Refs[:0], st.sf.Refs...)
		out.lent = false
		q.out.chunks += len(out.Refs)
		w.bound(q, q.hungry)
		return
	}
	w.dropLent(q, flowtable.ReasonGuestNoBuffers)
}

// dropLent gives the newest frame of a queue up.
func (w *Worker) dropLent(q *port, why flowtable.Reason) {
	out := q.out.popNewest()
	w.giveUp(q, &out.entry, why, nil)
	w.bound(q, q.hungry)
}

// chunkRoom is how many bytes a chunk surely has.
func (w *Worker) chunkRoom() int {
	if w.cfg.Large != nil { // no chunk holds the longest frame
		return w.cfg.Large.ChunkRoom()
	}
	return w.cfg.MTU + ethHeader
}

// stage copies the frame in w.staging, all of which is data, into chunks. false: there are too few, and none is taken.
func (w *Worker) stage(q *port, data []byte) bool {
	st := &w.staging
	st.frags, st.refs = st.frags[:0], st.refs[:0]
	for len(data) > 0 {
		buf, d, ok := w.nic.AllocTx()
		if !ok {
			w.nic.FreeAll(st.refs)
			return false
		}
		n := copy(buf, data)
		data = data[n:]
		st.frags, st.refs = append(st.frags, buf[:n:n]), append(st.refs, d.Addr)
	}
	st.sf.Frags, st.sf.Refs = st.frags, st.refs
	return true
}

// staysPartial says whether a packet's checksum may be left to the VM beside it that it is for: whose driver takes that, where TCP or UDP has
// it, of a packet that ends with its IP length. Listeners are shown sums that are right.
func (w *Worker) staysPartial(p *port, o *outgoing, frame []byte) bool {
	if o.group || p.probes != nil || len(frame) < minWire {
		return false
	}
	q := w.neighbour(p, o)
	return q != nil && w.takesPartial(q, frame, o.csumStart, o.csumAt)
}

// takesPartial says whether a packet's checksum, to be made from a place on and stored at another, may be left to a VM.
func (w *Worker) takesPartial(q *port, frame []byte, start, at int) bool {
	if !q.rules.GuestCsum || q.probes != nil || len(frame) < minWire {
		return false
	}
	l4, proto, ok := sumPlace(frame, len(frame), start, at)
	if !ok {
		return false
	}
	ip, pseudo := frame[ethHeader:l4], uint32(0)
	if ip[0]>>4 == 4 {
		if int(binary.BigEndian.Uint16(ip[2:])) != len(frame)-ethHeader || checksum.Sum(ip, 0) != 0xffff {
			return false
		}
		pseudo = checksum.Pseudo4(ip[12:16], ip[16:20], proto, uint32(len(frame)-l4))
	} else {
		if int(binary.BigEndian.Uint16(ip[4:])) != len(frame)-l4 {
			return false
		}
		pseudo = checksum.Pseudo6(ip[8:24], ip[24:40], proto, uint32(len(frame)-l4))
	}
	return binary.BigEndian.Uint16(frame[at:]) == checksum.Fold(uint64(pseudo))
}

// isTSO says whether a guest's frame stands for several packets.
func isTSO(f *vhost.TxFrame) bool { return f.Hdr.GSOType != virtio.GSONone }
