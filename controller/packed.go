package controller

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/vhost/unixsock"
)

// What a parcel's state says. Names of descriptors are the parcel's own. docs/handover.md explains it field by field; a field is never
// given another meaning, and a reader takes a missing one for its zero.

// packed is a controller on its way from one process to the next.
type packed struct {
	State   string         `json:"state_dir"` // the places, which do not change on the way
	Socket  string         `json:"socket"`
	BPFFS   string         `json:"bpffs"`
	Lock    string         `json:"lock"` // descriptor
	Control packedListener `json:"control"`
	Metrics string         `json:"metrics_address,omitempty"` // as it was asked for
	Scrapes string         `json:"metrics,omitempty"`         // descriptor of the socket that listens there
	Flows   string         `json:"flows,omitempty"`           // descriptor of flow maps that are not pinned
	Pins    string         `json:"pins,omitempty"`            // descriptor of the folder of the pins, which is locked by it
	Started time.Time      `json:"started_at"`
	// Watchdog is how often the service manager wants to hear of the service: it tells only the process that it started.
	Watchdog time.Duration  `json:"watchdog_ns,omitempty"`
	Tags     int            `json:"tags"`            // given so far
	Process  int            `json:"process"`         // counts those that went on with one another
	Store    string         `json:"store,omitempty"` // where descriptors outlive the process, and their names there
	Kept     []string       `json:"kept,omitempty"`
	Hears    bool           `json:"hears_moving,omitempty"` // wants to be told when frames move again, before the heir's last word
	Uplinks  []packedUplink `json:"uplinks"`
}

// packedListener is a listening Unix socket. ID tells its file from one that somebody else has put in its place.
type packedListener struct {
	FD string          `json:"fd"`
	ID unixsock.FileID `json:"file"`
}

// packedProgram is a BPF program on its interface.
type packedProgram struct {
	Program  string            `json:"program"`           // descriptor
	Link     string            `json:"link,omitempty"`    // descriptor, "" where it is not attached, or by a filter
	LinkID   uint32            `json:"link_id,omitempty"` // the kernel's number: a link of the same place may be another one
	Mode     string            `json:"mode,omitempty"`
	Object   string            `json:"object"` // tells versions of the program apart
	ReadsTag bool              `json:"reads_tag,omitempty"`
	Maps     map[string]string `json:"maps"` // descriptors by the maps' names
	Outcomes map[string]uint64 `json:"outcomes"`
}

// packedUplink is an interface in use.
type packedUplink struct {
	Tag         string         `json:"tag"` // of its descriptors, as long as it is in use
	Iface       string         `json:"iface"`
	Index       int            `json:"ifindex"`
	RxQueues    int            `json:"rx_queues"`
	ChunkSize   int            `json:"chunk_size"` // bytes
	Rings       ringSizes      `json:"rings"`
	Native      bool           `json:"native"` // XDP is the driver's
	Program     packedProgram  `json:"program"`
	Queues      []packedQueue  `json:"queues"`      // by id
	Multicast   string         `json:"multicast"`   // descriptor
	Generations map[int]uint32 `json:"generations"` // how many VMs have had an index
	Changes     []uint64       `json:"changes"`     // what was changed on the host, by its ids in the undo list
	Warnings    []string       `json:"warnings,omitempty"`
	VMs         []packedVM     `json:"vms"`
	// Devices are the members of a bond, by whose queues its frames come in; Program is the first one's, and Queues say whose they are.
	Devices []packedDevice `json:"devices,omitempty"`
	// Host is what makes the host a neighbour of VMs, nil: it is none.
	Host *packedHost `json:"host,omitempty"`
	// Foreign is what there is of somebody else's program; Program is empty then, and Queues are those that it has, in their order.
	Foreign *packedForeign `json:"foreign,omitempty"`
}

// packedForeign is an XDP program of somebody else's, of which we have a map.
type packedForeign struct {
	Path   string   `json:"xsk_map"`
	Map    string   `json:"map"` // descriptor
	Queues []uint16 `json:"queues"`
}

