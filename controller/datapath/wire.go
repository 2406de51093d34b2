package datapath

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Wire is the way to the wire by the kernel, which cuts TSO frames and completes checksums, or leaves that to the device: a packet
// socket. A *tap.Uplink is one. Only the worker's goroutine calls it. Send's errors are those of package tap, unwrapped.
type Wire interface {
	// Add puts a frame behind those that wait for Send; false: no more fit. Its bytes are in use until Send.
	Add(f *virtio.Frame) bool
	// Send hands over all that was added and returns how many; err says why the next one was not. Afterwards nothing waits.
	Send() (n int, err error)
	// Empty: nothing that was sent is on its way in the kernel any more. It is a system call.
	Empty() bool
	// Direct and SetDirect: frames go past the queueing discipline. It is set only once nothing is in there.
	Direct() bool
	SetDirect(on bool) error
	// SetDatagrams says whether the device takes UDP superframes whole, too: one that does not is given none past the discipline.
	SetDatagrams(whole bool)
}

// A unicast frame to the wire goes one of two ways, and the frames of one TX virtqueue go one of them for as long as something of it
// is on its way, so none of a flow overtakes another:
//
//	kernel   from a TSO frame on, or one that no chunk holds, and until there has been none for wayRest: a bulk sender's small frames go with
//	         its large ones
//	AF_XDP   otherwise: what is small and comes alone needs no more than a chunk
//
// A kernel before Linux 6.2 refuses USO frames, and some until 6.9 those of more than 64 datagrams (include/linux/virtio_net.h,
// virtio_net_hdr_to_skb): from the first refusal on they are cut here, and go by AF_XDP.
//
// From AF_XDP to the kernel the virtqueue waits until its frames are completed; to AF_XDP it goes back when the socket is found empty.
// Group frames, and frames to VMs beside, are in no flow with these, and go as they went.
const (
	wayRest      = 10 * time.Millisecond
	wirePieces   = 128 // a frame in more pieces is copied: most of what the kernel would do is to look at them
	wireTries    = 10  // a frame that a full queue has dropped is sent again so often, each txRetry
	maxWireBatch = 64
)

// wireBatch are the frames of one Poll on their way to Wire.Send.
type wireBatch struct {
	n     int
	added bool // the last frame waits in it
	back  int  // frames of the Poll that stay in its virtqueue
	heads [maxWireBatch][headSlot]byte
	items [maxWireBatch]wireItem
	from  *egress
	to    Wire         // Config.Wire, or the host's
	frame virtio.Frame // the one that is added; its list of fragments is used again
}

// wireItem is what is booked of a frame once it has left.
type wireItem struct {
	bytes   int // as the guest sent them
	packets int
	cost    int  // what its VM was charged
	paid    int  // bytes of its rate
	udp     bool // it is cut into datagrams
}

// forWire says whether a frame goes the kernel's way.
func (w *Worker) forWire(e *egress, f *vhost.TxFrame, o *outgoing) bool {
	if w.cfg.Wire == nil || o.group {
		return false
	}
	if q := w.byAddr[Addr{VLAN: e.port.Addr.VLAN, MAC: [macLen]byte(o.data)}]; q != nil && !q.Bridged {
		return false
	}
	if w.cutsHere(f, o) {
		if (e.kernel || e.unsure) && !(w.sendBatch() && w.cfg.Wire.Empty()) {
			return true // emitWire makes it wait
		}
		e.kernel, e.unsure = false, false
		return false
	}
	if f.Hdr.GSOType != virtio.GSONone || w.isLarge(f.Len()) {
		e.bulkAt, e.kernel = w.now, true
		return true
	}
	if e.kernel && w.now-e.bulkAt < wayRest.Nanoseconds() {
		return true
	}
	if e.unsure && !w.wireEmpty() {
		return true
	}
	e.kernel, e.unsure = false, false
	return false
}

// cutsHere says whether a frame stands for datagrams, and the kernel is one that does not cut them.
func (w *Worker) cutsHere(f *vhost.TxFrame, o *outgoing) bool {
	if w.cutUSO == 0 || f.Hdr.GSOType != virtio.GSOUDPL4 {
		return false
	}
	headers := ethHeader + ipv4Min + udpHeader // most likely; a frame with options is cut for a datagram less
	if binary.BigEndian.Uint16(o.data[2*macLen:]) == etherIPv6 {
		headers += ipv6Len - ipv4Min
	}
	payload := f.Len() - (len(f.Data) - len(o.data)) - headers
	return w.cutUSO == 1 || payload > (w.cutUSO-1)*int(f.Hdr.GSOSize)
}

