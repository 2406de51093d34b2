// Package tap feeds a virtual machine through the tap it has already: superframes go in at the host's end of the tap,
// and the VM's own vhost-net (or QEMU without it) spreads them over the guest's mergeable buffers.
//
// # Two feeds
//
// [Packet] is an AF_PACKET raw socket with a virtio_net_hdr in front of every frame, bound to the tap. What is sent there is
// *transmitted* by the tap, that is, received by the VM. Send hands over a batch of scattered frames with one system call,
// in which the kernel makes its one copy. Writing to the tap's file would be the wrong direction.
//
// [Net] is the transmit ring of a /dev/vhost-net whose backend is such a socket. Its descriptors point into the UMEM, and a
// thread of the kernel makes the copy: the poster pays for descriptors only, and the chunks come back by Reap. The socket
// takes the 10-byte header on every kernel, so the ring negotiates INDIRECT_DESC and nothing else.
//
// Both judge a frame before the kernel does, by the same rules (check.go): a bad superframe is dropped by the kernel without
// a word, or in vhost can stop the ring for good.
//
// # The guest's half
//
// [Guest] is what QEMU and a guest driver are together: a /dev/vhost-net on a tap's file, with the receive and transmit rings
// of a guest that has mergeable buffers. Tests and the demo look through it at what a guest gets.
//
// # Loss
//
// A tap's queue (txqueuelen frames, 500 by default) takes a frame or drops it. With the default queueing discipline that drop
// is silent to the sender: send succeeds and the interface's tx_dropped counts. Only with noqueue does the sender see it.
//
// A Packet, a Net and a Guest each belong to one goroutine at a time. Numbers in headers are little-endian, which on the
// machines this package supports is the host's order, as the legacy header wants it.
package tap
