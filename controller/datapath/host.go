package datapath

import (
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// The host, and what is behind it (bridges, VMs on taps there), is a neighbour of the VMs that have PortConfig.Host.
//
//	to the host    frames for an address that Stations have, by the way of frames to the wire that go by the kernel (wire.go), with another
//	               socket; group frames beside the copies for other VMs (route)
//	from the host  what the one worker reads that has Host.In: a packet like one of the wire, a superframe as from a VM beside (neighbour.go),
//	               lent where the receiver takes it at once
//
// What comes from the host is never sent back to it or to the wire, so nothing goes round here.

// HostReader is where the frames come from that the host sends to VMs, superframes whole. A *tap.HostReader is one. Only the worker's
// goroutine calls it.
type HostReader interface {
	// Recv reads frames, valid until the next call, and returns how many; more: others may wait. What it says of a frame may be wrong.
	Recv(out *[tap.HostBatch]tap.HostFrame) (n int, more bool)
	// FD is readable when frames wait.
	FD() int
	// Dropped is as Multicast's.
	Dropped() (slow, unusable uint64)
}

// Host is the host as a neighbour. The zero value is none.
type Host struct {
	In       HostReader // nil on all workers of an interface but one
	Out      Wire       // what is sent by it comes in by the interface for the host
	Stations *Stations  // of all workers of the interface
}

const (
	hostBursts = 2       // batches that are read in a turn
	hostCopies = 1 << 16 // bytes of group frames that wait for one system call
)

// hostSide is what a worker has of the host.
type hostSide struct {
	Host
	ready  bool // frames may wait in In
	frames [tap.HostBatch]tap.HostFrame
	copies []byte // group frames that were added to Out
	groups int
	frame  virtio.Frame // the one that is added

	shown     Addr // by the wire: the source of the last frame that was looked at
	shownTurn uint64
}

// SetHost makes the host a neighbour of the VMs with PortConfig.Host, or with the zero value nobody's. What was given before is not used
// any more when it returns.
func (w *Worker) SetHost(h Host) error {
	return w.do(func() {
		w.sendHostGroups()
		w.host.Host, w.host.ready, w.fdsStale = h, h.In != nil, true
		if h.Out != nil && w.host.copies == nil {
			w.host.copies = make([]byte, 0, hostCopies)
		}
	})
}

// toHost reports whether a VM's frame is for the host or somebody behind it, and not for a VM that is reached from here.
func (w *Worker) toHost(p *port, o *outgoing) bool {
	if w.host.Out == nil || !p.Host || o.group {
		return false
	}
	dst := Addr{VLAN: p.Addr.VLAN, MAC: [macLen]byte(o.data)}
	if q := w.byAddr[dst]; q != nil {
		return q.Bridged
	}
	return dst.MAC == w.cfg.Own || w.host.Stations.has(dst, w.now)
}

// hearsHost reports whether a VM's group frames go to the host.
func (w *Worker) hearsHost(p *port) bool { return w.host.Out != nil && p.Host }

// groupToHost puts a copy of a VM's packet, as it leaves, behind those that wait for the host: group frames most of the time.
func (w *Worker) groupToHost(frame []byte) {
	h := &w.host
	if len(h.copies)+len(frame) > cap(h.copies) {
		w.sendHostGroups()
	}
	at := len(h.copies)
	h.copies = append(h.copies, frame...)
	h.frame.Frags = append(h.frame.Frags[:0], h.copies[at:])
	if !h.Out.Add(&h.frame) {
		w.sendHostGroups()
		h.copies = append(h.copies, frame...)
		h.frame.Frags[0] = h.copies
		h.Out.Add(&h.frame)
	}
	h.groups++
}

// emitHostCut sends a VM's USO frame to the host as the datagrams that it stands for, on a kernel that does not cut them. false: it stays in the
// virtqueue.
func (w *Worker) emitHostCut(e *egress, f *vhost.TxFrame, o *outgoing) (taken bool) {
	p := e.port
	if !w.sendBatch() || !w.whole(f, o) {
		return false
	}
	w.txFrag[0] = o.data
	if err := w.txCut.Init(w.txFrag[:], flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize}); err != nil {
		w.refuseTx(p, flowtable.ReasonMalformed, o.data)
		return true
	}
	packets := w.txCut.Count()
	if most := min(len(o.data), w.txCut.HeaderLen()+int(f.Hdr.GSOSize)); packets > mostPackets(f.Hdr.GSOType, maxTxPackets) || most > w.mtuOf(p)+ethHeader {
		w.refuseTx(p, flowtable.ReasonBadLength, o.data)
		return true
	}
	if w.pacesTx(p, wireBytes(len(o.data), w.txCut.HeaderLen(), packets, o.tci != 0)) {
		return false
	}
	p.cnt.TxFrames++
	p.cnt.TxBytes += uint64(f.Len())
	for range packets {
		n, more, err := w.txCut.Next(w.mbuf[:w.mtuOf(p)+ethHeader])
		if err != nil || !more {
			w.refuseTx(p, flowtable.ReasonBadLength, o.data)
			return true
		}
		n = pad(w.mbuf, n)
		if o.tci != 0 {
			n = insertTag(w.mbuf, n, o.tci)
		}
		if p.probes != nil {
			w.probeSent(p, 1, w.mbuf[:n])
		}
		w.groupToHost(w.mbuf[:n])
		p.cnt.TxWire++
		p.cnt.ToHost++
		w.cnt.TxSlots++
	}
	return true
}