// served is how many queues an interface that is no bond has in use.
func (s *packedUplink) served() int {
	if s.Foreign != nil {
		return len(s.Foreign.Queues)
	}
	return s.RxQueues
}

// packedDevice is a member of a bond.
type packedDevice struct {
	Index    int           `json:"ifindex"`
	RxQueues int           `json:"rx_queues"`
	Native   bool          `json:"native"`
	Program  packedProgram `json:"program,omitzero"` // missing for the first one
}

// devices are those by whose queues an uplink's frames come in: the members of a bond, otherwise the interface itself.
func (s *packedUplink) devices() []packedDevice {
	if len(s.Devices) == 0 {
		return []packedDevice{{s.Index, s.RxQueues, s.Native, s.Program}}
	}
	out := slices.Clone(s.Devices)
	out[0].Program = s.Program
	return out
}

// place is where the i-th queue is: its device, nil when that is none of the uplink's, and its numbers among the uplink's and there.
func (s *packedUplink) place(i int) (d *packedDevice, id, nic int) {
	devices, q := s.devices(), &s.Queues[i]
	switch {
	case s.Foreign != nil:
		nic = int(s.Foreign.Queues[i])
		return &devices[0], nic, nic
	case len(s.Devices) == 0:
		return &devices[0], i, i
	}
	for n := range devices {
		if devices[n].Index == q.Device {
			d = &devices[n]
		}
	}
	return d, q.ID, q.NIC
}

// ringSizes are those of each queue, Chunks in chunks of the UMEM, the others in entries.
type ringSizes struct {
	Chunks     int `json:"chunks"`
	Rx         int `json:"rx"`
	Tx         int `json:"tx"`
	Fill       int `json:"fill"`
	Completion int `json:"completion"`
	// Buffers for frames that no chunk holds, and their bytes. Missing: there are none, and such frames do not come.
	Frames    int `json:"frames,omitempty"`
	FrameSize int `json:"frame_size,omitempty"`
}

// packedQueue is one NIC queue: its AF_XDP socket.
type packedQueue struct {
	Socket  string    `json:"socket,omitempty"` // descriptors; "" where the kernel does not let another process have them
	Umem    string    `json:"umem,omitempty"`
	Owners  string    `json:"owners,omitempty"`
	Wire    string    `json:"wire,omitempty"` // descriptor of the packet socket that TSO frames leave by; "" before there was one
	Counted api.Queue `json:"counted"`
	// Of a bond: the number of its worker, the ifindex of the member, and the queue's number there.
	ID     int `json:"id,omitempty"`
	Device int `json:"device,omitempty"`
	NIC    int `json:"nic,omitempty"`
}

// packedVM is one VM. Exactly one of User and Tap is set.
type packedVM struct {
	Tag        string      `json:"tag"` // of its descriptors, as long as it is attached
	VM         state.VM    `json:"vm"`
	Index      uint32      `json:"index"`
	Generation uint32      `json:"generation"`
	Counted    api.VMStats `json:"counted"`
	Partial    uint64      `json:"partial_warned"`
	User       *packedUser `json:"vhost_user,omitempty"`
	Tap        *packedTap  `json:"tap,omitempty"`
	held       []string    // while it is unpacked: what the store may have of the port
}

// packedUser is a vhost-user port: its own state, and its descriptors by the names that the state gives them. Both are empty in what is
// kept for a crash, where the port keeps them by itself.
type packedUser struct {
	Port  json.RawMessage   `json:"port,omitempty"`
	Files map[string]string `json:"files,omitempty"`
}

// packedTap is a VM on its own tap, as it was proved.
type packedTap struct {
	Tap     string        `json:"tap"`
	Index   int           `json:"ifindex"`
	Downs   uint32        `json:"carrier_losses"`
	By      string        `json:"proof"`
	Guest   netdev.Guest  `json:"guest"`
	Halt    string        `json:"halt,omitempty"`
	Dropped uint64        `json:"dropped_before"`
	Bypass  []string      `json:"bypassed,omitempty"`
	Sockets []string      `json:"sockets"` // packet sockets, by queue
	Program packedProgram `json:"program"`
}
