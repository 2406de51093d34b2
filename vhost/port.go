package vhost

import (
	"os"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// DefaultFeatures is what a Port can do for a guest.
const DefaultFeatures = virtio.Features(1<<virtio.FCsum | 1<<virtio.FGuestCsum | 1<<virtio.FMTU |
	1<<virtio.FGuestTSO4 | 1<<virtio.FGuestTSO6 | 1<<virtio.FGuestECN |
	1<<virtio.FHostTSO4 | 1<<virtio.FHostTSO6 | 1<<virtio.FHostECN |
	1<<virtio.FMrgRxbuf | 1<<virtio.FGuestAnnounce | 1<<virtio.FMQ |
	1<<virtio.FIndirectDesc | 1<<virtio.FEventIdx | 1<<virtio.FVersion1 | 1<<virtio.FRSCExt)

// MaxQueuePairs bounds Config.MaxPairs.
const MaxQueuePairs = 64

// Config describes a Port.
type Config struct {
	Name     string                           // for log lines
	Socket   string                           // path of the Unix socket
	Connect  bool                             // dial the socket, again and again, instead of listening
	Mode     os.FileMode                      // of the listening socket; 0 means 0600
	UID, GID int                              // its owner; -1 keeps ours
	MaxPairs int                              // queue pairs offered, 0 means 8
	MTU      int                              // largest MTU accepted from the front-end, 0 means any
	Offer    virtio.Features                  // 0 means DefaultFeatures
	Logf     func(format string, args ...any) // one line per call; nil discards
	Hooks    Hooks
}

// Hooks tell the owner of a Port what happens to it. They are called on the
// control goroutine, while the front-end and with it the virtual machine waits:
// they must return within a short bound and must not call Close. Any may be
// nil. Started and BeforeStop alternate strictly.
type Hooks struct {
	// Started: rings run. Features and the set of running queues stay as they
	// are until BeforeStop. It comes again, after a BeforeStop, whenever one of
	// them changes: a start of two pairs is a few such rounds.
	Started func(p *Port)
	// BeforeStop: something that was promised by Started is about to change.
	// Deliver what is held and forget the kick descriptors; they are closed
	// once this returns. When the connection is lost or the port has failed, the
	// queues have stopped already.
	BeforeStop func(p *Port)
	// Stopped: the connection has ended, for that reason; nil after Close.
	Stopped func(p *Port, reason error)
}

// Port is one network device. Its methods may be called from any goroutine.
type Port struct{}

// CheckSocket says, without changing anything, whether NewPort would accept
// the configuration's socket.
func CheckSocket(cfg Config) error { return nil }

// NewPort opens the socket (or prepares to dial it) and starts the control
// goroutine.
func NewPort(cfg Config) (*Port, error) { return &Port{}, nil }

// Close stops the rings, ends the connection and removes the socket file if it
// is still ours.
func (p *Port) Close() error { return nil }

// State returns a snapshot.
func (p *Port) State() State { return State{} }

// Counters returns a snapshot, summed over the queues.
func (p *Port) Counters() Counters { return Counters{} }

// Features returns what the guest accepted, 0 before it has.
func (p *Port) Features() virtio.Features { return 0 }

// Pairs returns how many pairs have a running receive queue: the pairs are
// 0..n-1, as guests enable them in order.
func (p *Port) Pairs() int { return 0 }

// MaxPairs returns how many pairs RX and TX know.
func (p *Port) MaxPairs() int { return 0 }

// RX returns the receive queue of pair i, TX its transmit queue; both panic
// unless 0 <= i < MaxPairs.
func (p *Port) RX(i int) *RxQueue { return nil }

// TX returns the transmit queue of pair i.
func (p *Port) TX(i int) *TxQueue { return nil }
