package controller

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/unixsock"
)

// sampleV1 is what testdata/parcel-v1.json says.
func sampleV1() packed {
	program := packedProgram{Program: "u1.xdp.7", Link: "u1.xdp.link", Mode: "native", Object: "0123456789abcdef", ReadsTag: true,
		Maps: map[string]string{"ports": "u1.xdp.ports.9"}, Outcomes: map[string]uint64{"redirect": 12}}
	policy := state.Policy{Coalesce: true, IPv4: true, IPv6: true, Profile: "gro", HoldNS: 50000, MaxBytes: 65535, ExcludePorts: []uint16{443}}
	counted := api.VMStats{VM: "web", Iface: "eth0", RxPackets: 100, MergedPackets: 90, Superframes: 9, Passed: map[string]uint64{"pure_ack": 10}, Sealed: map[string]uint64{"max_bytes": 9},
		FrameBytes: []api.Bucket{{Le: 1514, Count: 10}, {Count: 9}}}
	return packed{
		State: "/var/lib/rscctl", Socket: "/run/rscctl/rscctl.sock", BPFFS: "/sys/fs/bpf/rscctl", Lock: "lock.1",
		Control: packedListener{FD: "control.2", ID: unixsock.FileID{Dev: 5, Ino: 77}}, Metrics: "9090", Scrapes: "metrics.3", Flows: "flows.11",
		Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Tags: 3, Process: 2, Store: "/run/systemd/notify", Kept: []string{"lock"},
		Uplinks: []packedUplink{{
			Tag: "u1", Iface: "eth0", Index: 3, RxQueues: 1, ChunkSize: 2048, Rings: ringSizes{Chunks: 8192, Rx: 2048, Tx: 1024, Fill: 2048, Completion: 1024}, Native: true,
			Program: program, Queues: []packedQueue{{Socket: "u1.q0.xsk", Umem: "u1.q0.umem", Owners: "u1.q0.owners", Counted: api.Queue{RxFrames: 100, TxFrames: 50}}},
			Multicast: "u1.group", Generations: map[int]uint32{0: 1, 1: 4}, Changes: []uint64{8}, Warnings: []string{"a warning"},
			VMs: []packedVM{
				{Tag: "v2", VM: state.VM{Name: "web", MAC: "52:54:00:00:00:0a", VhostUser: &state.VhostUser{Socket: "/run/rscctl/web.sock"}, Policy: policy},
					Index: 0, Generation: 0, Counted: counted, Partial: 1,
					User: &packedUser{Port: json.RawMessage(`{"schema":1,"name":"web","socket":"/run/rscctl/web.sock","listener":"listener","file":{"dev":1,"ino":2},"sessions":1,"counters":{}}`),
						Files: map[string]string{"listener": "v2.listener.20"}}},
				{Tag: "v3", VM: state.VM{Name: "old", MAC: "52:54:00:00:00:0b", VLAN: 7, Tap: &state.Tap{Device: "vnet7"}, Policy: policy}, Index: 1, Generation: 3,
					Tap: &packedTap{Tap: "vnet7", Index: 9, Downs: 2, By: "its address", Guest: netdev.Guest{MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0x0b}, Tap: "vnet7", Uplink: 3, VLAN: 7},
						Halt: "no VM has the tap open", Dropped: 4, Bypass: []string{"a rule"}, Sockets: []string{"v3.packet0"}, Program: program}},
			},
		}},
	}
}

// A parcel of form 1 is read by every version that is to come: the file is never changed, and what it says never means anything else. A newer
// form gets a file of its own beside it.
func TestAParcelOfForm1IsRead(t *testing.T) {
	body, err := os.ReadFile("testdata/parcel-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	s, err := readPacked(&parcel.Parcel{Version: 1, From: "v1", State: body})
	if err != nil {
		t.Fatal(err)
	}
	want := sampleV1()
	for i := range s.Uplinks[0].VMs { // white space in raw JSON is nobody's
		if u := s.Uplinks[0].VMs[i].User; u != nil {
			port, err := vhost.ReadPortState(u.Port)
			if err != nil || port.Name != "web" || port.Listener != "listener" || port.ID.Ino != 2 {
				t.Errorf("the port's state: %+v, %v", port, err)
			}
			u.Port = want.Uplinks[0].VMs[i].User.Port
		}
	}
	if !reflect.DeepEqual(s, want) {
		got, _ := json.MarshalIndent(s, "", "  ")
		t.Errorf("read otherwise than it was meant:\n%s", got)
	}
}

// A state that is no JSON, or has a field of another type, is refused and no descriptor is taken.
func TestAStateThatCannotBeReadIsRefused(t *testing.T) {
	for _, body := range []string{"", "{", `{"uplinks":3}`, `[]`, `{"uplinks":[{"generations":{"x":1}}]}`} {
		if _, err := readPacked(&parcel.Parcel{State: json.RawMessage(body)}); !errors.Is(err, parcel.ErrDamaged) {
			t.Errorf("%q: %v", body, err)
		}
	}
}
