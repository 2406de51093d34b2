// Package api holds what crosses the control socket: requests, responses and the client. It knows nothing of the controller's inside.
//
// Transport: HTTP/1.1 with JSON bodies over a Unix stream socket. Every list carries "schema".
// docs/api.md lists the requests with their parameters, and every field; tests hold it to the code. An error is an HTTP status of 400 and
// above with an ErrorBody; kinds in errors.go lists the codes.
package api

import "time"

// Schema is the version of every JSON document the product prints, but for the summary of replay, which has its own. 2: XDP's
// word for a frame is its outcome (stats), the parser's its verdict (flows).
const Schema = 2

// Policy is what coalescing does for one VM. Durations travel as nanoseconds.
type Policy struct {
	Coalesce     bool     `json:"coalesce"`
	IPv4         bool     `json:"ipv4"`
	IPv6         bool     `json:"ipv6"`
	UDP          bool     `json:"udp"` // datagrams too
	Profile      Profile  `json:"profile"`
	HoldNS       int64    `json:"hold_ns"`       // the longest
	HoldAdaptive bool     `json:"hold_adaptive"` // how long it is up to that is found out; false: always so long
	MaxBytes     int      `json:"max_bytes"`     // IP length of a superframe
	MaxSegments  int      `json:"max_segments"`  // 0: no limit but the bytes
	ExcludePorts []uint16 `json:"exclude_ports"`
	Isolate      bool     `json:"isolate"`  // nothing crosses between the VM and those beside it
	Host         bool     `json:"host"`     // the host is a neighbour of the VM; without meaning for one on its own tap
	RateTx       uint64   `json:"rate_tx"`  // bits a second that the VM may send; 0: any
	BurstTx      uint64   `json:"burst_tx"` // bytes at once; 0: as the rate has it
	RateRx       uint64   `json:"rate_rx"`  // the same of what it gets
	BurstRx      uint64   `json:"burst_rx"`
}

// PolicyPatch changes the fields that are not nil.
type PolicyPatch struct {
	Coalesce     *bool     `json:"coalesce,omitempty"`
	IPv4         *bool     `json:"ipv4,omitempty"`
	IPv6         *bool     `json:"ipv6,omitempty"`
	UDP          *bool     `json:"udp,omitempty"`
	Profile      *Profile  `json:"profile,omitempty"`
	HoldNS       *int64    `json:"hold_ns,omitempty"`       // without HoldAdaptive: fixed
	HoldAdaptive *bool     `json:"hold_adaptive,omitempty"` // without HoldNS: AdaptiveHold, FixedHold, or as it is if it is so already
	MaxBytes     *int      `json:"max_bytes,omitempty"`
	MaxSegments  *int      `json:"max_segments,omitempty"`
	ExcludePorts *[]uint16 `json:"exclude_ports,omitempty"`
	Isolate      *bool     `json:"isolate,omitempty"`
	Host         *bool     `json:"host,omitempty"`
	RateTx       *uint64   `json:"rate_tx,omitempty"`
	BurstTx      *uint64   `json:"burst_tx,omitempty"`
	RateRx       *uint64   `json:"rate_rx,omitempty"`
	BurstRx      *uint64   `json:"burst_rx,omitempty"`
}

// PolicyRequest sets (Reset false) or resets the policy of one VM, or with Default and no VM that of VMs attached later.
type PolicyRequest struct {
	VM      string      `json:"vm"`
	Default bool        `json:"default,omitempty"`
	Reset   bool        `json:"reset,omitempty"`
	Patch   PolicyPatch `json:"patch"`
	MACs    *[]string   `json:"macs,omitempty"` // beside the one that the VM is attached with; nil: as they are. Not with Default
	IPs     *[]string   `json:"ips,omitempty"`  // what the VM is kept to; nil: as it is. Not with Default
}

