// Package control is the language between the test harness and the program inside the guest: JSON objects, one a line,
// over a serial port of their own. The network is what is being tested, so it cannot carry the orders.
//
// The harness sends a [Request], the guest answers with one [Reply] of the same ID, in any order: a reception of minutes
// does not hold up a look at the counters. A Reply with an Event and no ID is the guest speaking by itself.
package control

import (
	"encoding/json"
	"time"
)

// EventReady is sent once after every boot, when the guest takes orders. Its Result is a Hello.
const EventReady = "ready"

// EventOutput carries what a program started by OpExec writes, as JSON text, with the order's ID.
const EventOutput = "output"

// The orders. Args and Result name the types that travel with each.
const (
	OpAddr     = "addr"     // Addr -> nothing: the NIC goes up with these addresses
	OpNIC      = "nic"      // nothing -> NIC
	OpOffload  = "offload"  // Offload -> nothing
	OpListen   = "listen"   // Listen -> nothing: from here on a peer can connect, or send datagrams
	OpReceive  = "receive"  // Receive -> Transfer: accepts one connection and reads to its end
	OpSend     = "send"     // Send -> Transfer
	OpTrains   = "trains"   // Trains -> Reception: takes the datagrams of one stream
	OpEcho     = "echo"     // Echo -> nothing: answers UDP datagrams on a port until power off
	OpPing     = "ping"     // Probe -> ProbeResult: ICMP echo
	OpUDP      = "udp"      // Probe -> ProbeResult: UDP datagrams to an echo server
	OpForget   = "forget"   // nothing -> nothing: empties the neighbour tables
	OpRebind   = "rebind"   // nothing -> nothing: the NIC's driver lets go of the device and takes it again
	OpExec     = "exec"     // Exec -> ExecResult: runs a program of the initramfs
	OpReboot   = "reboot"   // nothing -> nothing; then a new EventReady
	OpPowerOff = "poweroff" // nothing -> nothing; then QEMU ends
)

// Request is one order.
type Request struct {
	ID   uint64          `json:"id"`
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

// Reply answers the order of the same ID: Error is empty on success.
type Reply struct {
	ID     uint64          `json:"id,omitempty"`
	Event  string          `json:"event,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// Hello is what the guest says of itself when it is up.
type Hello struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	NIC    string `json:"nic"` // the interface's name; "" when there is no virtio NIC
}

// Addr lists addresses with prefix lengths. Those of IPv6 are usable at once (no duplicate address detection).
type Addr struct {
	Addrs []string `json:"addrs"`
}

// NIC is what the guest's kernel knows of its virtio NIC.
type NIC struct {
	MAC      string            `json:"mac"`
	MTU      uint64            `json:"mtu"` // bytes of a packet
	Carrier  bool              `json:"carrier"`
	Losses   uint64            `json:"losses"` // of the carrier, since the driver took the device
	RxQueues int               `json:"rx_queues"`
	Features string            `json:"features"` // the negotiated virtio bits as sysfs shows them: a '0' or '1' each, bit 0 first
	Stats    map[string]uint64 `json:"stats"`    // /sys/class/net/NIC/statistics
	CPU      CPU               `json:"cpu"`
}

// Has tells whether a virtio feature bit was negotiated.
func (n *NIC) Has(bit int) bool { return bit < len(n.Features) && n.Features[bit] == '1' }

// CPU is the guest's processor time since boot, summed over its CPUs.
type CPU struct {
	Busy time.Duration `json:"busy"`
	Idle time.Duration `json:"idle"`
}

// Offload switches a feature of the NIC by its ethtool name ("rx-gro", "tx-tcp-segmentation", ...).
type Offload struct {
	Feature string `json:"feature"`
	On      bool   `json:"on"`
}

// Listen opens a port on all addresses: of TCP, or of UDP with UDP_GRO, whose socket takes trains of datagrams whole.
type Listen struct {
	Port int  `json:"port"`
	UDP  bool `json:"udp,omitempty"`
}

// Receive accepts on a port that was opened by Listen. Timeout bounds the whole of it. With Count nothing is hashed: an
// emulated CPU hashes some 50 MB/s, so a rate wants a transfer without.
type Receive struct {
	Port    int           `json:"port"`
	Count   bool          `json:"count"`
	Timeout time.Duration `json:"timeout"`
}

// Send connects to "ADDRESS:PORT" and writes Bytes bytes of the stream of Seed.
type Send struct {
	To      string        `json:"to"`
	Bytes   int64         `json:"bytes"`
	Seed    uint64        `json:"seed"`
	Timeout time.Duration `json:"timeout"`
}

// Transfer is what one side saw of a TCP connection.
type Transfer struct {
	Bytes    int64         `json:"bytes"`
	SHA256   string        `json:"sha256"`   // of the bytes read or written, in hex; "" when they were only counted
	Duration time.Duration `json:"duration"` // from connected to the end of the stream
	Error    string        `json:"error"`    // what cut it short; Bytes and SHA256 then say how far it went
}

// BitsPerSecond is the mean rate of the application's bytes.
func (t *Transfer) BitsPerSecond() float64 {
	if t.Duration <= 0 {
		return 0
	}
	return float64(t.Bytes) * 8 / t.Duration.Seconds()
}

// Trains is a stream of Count numbered datagrams as QUIC sends them: in trains of Train, each datagram of Size bytes but the last
// of each train, which is 100 shorter. Count is a multiple of Train.
type Trains struct {
	Port    int           `json:"port"` // where they are received: one that Listen opened
	Count   int           `json:"count"`
	Train   int           `json:"train"`
	Size    int           `json:"size"`
	Timeout time.Duration `json:"timeout"` // of silence
}

// Reception is what came of such a stream. All that is counted was right to the last byte.
type Reception struct {
	Datagrams int    `json:"datagrams"`
	Late      int    `json:"late"`  // of them, that came behind one with a higher number
	Calls     int    `json:"calls"` // of recvmsg(2), which brought them
	Most      int    `json:"most"`  // datagrams that one of these brought
	Error     string `json:"error"` // what cut it short
}

// Echo names the UDP port to answer on.
type Echo struct {
	Port int `json:"port"`
}

// Probe asks for Count round trips of Size bytes of payload, one after the other.
type Probe struct {
	To      string        `json:"to"` // an address; for UDP "ADDRESS:PORT"
	Size    int           `json:"size"`
	Count   int           `json:"count"`
	Timeout time.Duration `json:"timeout"` // for each round trip
}

// Exec runs a program and waits for its end. Timeout kills it; 0 is none.
type Exec struct {
	Args    []string      `json:"args"`
	Env     []string      `json:"env,omitempty"`
	Dir     string        `json:"dir,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
}

// ExecResult is how the program ended: its exit code, or -1 when a signal ended it.
type ExecResult struct {
	Exit int    `json:"exit"`
	How  string `json:"how,omitempty"` // in words, unless the code is 0
}

// ProbeResult counts the answers that were right to the last byte.
type ProbeResult struct {
	Sent     int             `json:"sent"`
	Answered int             `json:"answered"`
	RTT      []time.Duration `json:"rtt"`
}
