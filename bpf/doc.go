// Package bpf holds the XDP program that finds the frames of attached VMs, counts their TCP flows and steers them to
// AF_XDP sockets, the TC programs that count what a VM sends through a tap and how large the frames it gets are, and the typed loaders
// around them.
//
// The C sources (rsc.bpf.c, tap.bpf.c, observe.bpf.c and the headers) are compiled once; the objects and their generated bindings
// are committed, so a build needs Go alone. `make generate` remakes them bit for bit with the clang version that the
// Makefile names. The sources include no header of the build machine, which is what makes that possible.
//
// # A frame's way
//
// The program parses each frame as flowtable/packet does, up to the TCP header. Multicast and broadcast go to the
// host. Otherwise (VLAN id, destination MAC) is looked up in the map `ports`; a frame of an attached VM is counted in
// the VM's flow map (TCP only; see Flows), gets 32 bytes of metadata in front (see package meta) and is redirected to the socket of its RX queue.
// Everything else, and everything when the controller is gone, is passed to the kernel; and so are frames of VMs that the kernel reaches
// too while the queue's worker hangs (hang.h). The program drops nothing but frames of a VM that has its share of the RX ring
// already (see Shares), and of one that only the worker reaches when a hung worker's fill ring is nearly used up.
//
// How much of a VM's traffic is steered is up to its flags: everything, or only TCP, of some families, without some ports,
// where the kernel's own path to the VM takes the rest.
//
// # The other direction
//
// A VM on a tap sends on the kernel's path. There rsc_tap, at the tap's ingress, counts its TCP flows in the same
// map under DirToWire. It hangs there by TCX, or by clsact before Linux 6.6, and never decides about a frame.
//
// # Looking on
//
// rsc_observe counts how large the kernel makes the TCP frames that it gives to a VM's tap (Observer). It needs no controller and
// has nothing to do with the other two.
//
// # Tags that are not in the frame
//
// A NIC or a veth peer may have moved the 802.1Q tag out of the frame. On a veth in native mode the program reads it where
// the driver keeps it, if the kernel's BTF says where that is (6.3 and later). Otherwise an accelerated tag is invisible
// here, the frame looks untagged, and the caller must have the tags left in the frames. ReadsVLANTag says which.
package bpf
