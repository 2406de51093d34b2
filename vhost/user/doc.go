// Package user speaks vhost-user: the protocol in which a front-end (QEMU,
// DPDK's virtio-user) lends its guest's memory and virtqueues to a back-end
// over a Unix stream socket.
//
// The package has three layers:
//
//   - the codec: Header, the payload types, Conn (messages with their file
//     descriptors);
//   - Session, the back-end's side of one connection: what was negotiated, the
//     guest's memory, the state of every ring. It tells a Device what to run;
//   - Frontend, the other side: it owns memory in a memfd and drives rings as a
//     guest would. Tests and the demonstration use it.
//
// Requests are numbered and laid out as in QEMU's docs/interop/vhost-user.rst.
// Integers are in the host's byte order there; the machines we build for are
// little-endian, and so is this codec.
//
// A Session trusts nothing its peer says: sizes, indexes, addresses and
// descriptors are checked before use, and every refusal is one of the errors in
// errors.go. It knows no frames; package vhost does.
package user