// byKernel says whether one of the VM's sources is on that way.
func (p *port) byKernel() bool {
	for _, e := range p.sources {
		if e.kernel {
			return true
		}
	}
	return false
}

// wireEmpty asks Wire once a turn, and only where it matters. A source that has sent since stays on its way for longer than a turn.
func (w *Worker) wireEmpty() bool {
	if w.emptyAt != w.turn {
		w.emptyAt, w.empty = w.turn, w.cfg.Wire.Empty()
	}
	return w.empty
}

// drained says whether all frames of a source that went by AF_XDP have left.
func (w *Worker) drained(e *egress) bool {
	if w.sent-uint64(w.nic.TxPending()) >= e.mark {
		return true
	}
	if err := w.nic.Flush(); err != nil {
		w.nicBroken = true
	}
	return w.sent-uint64(w.nic.TxPending()) >= e.mark
}

// emitWire puts a frame into the batch. false: it stays in the virtqueue, and so does what is behind it.
func (w *Worker) emitWire(e *egress, f *vhost.TxFrame, o *outgoing) (taken bool) {
	if w.wireFull == w.turn || !o.host && (w.cutsHere(f, o) || !w.drained(e)) {
		return w.later(e)
	}
	b := &w.batch
	if to := w.wayTo(o); b.to != to {
		if !w.sendBatch() {
			return false
		}
		b.to = to
	}
	if o.host {
		w.sendHostGroups() // which are in the same socket
	}
	total := f.Len() - (len(f.Data) - len(o.data)) // without the tag that was taken off
	size := f.Len()
	gso := f.Hdr.GSOType != virtio.GSONone
	if b.n == maxWireBatch && !w.sendBatch() {
		return false
	}
	slot := &b.heads[b.n]
	h := wireHead{bytes: slot[:copy(slot[:HeadRoom], o.data)], packets: 1}
	whole := len(f.Rest) > wirePieces || e.port.probes != nil
	switch {
	case gso:
		if why, ok := h.buildGSO(total, flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize}, w.mtuOf(e.port), &w.txCut); !ok {
			return w.refuseBehind(e.port, why, f, o)
		}
	case total > w.mtuOf(e.port)+ethHeader:
		return w.refuseBehind(e.port, flowtable.ReasonBadLength, f, o)
	case o.partial && !h.buildSum(total, o.csumStart, o.csumAt):
		if !w.whole(f, o) {
			return false
		}
		if err := checksum.Complete(o.data, o.csumStart, o.csumAt-o.csumStart); err != nil {
			return w.refuseBehind(e.port, flowtable.ReasonMalformed, f, o)
		}
		copy(h.bytes, o.data)
		whole = true
	}
	if whole && !w.whole(f, o) {
		return false
	}
	header := 0
	if gso {
		header = int(h.hdr.HdrLen)
	}
	paid := wireBytes(total, header, h.packets, o.tci != 0)
	if w.pacesTx(e.port, paid) {
		return false
	}
	at := len(h.bytes) // of the guest's frame, what is in the slot already
	if total < minWire {
		h.bytes = slot[:pad(slot[:], total)]
	}
	if o.tci != 0 {
		h.tag(o.tci)
	}
	fr := &b.frame
	fr.Hdr, fr.Frags = h.hdr, append(fr.Frags[:0], h.bytes, o.data[min(at, len(o.data)):])
	fr.Frags = append(fr.Frags, f.Rest...)
	if !b.to.Add(fr) {
		if !w.sendBatch() {
			e.port.TxRate.giveBack(paid)
			return false
		}
		b.heads[0] = *slot // the batch begins anew
		fr.Frags[0] = b.heads[0][:len(h.bytes)]
		b.to.Add(fr)
	}
	b.from = e
	b.items[b.n] = wireItem{bytes: size, packets: h.packets, paid: paid, udp: h.hdr.GSOType == virtio.GSOUDPL4}
	b.n++
	if !whole {
		b.added = true
		return true
	}
	// Its bytes are gone with the callback.
	if w.sendBatch() {
		if e.port.probes != nil {
			w.probeSent(e.port, h.packets, fr.Frags...)
		}
		return true
	}
	if b.back > 0 { // this one is among them, and not yet taken
		b.back--
		return false
	}
	return true // it was refused, and counted
}