// sendHostGroups hands group frames to the host. What the kernel does not take is lost, as on any wire.
func (w *Worker) sendHostGroups() {
	h := &w.host
	if h.groups == 0 {
		return
	}
	n, _ := h.Out.Send()
	w.cnt.HostLost += uint64(h.groups - n)
	h.groups, h.copies = 0, h.copies[:0]
}

// fromWire notes who sent a VM a frame that came by the NIC: where it was behind the host before, it is on the wire by now, as for a bridge. Of one that sends
// frame after frame the first of a turn is looked at.
func (w *Worker) fromWire(p *port, frame []byte) {
	h := &w.host
	if h.Stations == nil || !p.Host || len(frame) < ethHeader {
		return
	}
	from := Addr{VLAN: p.Addr.VLAN, MAC: [macLen]byte(frame[macLen:])}
	if from == h.shown && h.shownTurn == w.turn {
		return
	}
	h.shown, h.shownTurn = from, w.turn
	h.Stations.giveUp(from)
}

// receiveHost moves what the host sends into the guests.
func (w *Worker) receiveHost() (total int) {
	h := &w.host
	for range hostBursts {
		if !h.ready || h.In == nil {
			break
		}
		w.now = w.clock()
		n, more := h.In.Recv(&h.frames)
		h.ready = more
		for i := range h.frames[:n] {
			w.takeHost(&h.frames[i])
		}
		w.table.EndBurst(w.now)
		w.flush()
		total += n
	}
	return total
}

// takeHost gives a frame of the host's to the VM that it is for, or to those that hear it.
func (w *Worker) takeHost(f *tap.HostFrame) {
	if len(f.Data) < ethHeader {
		w.cnt.HostLost++
		return
	}
	from := Addr{MAC: [macLen]byte(f.Data[macLen:])}
	if f.Tagged {
		from.VLAN = f.TCI & vlanID
	}
	s := w.byAddr[from]
	switch {
	case s != nil && !s.Bridged: // a VM's own frame, which some bridge sends back: who hears it has it
		w.refuse(s, flowtable.ReasonHairpin, f.Data)
		return
	case s == nil && from.MAC[0]&1 == 0 && from.MAC != [macLen]byte{}:
		w.host.Stations.learn(from, w.now)
	}
	if f.Data[0]&1 != 0 {
		w.hostGroup(f, from.VLAN)
		return
	}
	p := w.byAddr[Addr{VLAN: from.VLAN, MAC: [macLen]byte(f.Data)}]
	if p == nil || p.Bridged || !p.Host { // it has gone meanwhile
		w.cnt.HostLost++
		return
	}
	if why, refused := w.refusesHost(p, s, f.Data); refused {
		w.refuse(p, why, f.Data)
		return
	}
	if f.Hdr.GSOType == virtio.GSONone {
		w.hostPacket(p, f)
	} else if !w.hostWhole(p, f) {
		w.hostCut(p, f)
	}
}

// refusesHost judges a frame of the host's, from s where that is a VM behind it.
func (w *Worker) refusesHost(p, s *port, frame []byte) (why flowtable.Reason, refused bool) {
	switch {
	case s != nil && (p.Isolated || s.Isolated):
		return flowtable.ReasonIsolated, true
	case p.guest == nil && !p.paused:
		return flowtable.ReasonPortDown, true
	}
	return refusesType(frame, 2*macLen)
}

// hostGroup gives a group frame of the host's to every VM of the VLAN that has the host as its neighbour.
func (w *Worker) hostGroup(f *tap.HostFrame, vlan uint16) {
	if f.Hdr.GSOType == virtio.GSONone {
		if w.completeHost(f) {
			w.groupToPorts(f.Data, vlan, true)
		} else {
			w.cnt.HostLost++
		}
		return
	}
	w.txFrag[0] = f.Data
	if err := w.txCut.Init(w.txFrag[:], flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize}); err != nil {
		w.cnt.HostLost++
		return
	}
	for range min(w.txCut.Count(), maxKernelCut) {
		n, more, err := w.txCut.Next(w.mbuf[:w.cfg.MTU+ethHeader])
		if err != nil || !more {
			w.cnt.HostLost++
			return
		}
		w.groupToPorts(w.mbuf[:n], vlan, true)
	}
}

