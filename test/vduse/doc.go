// Package vduse puts the real virtio-net driver of this kernel in front of a vhost-user back-end, without a virtual machine. The
// device is VDUSE's, the driver comes to it by virtio_vdpa, and so it is a network interface of this machine, with every feature
// that driver and back-end agree on. QEMU carries some of them to no vhost-user back-end: the UDP superframes (GUEST_USO4,
// GUEST_USO6, HOST_USO).
//
// # A frame's way
//
// The kernel copies the buffers of such a device through bounce pages, because a process is not trusted with its memory. These
// pages are taken from the memory of the vhost-user front-end (VDUSE_IOTLB_REG_UMEM), a memfd: the back-end writes the frame and
// its virtio_net_hdr where the kernel's driver reads them, and nothing in between looks at either.
//
// The driver's rings cannot be taken from there. They lie in a file of VDUSE's own, which is no memory file, and a back-end that
// takes nothing else refuses it. So a relay for each ring is a device to the kernel's driver and a driver to the back-end: it hands
// over chains one by one and gives them back, all that became visible together in one step, with their buffers where they are.
//
// # Features
//
// What the back-end offers is offered to the driver, but for what needs a control queue, which VDUSE refuses. The device adds MAC, and
// ACCESS_PLATFORM, which VDUSE insists on; the back-end hears of neither: addresses are the front-end's own when it sees them.
//
// # What it needs
//
// Linux 6.0 with the modules vduse and virtio_vdpa, and root in the first network namespace, where vDPA devices are made and their
// interface appears. Nothing is done about a driver that is suspended or a back-end that goes away.
package vduse