// wayTo is the socket by which a frame leaves.
func (w *Worker) wayTo(o *outgoing) Wire {
	if o.host {
		return w.host.Out
	}
	return w.cfg.Wire
}

// later leaves a frame in its virtqueue; it is tried again after txRetry.
func (w *Worker) later(e *egress) bool {
	w.txShort, e.short = true, true
	return false
}

// refuseBehind refuses a frame once what is in front of it has left.
func (w *Worker) refuseBehind(p *port, why flowtable.Reason, f *vhost.TxFrame, o *outgoing) (taken bool) {
	if !w.sendBatch() || p.probes != nil && !w.whole(f, o) {
		return false
	}
	w.refuseTx(p, why, o.data)
	return true
}

// whole makes o.data all of the frame. false: its memory vanished, and its port has failed.
func (w *Worker) whole(f *vhost.TxFrame, o *outgoing) bool {
	skip := len(f.Data) - len(o.data)
	ok := f.Whole()
	o.data = f.Data[skip:]
	return ok
}

// sendBatch hands the batch to the kernel and books what left. false: some of it stays in the virtqueue, and nothing may pass it.
func (w *Worker) sendBatch() bool {
	b := &w.batch
	if b.n == 0 {
		return b.back == 0
	}
	e := b.from
	p := e.port
	n, err := b.to.Send()
	wire := b.to == w.cfg.Wire
	if wire {
		w.direct.Store(b.to.Direct())
	}
	for i := range b.items[:n] {
		w.bookWire(p, &b.items[i], wire)
	}
	if n > 0 {
		e.unsure, e.lost = e.unsure || wire, 0
	}
	if err != nil && n < b.n {
		n += w.unsent(e, &b.items[n], err, wire)
	}
	for i := range b.items[n:b.n] {
		w.charge(p, -b.items[n+i].cost)
		p.TxRate.giveBack(b.items[n+i].paid)
	}
	b.back, b.n = b.n-n, 0
	return b.back == 0
}

// bookWire books a frame that the kernel has taken.
func (w *Worker) bookWire(p *port, it *wireItem, wire bool) {
	p.cnt.TxFrames++
	p.cnt.TxBytes += uint64(it.bytes)
	p.cnt.TxWire += uint64(it.packets)
	if !wire {
		p.cnt.ToHost += uint64(it.packets)
		return
	}
	p.cnt.TxKernel++
	w.cnt.TxKernel++
}

// unsent decides about a frame that the kernel has not taken: 1 when it is given up.
func (w *Worker) unsent(e *egress, it *wireItem, err error, wire bool) (done int) {
	switch {
	case it.udp && errors.Is(err, tap.ErrKernelRefused):
		if w.cutUSO == 0 && it.packets > fewDatagrams {
			w.cutUSO = fewDatagrams + 1
		} else {
			w.cutUSO = 1
		}
	case errors.Is(err, tap.ErrRefused): // it is not what it was: the MTU changed, or the guest's memory is gone
		w.refuseTx(e.port, flowtable.ReasonMalformed, nil)
		return 1
	case errors.Is(err, tap.ErrLost):
		if e.lost++; e.lost > wireTries {
			e.lost = 0
			e.port.cnt.TxFrames++
			w.cnt.TxRingFull++
			return 1
		}
	case !wire && !errors.Is(err, tap.ErrFull): // the way to the host is gone: who sends to others does not wait for it
		w.refuseTx(e.port, flowtable.ReasonPortDown, nil)
		return 1
	case !errors.Is(err, tap.ErrFull): // the link is down, or gone
		w.nicBroken = true
	}
	w.wireFull = w.turn
	w.later(e)
	return 0
}

// SetDirect says whether the device takes TSO frames whole: then they go past the queueing discipline, until it turns out that it does
// not; uso, whether USO frames do so, too. The worker is woken only when that is news.
func (w *Worker) SetDirect(on, uso bool) error {
	if w.cfg.Wire == nil || w.direct.Load() == on && w.datagrams.Load() == uso {
		return nil
	}
	return w.tell(func() error {
		w.cfg.Wire.SetDatagrams(uso)
		w.datagrams.Store(uso)
		err := w.cfg.Wire.SetDirect(on)
		w.direct.Store(w.cfg.Wire.Direct())
		return err
	})
}
