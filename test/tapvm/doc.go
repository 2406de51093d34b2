// Package tapvm is a virtual machine without a machine, for the tests of the way through a tap: a device on the host's tap DEV
// as QEMU would have it, and behind it a real Linux TCP stack in a network namespace of its own.
//
// What the host transmits on DEV is read with its virtio_net_hdr, judged by virtio.CheckRx against the offloads the guest has,
// counted, and written to a second tap in the guest's namespace, whose stack receives it. The other direction is the same the
// other way round. The offloads can be switched while it runs, as a guest's driver does.
//
// # Engines
//
// Userspace reads and writes DEV itself, as QEMU does with vhost=off. Vhost has a second /dev/vhost-net do it, over rings with
// mergeable buffers (tap.Guest), as with vhost=on: header, num_buffers and the split over buffers are the kernel's own.
//
// # What it is not
//
// The guest's stack sees frames as a tap hands them in, not as its virtio driver would build them; only what CheckRx says of the
// header tells how a guest driver takes it. There is one queue.
package tapvm