// PolicyResponse is the policy in force, and beside it what the VM is kept to. Effective differs from Profile when the guest did not negotiate RSC_EXT.
type PolicyResponse struct {
	Schema    int      `json:"schema"`
	VM        string   `json:"vm"`
	Default   bool     `json:"default,omitempty"` // of no VM, but of those to come
	Policy    Policy   `json:"policy"`
	Effective Profile  `json:"effective_profile"`
	Note      string   `json:"note,omitempty"`        // why Effective is not what was asked
	UDPMerged bool     `json:"udp_merged,omitempty"`  // datagrams are merged
	UDPNote   string   `json:"udp_note,omitempty"`    // why they are not, though the policy says so
	MACs      []string `json:"macs,omitempty"`        // beside the one that it is attached with
	IPs       []string `json:"ips,omitempty"`         // the VM may send from these alone; none: from any
	HoldNowNS int64    `json:"hold_now_ns,omitempty"` // the hold that superframes get now, on average; 0 while nothing is held
}

// AttachRequest puts one VM on an interface.
type AttachRequest struct {
	Iface       string      `json:"iface"`
	VM          string      `json:"vm"`
	MAC         string      `json:"mac"`
	VLAN        int         `json:"vlan,omitempty"` // 1..4094, 0: untagged
	VhostUser   string      `json:"vhost_user,omitempty"`
	Connect     bool        `json:"connect,omitempty"`
	MTU         int         `json:"mtu,omitempty"`       // with VhostUser: bytes of an IP packet that the VM sends and gets; 0: as the interface has it
	Tap         string      `json:"tap,omitempty"`       // the VM's own tap, instead of VhostUser
	Domain      string      `json:"domain,omitempty"`    // the VM's libvirt domain, which is asked for the tap that has MAC
	TrustTap    bool        `json:"trust_tap,omitempty"` // that Tap is the VM's is the operator's word
	Bypass      bool        `json:"bypass_filters,omitempty"`
	Policy      PolicyPatch `json:"policy"`
	AllowSpoof  bool        `json:"allow_spoof,omitempty"`
	Isolate     bool        `json:"isolate,omitempty"`    // as Policy.Isolate, which knows false too: from clients that do not know that one
	MACs        *[]string   `json:"macs,omitempty"`       // beside MAC; nil: of a new VM none, of a known one as they are
	IPs         *[]string   `json:"ips,omitempty"`        // what the VM is kept to; nil: of a new VM nothing, of a known one as it is
	AnyMemory   bool        `json:"any_memory,omitempty"` // guest memory on any file system but FUSE
	FixOffloads bool        `json:"fix_offloads,omitempty"`
	SocketMode  string      `json:"socket_mode,omitempty"`  // octal, "0660"
	SocketOwner string      `json:"socket_owner,omitempty"` // "user:group", names or numbers
	XSKMap      string      `json:"xsk_map,omitempty"`      // pinned map of somebody else's XDP program; "": the interface's is rscctl's
	Queues      []uint16    `json:"queues,omitempty"`       // whose sockets go into it
	DryRun      bool        `json:"dry_run,omitempty"`
}

// Config is what the controller was told: a request for each VM, attached or waiting, that attaches it again, with its policy in full.
type Config struct {
	Schema        int             `json:"schema"`
	VMs           []AttachRequest `json:"vms"`
	Waiting       []string        `json:"waiting"` // names of those that are not attached now
	DefaultPolicy Policy          `json:"default_policy"`
}

// AttachResponse says what was, or with DryRun would be, changed on the host, in order, and what the operator should know.
type AttachResponse struct {
	Schema   int      `json:"schema"`
	Iface    string   `json:"iface"`
	VM       string   `json:"vm"`
	Deed     Deed     `json:"deed"` // what was, or with DryRun would be, done
	Changes  []string `json:"changes"`
	Warnings []string `json:"warnings"`
	Notes    []string `json:"notes,omitempty"` // what is not offered there
	DryRun   bool     `json:"dry_run"`
}

// DetachRequest takes one VM (or with VM empty every VM) off an interface.
type DetachRequest struct {
	Iface string `json:"iface"`
	VM    string `json:"vm,omitempty"`
}

