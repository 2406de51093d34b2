// Package datapath moves frames between one NIC queue and the VMs behind it.
//
// A Worker serves one NIC queue. It is one goroutine, locked to a thread, and everything that belongs to it is touched by
// that goroutine alone. The rest of the program speaks to it by its exported methods: each sends a message, which runs
// between two bursts, and waits for it within a bound.
//
// A frame's way to a guest, file by file, without a step back:
//
//	NIC -> receive.go -> flowtable.Table -> queue.go -> deliver.go -> Guest
//
// and from a guest:
//
//	Source -> transmit.go -> NIC, or receive.go of a VM beside it
//
// The package is given descriptors and memory and opens none. It knows no JSON, no netlink, no state file and no flag: a
// process that does nothing else could run it. What it needs of a NIC queue, of a guest and of the multicast socket are the
// interfaces in nic.go and guest.go. The tests put fakes behind them, and need no privileges.
//
// Nothing on the data path allocates, logs, or waits; no lock is shared between workers; no call enters the kernel per packet.
package datapath
