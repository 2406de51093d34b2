package api

// Profile is a set of rules for what may merge.
type Profile string

const (
	ProfileGRO Profile = "gro" // lossless: cutting a superframe gives its packets back bit for bit
	ProfileRSC Profile = "rsc" // Windows' rules; needs a guest that negotiated RSC_EXT
	ProfileOff Profile = "off" // only as the profile in effect: nothing is merged
)

// Profiles are those that can be asked for; the first is the default.
var Profiles = []Profile{ProfileGRO, ProfileRSC}

// XDPMode is how the XDP program sits on an interface.
type XDPMode string

const (
	XDPNative  XDPMode = "native"  // in the driver
	XDPGeneric XDPMode = "generic" // behind it, after the kernel has made a socket buffer of the frame
)

// MemberState is what a bond takes a member for.
type MemberState string

const (
	MemberActive MemberState = "active" // what comes in by it is taken
	MemberBackup MemberState = "backup" // what comes in by it is dropped: by a bond of mode active-backup, or before LACP has agreed
	MemberDown   MemberState = "down"   // it has no link
)

// XSKMode is how AF_XDP sockets get their frames.
type XSKMode string

const (
	XSKCopy     XSKMode = "copy"
	XSKZeroCopy XSKMode = "zerocopy"
)

// Feed is the way frames take into a VM.
type Feed string

const (
	FeedVhostUser Feed = "vhost-user" // we fill the guest's buffers
	FeedVhostNet  Feed = "vhost-net"  // the VM's tap, through /dev/vhost-net
	FeedPacket    Feed = "packet"     // the VM's tap, through a packet socket
)

// TxWay is the way that a VM's frames to the wire go now.
type TxWay string

const (
	TxKernel TxWay = "kernel" // a packet socket: TSO frames whole, cut and summed by the interface or the kernel
	TxAFXDP  TxWay = "af_xdp" // packet by packet, through AF_XDP
)

// PortMode says which side of a port does what: the socket of a vhost-user port, the TCP frames of a tap.
type PortMode string

const (
	ModeListen  PortMode = "listen"  // we listen, the front-end connects
	ModeConnect PortMode = "connect" // we dial a socket that the front-end serves
	ModeKernel  PortMode = "kernel"  // all frames stay on the kernel's path
	ModeSteered PortMode = "steered" // TCP frames come through us
)

// PortState is what a port does.
type PortState string

const (
	PortWaiting   PortState = "waiting"   // for a front-end, or for a VM to open the tap
	PortConnected PortState = "connected" // a front-end, no running ring
	PortRunning   PortState = "running"
	PortStuck     PortState = "stuck"  // waits for something that does not answer
	PortFailed    PortState = "failed" // no front-end, and the last one was thrown out
	PortClosed    PortState = "closed"
)

// Direction is the way of a flow.
type Direction string

const (
	ToGuest Direction = "to_guest"
	ToWire  Direction = "to_wire"
)

// FlowSort is a key that orders flows; every one puts the largest or newest first.
type FlowSort string

const (
	SortBytes   FlowSort = "bytes"
	SortPackets FlowSort = "packets"
	SortRate    FlowSort = "rate"
	SortAge     FlowSort = "age"
	SortVM      FlowSort = "vm"
)

// FlowSorts are all of them; the first is the default.
var FlowSorts = []FlowSort{SortBytes, SortPackets, SortRate, SortAge, SortVM}

// Deed is what an attach did.
type Deed string

const (
	DeedAttached Deed = "attached"
	DeedChanged  Deed = "changed"   // it was attached already, in another way
	DeedNone     Deed = "unchanged" // it was attached already, in the same way
)
