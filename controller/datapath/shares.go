package datapath

// What the VMs of one NIC queue share, and what each may take of it. The unit of time is a turn: a pass of the worker through
// what came in and what goes out.
//
//	the worker's time   up to rxBursts bursts come in before anybody sends: what waits in the RX ring cannot choose its place,
//	                    what waits in a virtqueue can wait
//	TX slots            deficit round robin: txTurn packets a turn, in equal parts for the VMs that send, at least txLeast for
//	                    each. A frame that is larger than what is left is sent whole, and the debt is paid in the turns that follow
//	descriptors         walkTurn pieces of descriptor chains a turn, in equal parts for the VMs with traffic, at least walkLeast
//	                    for each: what the shape of a guest's buffers costs is paid by that guest. Chains that are sent from cost
//	                    a packet for walkPerPacket pieces
//	chunks that wait    a quarter of the UMEM, in equal parts for the guests without room
//	chunks in rings     a quarter of the UMEM: half of it is set aside in equal parts, the other half is lent, and whoever borrows
//	                    leaves as much for the next as it takes
//
// What a VM does not take, another may; what was lent is not called back, but no more is lent while it is out.
const (
	rxBursts      = 8     // BurstFrames each
	txTurn        = 256   // packets
	txLeast       = 32    // packets
	walkTurn      = 16384 // pieces: 512 frames for a Linux guest without mergeable buffers, whose chains have 19
	walkLeast     = 1024  // pieces
	walkPerPacket = 8
	waitLeast     = 16 // chunks
	ringHolders   = 16 // VMs that a part of the rings' chunks is set aside for, if there are fewer
)

// credit is what a port may still take in this turn.
type credit struct {
	turn uint64 // of Worker.turn, when tx and walk were filled up
	tx   int    // packets
	walk int    // pieces
}

// fill gives a port its part of a new turn. What was left of the last one is lost, what was owed is not.
func (w *Worker) fill(p *port) {
	if p.credit.turn == w.turn {
		return
	}
	p.credit.turn = w.turn
	tx := max(txLeast, txTurn/max(1, w.senders))
	walk := max(walkLeast, walkTurn/max(1, len(w.dirty)))
	p.credit.tx = min(p.credit.tx+tx, tx)
	p.credit.walk = min(p.credit.walk+walk, walk)
}

// waitLimit is how many chunks may wait for one guest without room.
func (w *Worker) waitLimit() int { return max(waitLeast, w.cfg.Chunks/4/max(1, w.hungry)) }

// ringRoom is how many chunks a port's guest may keep, those that it keeps now included. Guests that keep chunks are all in
// w.dirty.
func (w *Worker) ringRoom(p *port) int {
	holders := 1
	for _, q := range w.dirty {
		if q != p && q.held > 0 {
			holders++
		}
	}
	own := w.cfg.Chunks / 8 / max(ringHolders, holders)
	free := w.cfg.Chunks / 8
	for _, q := range w.dirty {
		if q != p {
			free -= max(0, q.held-own)
		}
	}
	return own + max(0, free)/2
}