// DetachResponse names the VMs that were detached and what was restored.
type DetachResponse struct {
	Schema   int      `json:"schema"`
	Iface    string   `json:"iface"`
	VMs      []string `json:"vms"`
	Restored []string `json:"restored"`
	Warnings []string `json:"warnings"` // what was carried out and could not be saved
}

// ReplaceProtocol is what the connection of a ReplaceRequest speaks after HTTP's 101 (docs/handover.md): to the one who asks a parcel
// of what takes time to make ready, from it a ReplaceAnswer, to it the parcel with everything, and from it another ReplaceAnswer.
const ReplaceProtocol = "rscctl-parcel"

// ReplaceRequest asks the controller to hand everything over to the process that asks. Only root may. A controller passes
// over fields that it does not know.
type ReplaceRequest struct {
	Version string `json:"version"`   // of the one who asks
	Parcel  int    `json:"parcel"`    // the newest form of parcels that it reads
	State   string `json:"state_dir"` // its places, which must be the controller's
	BPFFS   string `json:"bpffs"`
	Service bool   `json:"service"`          // a service manager runs it
	NetNS   string `json:"net_ns,omitempty"` // its network namespace as proc(5) names it, which must be the controller's; "" from older versions
}

// ReplaceAnswer is the heir's word: it is ready, frames move, it runs, or it cannot.
type ReplaceAnswer struct {
	Ready   bool   `json:"ready,omitempty"`
	Moving  bool   `json:"moving,omitempty"` // frames move again; only to a controller whose parcel says that it hears it
	Running bool   `json:"running,omitempty"`
	PID     int    `json:"pid,omitempty"`
	MovedNS int64  `json:"moved_ns,omitempty"` // when the workers took up their work again, CLOCK_MONOTONIC; 0 from older versions
	Error   string `json:"error,omitempty"`
}

// Status is the state of the whole controller.
type Status struct {
	Schema     int         `json:"schema"`
	PID        int         `json:"pid"`
	Version    string      `json:"version"`
	StartedAt  time.Time   `json:"started_at"`
	State      string      `json:"state_dir"`
	FlowsPin   string      `json:"flows_pin,omitempty"` // "" when the map is not pinned
	Health     Health      `json:"health"`              // of all of it
	Warnings   []string    `json:"warnings"`
	Interfaces []Interface `json:"interfaces"`
	Waiting    []Waiting   `json:"waiting"`
}

// Waiting is a VM that is known and not attached now. It comes back by itself once the cause is gone, or is given up by detach.
type Waiting struct {
	VM      string    `json:"vm"`
	Iface   string    `json:"iface"`
	MAC     string    `json:"mac"`
	VLAN    int       `json:"vlan,omitempty"`
	Since   time.Time `json:"since"`
	Cause   string    `json:"cause"`
	NextTry time.Time `json:"next_try,omitzero"` // zero: within a second
}

// Interface is one uplink.
type Interface struct {
	Name       string          `json:"name"`
	Index      int             `json:"ifindex"`
	MTU        int             `json:"mtu"`
	Driver     string          `json:"driver"`
	Link       LinkState       `json:"link"`
	XDPMode    XDPMode         `json:"xdp_mode"`
	XSKMode    XSKMode         `json:"xsk_mode"`
	BusyPollNS int64           `json:"busy_poll_ns,omitempty"` // how long the workers poll on after they had something to do; 0: they sleep at once
	Metadata   *bool           `json:"metadata"`               // the XDP descriptor arrives with the frames; null before the first frame
	Health     Health          `json:"health"`                 // its own, whatever its queues and VMs are like
	Queues     []Queue         `json:"queues"`
	Ports      []Port          `json:"ports"`
	Changes    []string        `json:"changes"`
	Warnings   []string        `json:"warnings"`
	Bond       *Bond           `json:"bond,omitempty"`    // missing: the interface is none
	Foreign    *ForeignProgram `json:"foreign,omitempty"` // missing: the XDP program is rscctl's
}

