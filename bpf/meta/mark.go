package meta

// HostMark is the skb->mark (SO_MARK) of all frames that packet sockets of the controller send: by it the TC programs of an interface's host
// know them, and the socket for group frames those that a VM sent to its host. It mirrors HOST_MARK in abi.h.
const HostMark = 0x52534331
