package datapath

import (
	"github.com/rscctl/rscctl/flowtable/packet"
)

// Where the XDP program of an interface is somebody else's, frames come as the NIC had them: without our metadata, those of no VM and group
// frames among them. What is done here about each of them, our program does in front of the socket otherwise. What stands in front of a frame
// is never looked at: it may be the other one's, or left over from the chunk's earlier use.

// groupCopies is how many copies of group frames a worker makes for its VMs in a turn, of what comes by its queue: at 0.25 us each a quarter
// of a millisecond. One frame has all of its copies whatever their number is.
const groupCopies = 1024

// takeForeign gives one frame to the VM that it is for, to all of its VLAN, or to nobody: the kernel cannot have it back.
func (w *Worker) takeForeign(frame []byte, ref uint64) {
	switch p := w.byAddress(frame); {
	case p != nil:
		w.fromWire(p, frame)
		w.accept(p, frame, ref)
		return
	case frame == nil: // in no chunk of ours
		w.cnt.Unknown++
	case len(frame) >= ethHeader && frame[0]&1 != 0:
		w.takeGroup(frame)
	default:
		w.cnt.Nobody++
	}
	w.nic.Free(ref)
}

// takeGroup copies a group frame, which w.pkt.Info describes, to the VMs that hear it. The tag of their VLAN is taken out first, as it is for a single VM.
func (w *Worker) takeGroup(frame []byte) {
	if w.groupTurn != w.turn {
		w.groupTurn, w.groupLeft = w.turn, groupCopies
	}
	vlan := uint16(0)
	if w.pkt.Info.Tagged {
		vlan = w.pkt.Info.TCI & vlanID
		frame = packet.StripTag(frame, &w.pkt.Info)
	}
	hear := 0
	for _, p := range w.list {
		if p.hears(vlan) {
			hear++
		}
	}
	switch {
	case hear == 0:
		w.cnt.Nobody++
	case w.groupLeft <= 0:
		w.cnt.GroupLost++
	default:
		w.groupLeft -= hear
		w.groupFromWire(frame, vlan)
	}
}
