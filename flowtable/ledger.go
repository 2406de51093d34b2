package flowtable

// Ledger is the account of one port: what came in, where it is, and what became of it. Every count in it is taken at an event
// of its own and none is worked out from another, so Unexplained can find a packet that was lost or booked twice:
//
//	In + Refused = Held + Queued + Merged + sum(Passed) + sum(Dropped)
//
// The table writes In, InBytes, Held, HoldHist, HoldSum and Decided. The Output writes all else, through the methods: it books every
// Entry that the table delivers exactly once, by Deliver or by Drop, when the frame has reached its fate and not before. An
// Output with a queue says by Enqueue and Dequeue what waits there.
//
// A Ledger belongs to the goroutine of its Table. A copy is a snapshot; between two calls of the table it is consistent.
type Ledger struct {
	In           uint64 // packets that Add took
	InBytes      uint64 // their bytes, Ethernet first, padding included
	Held         uint64 // packets in the table at this moment: in open superframes, or (hold 0) waiting for their turn
	Queued       uint64 // packets in the Output's queue at this moment
	Refused      uint64 // packets dropped in front of the table, which never saw them
	RefusedBytes uint64 // their bytes

	Frames      uint64             // frames delivered
	FrameBytes  uint64             // their bytes, Ethernet first
	Superframes uint64             // of Frames, those made of more than one packet
	Merged      uint64             // packets in Superframes
	Sealed      [NumReasons]uint64 // Superframes, by the reason they left the table
	Passed      [NumReasons]uint64 // packets delivered alone, by reason
	Dropped     [NumReasons]uint64 // packets given up, by reason: those of frames, and Refused

	HoldHist [len(HoldBounds) + 1]uint64 // ns that the first packet of a frame waited, of frames that were held
	HoldSum  uint64                      // of those ns

	Decided Decided
}

// Decided counts what a table made of a port's packets, whatever became of its frames behind it. It counts a frame when the
// frame leaves the table. The views QEMU and Virtio are drawn from it.
type Decided struct {
	Frames      [NumReasons]uint64 // superframes and lone packets, by the reason they left
	Superframes uint64
	Packets     uint64 // in Superframes
	Bytes       uint64 // of Packets as they came: Ethernet first, without padding
	Updates     uint64 // of Packets, window updates absorbed
}

// HoldBounds are the upper bounds of Ledger.HoldHist in ns; the last bucket has none.
var HoldBounds = [...]uint64{1e3, 2e3, 5e3, 10e3, 20e3, 50e3, 100e3, 200e3, 500e3, 1e6, 10e6}

// Entry is what a Ledger books of a frame. It is part of every Superframe. It is a plain value, so that an Output which queues
// frames can keep it.
type Entry struct {
	Packets  int    // packets in the frame, absorbed window updates included; at least 1
	Segments int    // data segments: 0 for a TCP segment without payload, 1 for anything else that is alone
	Len      int    // bytes of the frame, Ethernet first
	Reason   Reason // why the frame left when it did
	Merged   bool   // the frame is a superframe: it has more than one packet
	TCP      bool   // a whole TCP header was read
}

// Deliver books a frame that has reached its guest: its packets are merged or passed now.
func (l *Ledger) Deliver(e *Entry) {
	l.Frames++
	l.FrameBytes += uint64(e.Len)
	if e.Merged {
		l.Superframes++
		l.Merged += uint64(e.Packets)
		l.Sealed[e.Reason]++
		return
	}
	l.Passed[e.Reason] += uint64(e.Packets)
}

// Drop books a frame that was given up behind the table. Its packets are dropped and nothing else, whatever the table had made
// of them.
func (l *Ledger) Drop(e *Entry, why Reason) {
	l.Dropped[why] += uint64(e.Packets)
}

// Refuse books a packet of so many bytes that is dropped in front of the table.
func (l *Ledger) Refuse(why Reason, bytes int) {
	l.Refused++
	l.RefusedBytes += uint64(bytes)
	l.Dropped[why]++
}

// Enqueue says that a frame waits in the Output's queue, and Dequeue that it left the queue. Neither says what becomes of it.
func (l *Ledger) Enqueue(e *Entry) { l.Queued += uint64(e.Packets) }

// Dequeue is the opposite of Enqueue.
func (l *Ledger) Dequeue(e *Entry) { l.Queued -= uint64(e.Packets) }

// Unexplained is the number of packets that came in and are nowhere: above 0 when packets were lost, below when a packet was
// booked more than once. It is 0 between two bursts unless there is a bug.
func (l *Ledger) Unexplained() int64 {
	known := l.Held + l.Queued + l.Merged
	for r := range NumReasons {
		known += l.Passed[r] + l.Dropped[r]
	}
	return int64(l.In + l.Refused - known) // both wrap alike
}

// Add adds another account, that of the same VM on another worker.
func (l *Ledger) Add(o *Ledger) {
	l.In += o.In
	l.InBytes += o.InBytes
	l.Held += o.Held
	l.Queued += o.Queued
	l.Refused += o.Refused
	l.RefusedBytes += o.RefusedBytes
	l.Frames += o.Frames
	l.FrameBytes += o.FrameBytes
	l.Superframes += o.Superframes
	l.Merged += o.Merged
	for r := range NumReasons {
		l.Sealed[r] += o.Sealed[r]
		l.Passed[r] += o.Passed[r]
		l.Dropped[r] += o.Dropped[r]
	}
	for i, n := range o.HoldHist {
		l.HoldHist[i] += n
	}
	l.HoldSum += o.HoldSum
	l.Decided.Add(&o.Decided)
}

// Add adds another account of the same kind.
func (d *Decided) Add(o *Decided) {
	for r, n := range o.Frames {
		d.Frames[r] += n
	}
	d.Superframes += o.Superframes
	d.Packets += o.Packets
	d.Bytes += o.Bytes
	d.Updates += o.Updates
}

// Reset begins a new account, for the next VM that gets the port's number. What is still held or queued came in for it.
func (l *Ledger) Reset() {
	*l = Ledger{In: l.Held + l.Queued, Held: l.Held, Queued: l.Queued}
}

// left counts a frame that leaves the table.
func (d *Decided) left(e *Entry) {
	d.Frames[e.Reason]++
	if e.Merged {
		d.Superframes++
		d.Packets += uint64(e.Packets)
		d.Updates += uint64(e.Packets - e.Segments)
	}
}

// waited counts how long the first packet of a held frame waited, in ns.
func (l *Ledger) waited(ns int64) {
	i := 0
	for i < len(HoldBounds) && uint64(ns) > HoldBounds[i] {
		i++
	}
	l.HoldHist[i]++
	l.HoldSum += uint64(ns)
}