// ForeignProgram is the XDP program of an interface, when it is somebody else's.
type ForeignProgram struct {
	XSKMap     string   `json:"xsk_map"`              // where its map of sockets is pinned
	Queues     []uint16 `json:"queues"`               // whose sockets are in it
	ID         uint32   `json:"program_id,omitempty"` // of the program that is on the interface now, 0: none, or several
	Name       string   `json:"program_name,omitempty"`
	NotOffered []string `json:"not_offered"` // that needs a program of rscctl's
}

// Bond is what is true of an interface that is one.
type Bond struct {
	Mode    string       `json:"mode"` // as the kernel names it
	Members []BondMember `json:"members"`
}

// BondMember is an interface that belongs to a bond.
type BondMember struct {
	Name    string      `json:"name"`
	Index   int         `json:"ifindex"`
	State   MemberState `json:"state"`
	Driver  string      `json:"driver"`
	XDPMode XDPMode     `json:"xdp_mode"`
	Queues  []int       `json:"queues"`        // ids of its queues among the interface's
	Why     string      `json:"why,omitempty"` // why it has none
}

// Queue is one NIC RX queue and its worker.
type Queue struct {
	ID            int         `json:"id"`
	Device        string      `json:"device,omitempty"`       // of a bond: the member that it is a queue of
	DeviceQueue   int         `json:"device_queue,omitempty"` // and its number there
	Worker        WorkerState `json:"worker"`
	Health        Health      `json:"health"`
	RxFrames      uint64      `json:"rx_frames"`
	TxFrames      uint64      `json:"tx_frames"`
	RxFillEmpty   uint64      `json:"rx_fill_empty"`    // frames AF_XDP dropped: fill ring empty
	RxRingFull    uint64      `json:"rx_ring_full"`     // frames AF_XDP dropped: RX ring full
	RxShare       uint64      `json:"rx_share"`         // frames XDP dropped: their VM had its share of the RX ring
	RxTooLong     uint64      `json:"rx_too_long"`      // frames AF_XDP dropped: longer than a chunk, above all
	RxInvalid     uint64      `json:"rx_invalid"`       // bad addresses in the fill ring: a fault of ours
	RxNoBuffer    uint64      `json:"rx_no_buffer"`     // frames that no chunk holds, and for which no buffer was free
	RxBroken      uint64      `json:"rx_broken"`        // such frames that were too long, or not whole
	RxUnknown     uint64      `json:"rx_unknown"`       // of rx_frames: for a VM that had gone meanwhile
	RxNobody      uint64      `json:"rx_nobody"`        // of rx_frames: for no VM, brought by somebody else's XDP program, and dropped
	TxKernel      uint64      `json:"tx_kernel_frames"` // frames of guests that left by the packet socket
	TxRingFull    uint64      `json:"tx_ring_full"`     // egress frames given up: TX ring, chunks or the packet socket exhausted
	TxInvalid     uint64      `json:"tx_invalid"`       // bad descriptors in the TX ring: a fault of ours
	Hangs         uint64      `json:"hangs"`            // times that the worker took nothing while frames waited, and VMs on taps were left to the kernel's path
	HangPassed    uint64      `json:"hang_passed"`      // frames that went by it for that
	GroupLost     uint64      `json:"group_lost"`       // broadcast and multicast frames that came faster than the worker read them
	GroupUnusable uint64      `json:"group_unusable"`   // likewise, too long, with a foreign tag or a checksum that cannot be completed
	HostLost      uint64      `json:"host_lost"`        // frames between the host and VMs that were lost, or that nobody can use
	Chunks        int         `json:"chunks"`
	ChunkSize     int         `json:"chunk_size"`
	CPUs          []int       `json:"cpus,omitempty"` // that the worker is bound to; none: the scheduler chooses
	CPUNS         uint64      `json:"cpu_ns"`         // processor time that the worker's thread has had
	Held          int         `json:"held_chunks"`
	OpenSlots     int         `json:"open_slots"`
}