// completeHost completes a checksum that the host has left to its device. false: there is none where it is said to be.
func (w *Worker) completeHost(f *tap.HostFrame) bool {
	return f.Hdr.Flags&virtio.HdrNeedsCsum == 0 || checksum.Complete(f.Data, int(f.Hdr.CsumStart), int(f.Hdr.CsumOffset)) == nil
}

// hostPacket gives a frame that is a packet to its VM. A checksum that is still to be made is left to a VM that takes that.
func (w *Worker) hostPacket(p *port, f *tap.HostFrame) {
	if len(f.Data) > w.mtuOf(p)+ethHeader {
		w.refuse(p, flowtable.ReasonBadLength, f.Data)
		return
	}
	start, at := int(f.Hdr.CsumStart), int(f.Hdr.CsumStart)+int(f.Hdr.CsumOffset)
	stays := f.Hdr.Flags&virtio.HdrNeedsCsum != 0 && w.takesPartial(p, f.Data, start, at)
	if !stays && !w.completeHost(f) {
		w.refuse(p, flowtable.ReasonMalformed, f.Data)
		return
	}
	buf, d, ok := w.copyChunkNow(len(f.Data))
	if !ok || len(f.Data) > len(buf) {
		if ok {
			w.nic.Free(d.Addr)
		}
		w.refuse(p, flowtable.ReasonGuestNoBuffers, f.Data)
		return
	}
	n := pad(buf, copy(buf, f.Data))
	packet.Parse(buf[:n], &w.pkt.Info)
	if stays {
		w.pkt.CsumStart, w.pkt.CsumOffset = f.Hdr.CsumStart, f.Hdr.CsumOffset
	}
	p.cnt.FromHost++
	w.accept(p, buf[:n], d.Addr)
	w.pkt.CsumStart = 0
}

// hostWhole hands a superframe of the host's to a VM that takes it so. false: it is to be cut.
func (w *Worker) hostWhole(p *port, f *tap.HostFrame) (done bool) {
	if p.guest == nil || p.err != nil || w.cutAll {
		return false
	}
	h := wireHead{bytes: f.Data[:min(len(f.Data), HeadRoom)]}
	why, ok := h.buildGSO(len(f.Data), flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize}, w.mtuOf(p), &w.txCut)
	if !ok {
		w.refuse(p, why, f.Data)
		return true
	}
	if !w.isWhole(p, f.Data, len(f.Data), &h) {
		return false
	}
	st := &w.staging
	lent := p.probes == nil && !p.waiting && w.now >= p.apart
	if !lent {
		chunks := (len(f.Data) + w.chunkRoom() - 1) / w.chunkRoom()
		if most, _ := w.waitMost(p); p.out.chunks+chunks > most || w.nic.TxRoom() < chunks || !w.stage(p, f.Data) {
			return false // some of its packets may fit
		}
	}
	p.cnt.FromHost += uint64(st.sf.Packets)
	if p.probes != nil {
		w.probeWhole(p, &st.sf)
	}
	w.table.PassWhole(&st.sf, &st.info, w.now)
	if lent {
		w.flushPort(p)
		if n := p.out.n; n > 0 && p.out.at(n-1).lent {
			w.keep(p, f.Data)
		}
	}
	clear(st.frags)
	return true
}

// hostCut gives a superframe of the host's to a VM packet by packet.
func (w *Worker) hostCut(p *port, f *tap.HostFrame) {
	w.txFrag[0] = f.Data
	if err := w.txCut.Init(w.txFrag[:], flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize}); err != nil {
		w.refuse(p, flowtable.ReasonMalformed, f.Data)
		return
	}
	packets := w.txCut.Count()
	if packets > maxKernelCut {
		w.refuse(p, flowtable.ReasonBadLength, f.Data)
		return
	}
	most := min(len(f.Data), w.txCut.HeaderLen()+int(f.Hdr.GSOSize))
	for range packets {
		buf, d, ok := w.copyChunkNow(most)
		if !ok {
			w.refuse(p, flowtable.ReasonGuestNoBuffers, f.Data) // the rest of it
			return
		}
		n, more, err := w.txCut.Next(buf[:min(len(buf)-vlanTag, w.mtuOf(p)+ethHeader)])
		if err != nil || !more {
			w.nic.Free(d.Addr)
			w.refuse(p, flowtable.ReasonBadLength, f.Data)
			return
		}
		n = pad(buf, n)
		packet.Parse(buf[:n], &w.pkt.Info)
		p.cnt.FromHost++
		w.accept(p, buf[:n], d.Addr)
	}
}
