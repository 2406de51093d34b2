// Package controller owns what runs on a host: the uplinks with their XDP programs and AF_XDP sockets, a worker per NIC
// queue, the VMs' ports and policies, the state file and the control socket.
//
// # Threads
//
// A worker is a goroutine locked to its thread. It alone touches its AF_XDP socket, its flow table and its per-port
// counters; nothing of them is locked. The control side reaches a worker only by messages that run between two bursts.
// The one thing two workers can share is a VM's virtqueue (a VM with fewer queue pairs than the NIC has queues): its
// lock is taken for one burst, one virtqueue at a time, so no order of locks exists that could deadlock.
//
// # Ownership of a frame
//
// A chunk of the UMEM belongs, in this order, to the fill ring, the RX ring, the flow table (while its segment is held),
// the port's output queue (until the guest's buffers took the bytes) and the pool again. Local deliveries and multicast
// frames are copied into a chunk first and then take the same way.
package controller