// Port is one VM.
type Port struct {
	VM          string    `json:"vm"`
	MAC         string    `json:"mac"`
	VLAN        int       `json:"vlan,omitempty"`
	Feed        Feed      `json:"feed"`
	FeedNote    string    `json:"feed_note,omitempty"` // why the feed is not "vhost-net"
	Tx          TxWay     `json:"tx,omitempty"`        // of a vhost-user VM
	Socket      string    `json:"socket"`
	Mode        PortMode  `json:"mode"`
	Tap         string    `json:"tap,omitempty"`
	Proof       string    `json:"proof,omitempty"`    // what shows that the tap is the VM's
	Bypassed    []string  `json:"bypassed,omitempty"` // rules of the kernel path that do not see the VM's frames
	State       PortState `json:"state"`
	StopReason  string    `json:"stop_reason,omitempty"`
	QueuePairs  int       `json:"queue_pairs"`
	QueueSize   int       `json:"queue_size"`
	Features    []string  `json:"features"` // negotiated, by name
	FeatureBits string    `json:"feature_bits"`
	Policy      Policy    `json:"policy"`
	Effective   Profile   `json:"effective_profile"`
	PolicyNote  string    `json:"policy_note,omitempty"`
	UDPMerged   bool      `json:"udp_merged,omitempty"`  // datagrams are merged
	UDPNote     string    `json:"udp_note,omitempty"`    // why they are not, though the policy says so
	HoldNowNS   int64     `json:"hold_now_ns,omitempty"` // the hold that superframes get now, on average; 0 while nothing is held
	AllowSpoof  bool      `json:"allow_spoof,omitempty"`
	MTU         int       `json:"mtu,omitempty"`      // its own; 0: the interface's
	Isolated    bool      `json:"isolated,omitempty"` // from the VMs beside it
	MACs        []string  `json:"macs,omitempty"`     // beside MAC
	IPs         []string  `json:"ips,omitempty"`      // the VM may send from these alone; none: from any
	Health      Health    `json:"health"`
	Warnings    []string  `json:"warnings"`
}

// Flow is one row of the BPF flow map. Addresses are text, times nanoseconds.
type Flow struct {
	Iface        string            `json:"iface"`
	VM           string            `json:"vm"`
	Direction    Direction         `json:"direction"`
	VLAN         int               `json:"vlan,omitempty"`
	Family       int               `json:"family"` // 4 or 6
	Src          string            `json:"src"`
	Dst          string            `json:"dst"`
	SrcPort      uint16            `json:"src_port"`
	DstPort      uint16            `json:"dst_port"`
	Packets      uint64            `json:"packets"`
	Bytes        uint64            `json:"bytes"`
	PayloadBytes uint64            `json:"payload_bytes"`
	TCPFlags     []string          `json:"tcp_flags"`
	Verdicts     map[string]uint64 `json:"verdicts"` // packets by the parser's word for them: "ok", or why they can never merge
	FirstNS      int64             `json:"first_ns"` // CLOCK_MONOTONIC
	LastNS       int64             `json:"last_ns"`
	AgeNS        int64             `json:"age_ns"`          // now - last
	BitsPerSec   float64           `json:"bits_per_second"` // bytes * 8 over the time between first and last packet
}

// Flows is a sorted, limited list. Total counts the rows before the limit; Evicted the flows towards these VMs that gave way to others since
// the VMs were attached, because a VM's flow map was full: what was counted of them is forgotten.
type Flows struct {
	Schema  int      `json:"schema"`
	Total   int      `json:"total"`
	Evicted uint64   `json:"evicted"`
	Flows   []Flow   `json:"flows"`
	Notes   []string `json:"notes,omitempty"` // why VMs that were asked for have none
}

// Bucket is one histogram bucket: Count values of at most Le (the last bucket has Le 0, meaning no bound).
type Bucket struct {
	Le    uint64 `json:"le"`
	Count uint64 `json:"count"`
}

