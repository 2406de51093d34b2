package doctor

import "github.com/rscctl/rscctl/controller/netdev"

// Facts are what is true of a host, as far as it could be seen.
type Facts struct {
	Kernel  Kernel
	Root    bool   // the effective user id is 0
	Caps    uint64 // effective capabilities, by bit
	Memlock uint64 // RLIMIT_MEMLOCK in bytes, the soft limit
	BTF     bool   // the kernel shows its types

	Programs Look // loading rscctl's own BPF programs
	AFXDP    Look // AF_XDP sockets

	OneChunk string // why a frame cannot come in several UMEM chunks; "": it can, or nobody could see

	BPFFS   string // where the flow maps are to be pinned
	OnBPFFS bool   // and it lies on a bpf filesystem

	Tun, VhostNet, KVM bool // the device is there and can be used

	QEMU    Tool
	Libvirt Tool

	CPUs       int
	Named      bool // the operator asked for the one interface in Interfaces
	Interfaces []Interface
	Taps       []Leftover // taps and other interfaces with a filter whose process died
	TapsLook   Look
}

// Look is a look at something that may fail.
type Look struct {
	Seen bool
	Err  string // what is wrong, "" nothing; when it was not seen, why not
}

func (l Look) good() bool { return l.Seen && l.Err == "" }

// Tool is a program of the host.
type Tool struct {
	Name    string // as it was called, "" when it is not installed
	Version Version
}

// Leftover is a tap, or another interface, with what a process that died left on it.
type Leftover struct {
	Name  string
	Index int
	Sure  bool // false: a process of another PID namespace may still hold it
}

// Interface is a network interface.
type Interface struct {
	netdev.Facts
	Missing   bool              // there is none of that name; the rest is empty then
	NotUplink *netdev.NotUplink // nil: it can be attached
	Bond      *netdev.Bond      // nil: it is none
	Of        string            // the bond that can be attached through it; "": none
	Program   string            // name of the XDP program on it
	Remove    string            // the command that takes that program off
	Features  *netdev.XDPFeatures
	Offloads  []Offload // of frames that come in
	Peer      *Peer     // of a veth
	ReadsTag  Look      // of a veth: the XDP program sees tags that travel beside the frame
}

// Offload is the state of an offload, by its ethtool name.
type Offload struct {
	Feature   string
	On, Fixed bool
}

// Peer is the other end of a veth.
type Peer struct {
	netdev.Peer
	TxChecksum, TxVLAN Offload
	TxQueues           int // 0: unknown
}

// offload finds an offload; the zero value when the interface has none of that name.
func (i *Interface) offload(feature string) Offload {
	for _, o := range i.Offloads {
		if o.Feature == feature {
			return o
		}
	}
	return Offload{Feature: feature}
}
