package datapath

// What the VMs of one NIC queue share, and what each may take of it. The unit of time is a turn (Worker.step): frames come in,
// then frames go out. The unit of cost is what it takes to look at one piece of a descriptor chain; a packet costs perPacket.
//
//	the worker's time   up to rxBursts bursts come in, then up to txTurn goes out. What comes in is first, because the RX ring
//	                    overflows and a virtqueue waits; and what goes out is bounded, so that it cannot
//	sending             deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) over the VMs: each in its turn of the round
//	                    gets txShare and sends for it by whichever of its virtqueues have frames. A frame that costs more than
//	                    what is left leaves whole, and the VM pays the debt out of its next parts; what a VM leaves of its
//	                    part is lost. A turn that ends, and a TX ring that is full, interrupt the round, and the next turn goes
//	                    on at the same VM with what it had left. While a frame waits for room nothing overtakes it, so large
//	                    frames do not starve beside small ones. Whoever sends alone has all turns
//	descriptors         of what comes in: walkTurn a turn, in equal parts for the VMs with traffic, at least walkLeast for each.
//	                    What the shape of a guest's buffers costs is paid by that guest: it is passed over until the debt is
//	                    paid. Of what goes out: part of the cost of sending
//	chunks that wait    a quarter of the UMEM for all guests that cannot take their frames now, because they have no buffers, or
//	                    are in debt, or are paused: in equal parts. A guest without buffers is asked once a turn, and only its
//	                    available index is read until that has moved
//	chunks in rings     those that the kernel (vhost-net) has and gives back when it likes: a sixteenth of the UMEM is set aside
//	                    in equal parts, an eighth is lent, and whoever borrows leaves as much for the next as it takes. A
//	                    superframe that is larger than a guest's part is cut: its packets are copied and hold no chunk
//
// What a VM does not take, another may; what was lent is not called back, but no more is lent while it is out. Nobody is told how
// many VMs there are: a VM that does nothing costs the others nothing.
const (
	rxBursts    = 8               // BurstFrames each
	perPacket   = 32              // pieces that take as long as a packet
	txTurn      = 256 * perPacket // of all VMs
	txShare     = 64 * perPacket  // a VM's part of a round: at most MaxPorts-1 of them pass until it is its turn again
	bytesPacket = 2048            // a frame that is refused costs a packet for so many bytes: its copy
	walkTurn    = 16384           // 512 frames for a Linux guest without mergeable buffers, whose chains have 19 pieces
	walkLeast   = 1024
	ringHolders = 16 // VMs that chunks in rings are set aside for, if there are fewer
)

// round is the deficit round robin of the VMs that send.
type round struct {
	vms  []*port // with sources, in the order in which they send
	at   int     // whose part it is
	paid bool    // it has got its part, and the last turn interrupted it
	left int     // of txTurn
}

// add gives a VM a place in the round, the last one.
func (r *round) add(p *port) { r.vms = append(r.vms, p) }

// remove takes a VM out; the others keep their order.
func (r *round) remove(p *port) {
	for i, q := range r.vms {
		if q != p {
			continue
		}
		r.vms = append(r.vms[:i], r.vms[i+1:]...)
		if i == r.at {
			r.paid = false
		}
		if i < r.at {
			r.at--
		}
		if r.at == len(r.vms) {
			r.at = 0
		}
		return
	}
}

// credit is what a port may still take; below 0: what it owes.
type credit struct {
	turn uint64 // of Worker.turn, when walk was filled up
	walk int    // pieces, to receive
	tx   int    // pieces, to send
}

// enter is a VM's part of a round of sending, unless it has it already.
func (r *round) enter(p *port) {
	if !r.paid {
		p.credit.tx = min(p.credit.tx+txShare, txShare)
		r.paid = true
	}
}

// next ends a VM's part.
func (r *round) next() {
	r.paid = false
	if r.at++; r.at == len(r.vms) {
		r.at = 0
	}
}

// charge books the cost of sending.
func (w *Worker) charge(p *port, cost int) {
	p.credit.tx -= cost
	w.round.left -= cost
}

// fill gives a port its part of a new turn's descriptors. What was left of the last one is lost, what was owed is not.
func (w *Worker) fill(p *port) {
	if p.credit.turn == w.turn {
		return
	}
	p.credit.turn = w.turn
	walk := max(walkLeast, walkTurn/max(1, len(w.dirty)))
	p.credit.walk = min(p.credit.walk+walk, walk)
}

// waitLimit is how many chunks may wait for one guest that cannot take them now. All of them together are a quarter.
func (w *Worker) waitLimit() int { return w.cfg.Chunks / 4 / max(1, w.waiting) }

// lending is what rings have of the UMEM.
type lending struct {
	own  int // chunks set aside for each guest
	free int // chunks that may still be lent; below 0 when parts have become smaller since
}

// countLent begins a turn. Guests that keep chunks are all in w.dirty.
func (w *Worker) countLent() {
	holders := 1 // a guest that has none yet
	for _, p := range w.dirty {
		if p.held > 0 {
			holders++
		}
	}
	w.lent.own = w.cfg.Chunks / 16 / max(ringHolders, holders)
	w.lent.free = w.cfg.Chunks / 8
	for _, p := range w.dirty {
		w.lent.free -= w.lent.borrowed(p.held)
	}
}

// borrowed is how many of a guest's chunks are lent.
func (l *lending) borrowed(held int) int { return max(0, held-l.own) }

// keeps books how many chunks a guest has now.
func (w *Worker) keeps(p *port, held int) {
	w.lent.free += w.lent.borrowed(p.held) - w.lent.borrowed(held)
	p.held = held
}

// ringRoom is how many chunks a port's guest may keep, those that it keeps now included.
func (w *Worker) ringRoom(p *port) int {
	return w.lent.own + max(0, w.lent.free+w.lent.borrowed(p.held))/2
}
