package controller

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
)

// Bounds of the sizes that an operator may give.
const (
	LeastChunks = 8192 // the rings and what waits for guests have room
	MostChunks  = 1 << 18
	LeastSlots  = 64
	MostSlots   = flowtable.MaxSlots
)

// What an uplink takes where nobody says how much.
const (
	usualChunks    = 32768 // half of them in the flow table: 22 of each of 512 flows, 16 of each of 1,024
	chunksPerFrame = 2     // chunks for each buffer of a frame that no chunk holds
	memoryShare    = 256   // part of the machine's memory that the UMEMs of an interface are at most, if that is more than LeastChunks
)

// Sizes are those of one NIC queue. 0: chosen.
type Sizes struct {
	Chunks int // of the UMEM, 2 KiB each, or 4 for a large MTU
	Slots  int // of the flow table: flows of which something is held at a time
}

// Check is nil, or ErrUsage and what is allowed.
func (s Sizes) Check() error {
	switch {
	case s.Chunks != 0 && (s.Chunks < LeastChunks || s.Chunks > MostChunks):
		return fmt.Errorf("%w: %d chunks: use %d to %d", ErrUsage, s.Chunks, LeastChunks, MostChunks)
	case s.Slots != 0 && (s.Slots < LeastSlots || s.Slots > MostSlots):
		return fmt.Errorf("%w: %d slots: use %d to %d", ErrUsage, s.Slots, LeastSlots, MostSlots)
	}
	return nil
}

// slots is the size of a flow table.
func (s Sizes) slots() int {
	if s.Slots == 0 {
		return flowtable.DefaultSlots
	}
	return s.Slots
}

// rings are the sizes that this version opens each of the queues of an interface with, on a machine with so many bytes of memory. A
// socket that is gone on with keeps its own.
func (s Sizes) rings(queues int, room frameRoom, memory uint64) ringSizes {
	r := ringSizes{Chunks: s.Chunks, Tx: txRingSize, Completion: completionRing}
	if r.Chunks == 0 {
		r.Chunks = usualChunks
		for r.Chunks > xsk.QueueChunks && uint64(r.Chunks)*uint64(room.perChunk())*uint64(max(queues, 1)) > memory/memoryShare {
			r.Chunks /= 2
		}
	}
	r.Rx = leastRing
	for r.Rx < mostRing && 2*r.Rx <= r.Chunks/ringShare {
		r.Rx *= 2
	}
	r.Fill = r.Rx
	if room.frame > 0 {
		r.Frames, r.FrameSize = r.Chunks/chunksPerFrame, room.frame
		r.Rx, r.Fill = jumboRings*r.Rx, jumboRings*r.Fill
	}
	return r
}

// memory is the machine's, or so much less that memoryShare of it may be locked; 0 if nobody says.
func memory() uint64 {
	var i unix.Sysinfo_t
	if unix.Sysinfo(&i) != nil {
		return 0
	}
	total := i.Totalram * uint64(max(i.Unit, 1))
	var data [2]unix.CapUserData
	if unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0 {
		return total
	}
	var lock unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lock) == nil && lock.Cur < total/memoryShare {
		total = lock.Cur * memoryShare
	}
	return total
}
