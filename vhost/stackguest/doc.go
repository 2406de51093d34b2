// Package stackguest is a guest without a virtual machine: a vhost-user front-end whose frames go through a tap device into
// the TCP stack of the network namespace it runs in. The demo and the namespace tests use it to let a real Linux stack
// judge what a back-end puts into a guest's receive queue.
//
// # A frame's way
//
// From the back-end to the stack: the front-end posts buffers (mergeable when negotiated), gathers the num_buffers
// buffers of every used frame, runs the validator virtio.CheckRx over it and writes header and pieces to the tap with one
// writev. The kernel reads the virtio_net_hdr as a guest driver would: it refuses a bad geometry, trusts NEEDS_CSUM, and
// its TCP sees one GSO segment. No byte is copied on this side before that call.
//
// From the stack to the back-end: one readv per frame puts the kernel's virtio_net_hdr and the frame straight into a
// buffer of the transmit queue. What the stack may leave to the back-end (partial checksums, TSO) follows from the
// negotiated features, through TUNSETOFFLOAD.
//
// # Threads
//
// A Guest owns one goroutine per queue pair, locked to its thread, that serves both directions in turns and sleeps in
// ppoll when neither moves. While it is awake it asks the back-end for no calls, and it kicks only when the back-end wants
// kicks. It allocates nothing. Counters are plain words of that goroutine, folded into atomics once per turn.
//
// # What it is not
//
// It is no virtio driver for production: one pair shares no state with another, indirect descriptors are not used, and a
// back-end that breaks the rules of the ring ends the Guest with an error.
package stackguest
