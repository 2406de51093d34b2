// Package vhost is a virtual machine's network device seen from the back-end:
// a Port puts frames into the guest's receive queues and reads what the guest
// sends, over vhost-user.
//
// # Goroutines
//
// Each Port has a control goroutine. It owns the connection, answers the
// front-end, starts and stops rings and calls the Hooks. Frames move on the
// caller's goroutines, through RxQueue and TxQueue, which stay the same objects
// for the life of the Port. One mutex per virtqueue keeps the two apart: a data
// goroutine holds it for a burst, never across a wait; the control goroutine
// takes it to start or stop that ring.
//
// # Trust
//
// The guest can write to its rings and buffers at any time, and the front-end
// can send anything and take its memory away. Whatever it does stops this Port
// alone: the queues refuse further frames, the connection is closed, State
// tells the reason until the next connection. A fault in guest memory arrives
// as a Go panic, which Put, Poll and their kin turn into such a stop; so does any
// other panic, as an internal fault. The control side touches guest memory before
// it changes anything, in one place that makes an error of a fault.
//
// A ring has a hold on its guest's memory: however a connection ends, nothing is
// unmapped while a slice of it is left, because another guest's memory would be
// mapped there next. And nobody waits for a guest: guest memory lies where only
// this kernel answers a page fault (Config.AnyMemory lifts that), calls and kicks
// cannot block or keep anybody awake, State and Counters take no lock that is held
// while guest memory is touched, Close has a bound, and a port that does not get
// on shows as stuck.
//
// # Hand-over
//
// A Port can be packed into its state and its descriptors, and unpacked in another
// process: planned, by Pack, or after a crash, from what a Keeper was given as it
// happened. The front-end keeps its connection and the guest its rings. It costs one
// descriptor for each distinct region of guest memory, kept open to be mapped again.
//
// # Frames
//
// The package copies frames and checks headers against the negotiated features,
// but parses no frame: what may be merged is decided elsewhere.
package vhost
