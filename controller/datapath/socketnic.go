package datapath

import (
	"errors"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// socketRoom is how many frames a SocketNIC keeps for the kernel at most.
const socketRoom = 256

// Sender is a *tap.Packet: a packet socket on an interface. Only the worker's goroutine calls it.
type Sender interface {
	// Send sends frames in their order and returns how many; err says why the next one was not.
	Send(frames []*virtio.Frame) (n int, err error)
	// Refresh looks at the interface's MTU again.
	Refresh() error
}

// SocketNIC is a queue of a bond's member: frames come in by its AF_XDP socket, and go out by a packet socket on the bond, so that the
// kernel chooses the member. What was handed to the kernel is in its memory: the chunk is free at once.
type SocketNIC struct {
	NIC
	out    Sender
	frames [socketRoom]virtio.Frame
	frags  [socketRoom][1][]byte
	refs   [socketRoom]uint64
	queued [socketRoom]*virtio.Frame
	n      int // of queued: not sent yet
}

// NewSocketNIC returns the NIC. It owns neither socket.
func NewSocketNIC(in NIC, out Sender) *SocketNIC { return &SocketNIC{NIC: in, out: out} }

// TxRoom implements NIC.
func (s *SocketNIC) TxRoom() int { return min(s.NIC.TxRoom(), socketRoom-s.n) }

// Send implements NIC.
func (s *SocketNIC) Send(d xsk.Desc, n int) bool {
	frame, _ := s.Received(d)
	if s.n == socketRoom || n <= 0 || n > len(frame) {
		return false
	}
	i := s.n
	s.frags[i][0], s.refs[i] = frame[:n], d.Addr
	s.frames[i] = virtio.Frame{Frags: s.frags[i][:], Len: n}
	s.queued[i] = &s.frames[i]
	s.n++
	return true
}

// Publish implements NIC: who sends by a system call shows nothing without sending it.
func (s *SocketNIC) Publish() { _ = s.send() }

// TxPending implements NIC.
func (s *SocketNIC) TxPending() int { return s.n }

// TxUnsent implements NIC.
func (s *SocketNIC) TxUnsent() bool { return s.n > 0 }

// Flush implements NIC. A kernel that has no room is no error.
func (s *SocketNIC) Flush() error {
	if err := s.send(); err != nil {
		return err
	}
	return s.NIC.Flush()
}

// send hands over what is queued. A frame that the kernel refuses for good is given up.
func (s *SocketNIC) send() (err error) {
	refreshed := false
	for s.n > 0 {
		var n int
		n, err = s.out.Send(s.queued[:s.n])
		s.drop(n)
		switch {
		case err == nil:
		case errors.Is(err, tap.ErrMTU) && !refreshed: // it may have grown
			refreshed = true
			_ = s.out.Refresh()
		case errors.Is(err, tap.ErrRefused):
			s.drop(1)
		case errors.Is(err, tap.ErrFull):
			return nil
		default:
			return err
		}
	}
	return nil
}

// drop forgets the first n frames and gives their chunks back.
func (s *SocketNIC) drop(n int) {
	if n == 0 {
		return
	}
	for _, ref := range s.refs[:n] {
		s.Free(ref)
	}
	for i := n; i < s.n; i++ {
		at := i - n
		s.refs[at], s.frags[at][0] = s.refs[i], s.frags[i][0]
		s.frames[at] = virtio.Frame{Frags: s.frags[at][:], Len: s.frames[i].Len}
	}
	s.n -= n
}
