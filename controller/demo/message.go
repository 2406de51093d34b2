package demo

import (
	"encoding/json"
	"time"

	"github.com/rscctl/rscctl/vhost/stackguest"
)

// The parent talks to its children by lines of JSON: a request on the child's standard input, one reply on its standard
// output, strictly in turn. The end of the standard input ends the child.

// request is what the parent asks. Op chooses which of the fields count.
type request struct {
	Op string `json:"op"`

	IPv6 bool `json:"ipv6,omitempty"`

	// network: what the role needs to build its side
	PeerPID   int    `json:"peer_pid,omitempty"`  // sender, controller: the process at the other end of the wire
	Socket    string `json:"socket,omitempty"`    // guest: vhost-user; controller: control
	State     string `json:"state,omitempty"`     // controller
	NAPI      bool   `json:"napi,omitempty"`      // guest: let its stack merge (GRO)
	BufferLen int    `json:"buffer,omitempty"`    // guest: bytes of a receive buffer
	Features  uint64 `json:"features,omitempty"`  // guest: 0 for all it can use
	SysFolder string `json:"sysfolder,omitempty"` // guest, sender: empty folder to mount its own sysfs at
	NIC       string `json:"nic,omitempty"`       // sender: its end of the wire, "": it makes one
	Loan      *loan  `json:"loan,omitempty"`      // controller: the wire, nil: the sender makes one

	// run, of the controller
	BusyPoll time.Duration `json:"busy_poll,omitempty"`
	Tracked  int           `json:"tracked,omitempty"` // flows of a VM, 0: its default

	// quota, of the controller
	GuestPID   int     `json:"guest_pid,omitempty"`
	Processors float64 `json:"processors,omitempty"` // 0: as many as it can get

	Arg json.RawMessage `json:"arg,omitempty"` // of an operation of Extra

	// transfer
	Sum     string `json:"sum,omitempty"`   // checksum of the stream: sumCRC or sumSHA
	Flows   int    `json:"flows,omitempty"` // connections at once
	Pace    int    `json:"pace,omitempty"`  // bytes a second of each connection, 0: no bound
	Bytes   int64  `json:"bytes,omitempty"` // per connection, 0: until "finish"
	Address string `json:"address,omitempty"`
	Seed    uint64 `json:"seed,omitempty"`
}

// reply is what a child answers. Error is one line, empty on success.
type reply struct {
	Error   string        `json:"error,omitempty"`
	PID     int           `json:"pid,omitempty"`
	Address string        `json:"address,omitempty"`
	Streams []stream      `json:"streams,omitempty"`
	Snap    *snapshot     `json:"snap,omitempty"`
	Names   []string      `json:"names,omitempty"`
	Elapsed time.Duration `json:"elapsed,omitempty"`

	Result json.RawMessage `json:"result,omitempty"` // of an operation of Extra
}

// stream is one finished connection as one of its ends saw it. Port is the connecting side's port: it pairs the two.
type stream struct {
	Port  int    `json:"port"`
	Bytes int64  `json:"bytes"`
	Sum   string `json:"sum"`
}

// snapshot is a child's counters at one moment. Differences of two are what a round measured.
type snapshot struct {
	At         time.Time        `json:"-"`                    // the parent's clock at the reply, for /proc/stat
	Clock      time.Duration    `json:"clock"`                // the child's monotonic clock
	CPU        time.Duration    `json:"cpu"`                  // user and system time of the whole child
	Sleeps     uint64           `json:"sleeps"`               // controller: times that its threads went to sleep, each followed by a wake-up
	Received   int64            `json:"received"`             // application bytes read
	Retrans    uint64           `json:"retrans"`              // of the connections it sends on (TCP_INFO)
	Congestion string           `json:"congestion,omitempty"` // likewise: their congestion control
	NIC        nicCounters      `json:"nic"`
	Packets    uint64           `json:"packets"` // IP packets its stack received (after its GRO)
	Guest      stackguest.Stats `json:"guest"`
}

// nicCounters are the interface's own, as `ip -s link` shows them.
type nicCounters struct {
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	RxDropped uint64 `json:"rx_dropped"`
}