// VMStats are the counters of one VM, summed over the workers.
type VMStats struct {
	VM    string `json:"vm"`
	Iface string `json:"iface"`

	RxShare       uint64            `json:"rx_share"`   // frames that XDP dropped in front of the queues, where the VM had its share of the room: in no other count
	RxPackets     uint64            `json:"rx_packets"` // taken from AF_XDP (or multicast) for this VM
	RxBytes       uint64            `json:"rx_bytes"`
	Superframes   uint64            `json:"superframes"`    // frames of two and more segments
	MergedPackets uint64            `json:"merged_packets"` // packets inside superframes, absorbed window updates included
	GuestFrames   uint64            `json:"guest_frames"`   // frames put into the guest's RX queue
	GuestBytes    uint64            `json:"guest_bytes"`
	Passed        map[string]uint64 `json:"passed"`            // packets that left alone, by reason
	Sealed        map[string]uint64 `json:"sealed"`            // superframes by the reason they left
	Dropped       map[string]uint64 `json:"dropped"`           // packets dropped, by reason
	Held          uint64            `json:"held_packets"`      // in open slots and output queues now
	Unexplained   int64             `json:"unexplained"`       // packets that came in and are nowhere: 0 unless there is a bug
	Recut         uint64            `json:"recut_superframes"` // superframes the guest did not take whole: their packets are in passed
	Interrupts    uint64            `json:"interrupts"`
	TxFrames      uint64            `json:"tx_frames"` // taken from the guest's TX queue
	TxBytes       uint64            `json:"tx_bytes"`
	TxWireFrames  uint64            `json:"tx_wire_frames"`         // after segmentation
	TxKernel      uint64            `json:"tx_kernel_frames"`       // of tx_frames: those that left by the kernel's way
	TxWhole       uint64            `json:"tx_whole_frames"`        // of tx_frames: superframes for a VM beside it that were not cut
	TxDropped     map[string]uint64 `json:"tx_dropped"`             // by reason
	ToHost        uint64            `json:"to_host_frames"`         // of tx_wire_frames: for the host, or what is behind it, alone
	FromHost      uint64            `json:"from_host_frames"`       // of rx_packets: from there, group frames left out
	LocalFrames   uint64            `json:"local_frames"`           // delivered from another VM of this uplink
	LatePackets   uint64            `json:"late_packets"`           // of rx_packets: taken while steering was off or after a hang, so the kernel path may have overtaken them
	FeedUnsent    uint64            `json:"feed_unsent"`            // of guest_frames: posted to vhost-net, not sent when the feed was closed
	StalledNS     uint64            `json:"stalled_ns"`             // that workers slept because of the VM's memory
	Rests         uint64            `json:"rests"`                  // times that the VM had to rest for that
	TxPaced       uint64            `json:"tx_paced"`               // times that what the VM sends had to wait for its rate
	Refusals      uint64            `json:"superframe_refusals"`    // times that the guest was found to drop superframes
	TapDropped    uint64            `json:"tap_dropped"`            // frames of either path that the VM's tap had no room for, since attach
	FrameBytes    []Bucket          `json:"frame_bytes"`            // sizes of TCP frames delivered
	FrameBytesSum uint64            `json:"frame_bytes_sum"`        // of those frames
	HoldNS        []Bucket          `json:"hold_ns"`                // first segment's wait
	HoldNSSum     uint64            `json:"hold_ns_sum"`            // of those waits
	QEMU          map[string]uint64 `json:"qemu"`                   // the same under the names of QEMU's VirtioNetRscStat
	Virtio        map[string]uint64 `json:"virtio"`                 // and of virtio's receive GSO statistics
	Vhost         map[string]uint64 `json:"vhost,omitempty"`        // what its virtqueues counted, of a vhost-user VM
	TapOutcomes   map[string]uint64 `json:"tap_outcomes,omitempty"` // what the VM sent through its tap, by what was done about counting it
}

// Stats lists the VMs, and what AF_XDP and XDP counted beside them.
type Stats struct {
	Schema       int               `json:"schema"`
	VMs          []VMStats         `json:"vms"`
	Queues       map[string]Queue  `json:"queues"`                  // "eth0/0" -> counters
	Outcomes     map[string]uint64 `json:"outcomes"`                // frames by what XDP did with them, all interfaces
	HostOutcomes map[string]uint64 `json:"host_outcomes,omitempty"` // frames between hosts and VMs, by what the TC programs did with them
	Unexplained  int64             `json:"unexplained"`             // sum over the VMs: 0 unless there is a bug
}
