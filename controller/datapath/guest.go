package datapath

import (
	"errors"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// What Guest.Put and Guest.Commit may say of a frame. A Guest returns exactly these, unwrapped, because the worker compares
// them for every frame. Any other error means that the guest is finished: its frames are dropped, and the control side is
// asked to look.
var (
	ErrFull     = errors.New("guest: no room")           // the frame waits
	ErrBurst    = errors.New("guest: the burst is full") // Commit, and the next one takes the frame; never for the first
	ErrTooBig   = errors.New("guest: the frame is larger than its buffers allow")
	ErrNoOffer  = errors.New("guest: the frame's header needs a feature that was not negotiated")
	ErrRefused  = errors.New("guest: the frame is bad")           // this one is dropped, the next may pass
	ErrLinkDown = errors.New("guest: link is down")               // likewise, and the guest may come back
	ErrDamaged  = errors.New("guest: a payload's sum is wrong")   // nothing of the frame was taken: a Summer's only
	ErrSource   = errors.New("guest: the frame's memory is gone") // it is another VM's; nothing of the frame was taken
)

// Frame is one frame on its way into a guest.
type Frame struct {
	virtio.Frame
	// Refs are the UMEM chunks that hold the bytes of the frame. Empty for a piece of a superframe that was cut again: its
	// bytes lie in the worker's own memory, and are valid during Put only.
	Refs []uint64
}

// Guest is the way into one VM from one worker. Only the worker's goroutine calls it. It must not wait.
//
// A burst is Begin, any number of Put, Commit. What Commit counts is delivered, and its chunks are the guest's: it gives each
// back to the NIC, at the latest from Reap or Close. What Commit does not count stays the worker's.
type Guest interface {
	// Begin opens a burst. room is how many chunks the guest may keep beyond Commit, those that it keeps now included. false: the
	// guest takes nothing now, and Commit must not follow.
	Begin(room int) bool
	// Put takes a frame, all of it or nothing, in the order it is to arrive. It may keep f and what f refers to until Commit.
	// A guest that answers ErrTooBig or ErrNoOffer to a superframe gets its pieces instead.
	Put(f *Frame) error
	// Commit makes the burst visible. n frames, the first ones, are on their way; err says why the next one is not.
	Commit() (n int, err error)
	// Walked is how many pieces of descriptor chains the guest made the worker look at since the last call, also in vain. It is
	// called within a burst.
	Walked() int
	// Reap gives the chunks back that the guest is done with. held is how many it still has.
	Reap() (held int)
	// Arm is called before the worker sleeps. hungry: frames wait for room. It returns a descriptor that becomes readable when
	// the guest has room again, or chunks to give back; -1 when there is nothing to wait for. ready: there is something now.
	// A hungry guest that returns -1 has no sign of room: the worker looks at it every hungryRetry. One that has a sign must
	// not miss any: the worker sleeps until then.
	Arm(hungry bool) (fd int, ready bool)
	// Ack is called when that descriptor was readable.
	Ack()
	// MaxFrame is how long a superframe may be that this guest takes whole, in bytes from Ethernet on; 0: unknown, or no limit.
	MaxFrame() int
	// Check looks at what only a system call tells, when the control side asks: whether the guest is finished, and with refresh
	// what changed at the guest's interface.
	Check(refresh bool) error
	// Close ends the way. It waits, within a bound, for what the guest has taken, gives all chunks back and returns the
	// frames among those that Commit counted that never arrived.
	Close() (unsent int, err error)
}

// Summer is a Guest whose Put copies, and sums up what it copies: it verifies Frame.Sums and says ErrDamaged. Frames for others have no Sums.
type Summer interface {
	Guest
	// Sums does nothing: it tells a Summer.
	Sums()
}

// Source is the way out of one VM: a TX virtqueue. A *vhost.TxQueue is one. Only one worker's goroutine calls it.
type Source interface {
	// Poll takes up to budget frames in order and hands each to fn, which says how to go on. walked is how many pieces of
	// descriptor chains it looked at. before is called when those that were taken are about to be completed, and returns how many of the
	// last ones stay in the queue.
	Poll(budget int, fn func(*vhost.TxFrame) vhost.Next, before func() (back int)) (n, walked int, err error)
	// ArmKick asks for a kick, and reports whether there is something to poll already.
	ArmKick() (more bool)
	// DisarmKick says that no kick is needed: somebody polls.
	DisarmKick()
	// KickFD is the descriptor that a kick makes readable, -1 where there is none.
	KickFD() int
	// AckKick takes a kick off it.
	AckKick()
}
