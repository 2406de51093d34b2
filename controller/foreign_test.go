package controller

import (
	"errors"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
)

// A request for somebody else's map has one form, whatever the order in which queues are named, and contradicts itself in no way.
func TestAForeignMapsRequestHasOneForm(t *testing.T) {
	req := api.AttachRequest{VhostUser: "/run/a.sock", XSKMap: "/sys/fs/bpf/x/../xsks", Queues: []uint16{3, 0, 1}}
	if err := checkForeign(&req); err != nil || req.XSKMap != "/sys/fs/bpf/xsks" || api.QueuesText(req.Queues) != "0,1,3" || req.Queues[0] != 0 {
		t.Errorf("%v: %+v", err, req)
	}
	for says, req := range map[string]api.AttachRequest{
		"named twice":  {VhostUser: "/a", XSKMap: "/m", Queues: []uint16{1, 0, 1}},
		"--queue 0":    {VhostUser: "/a", XSKMap: "/m"},
		"--xsk-map":    {VhostUser: "/a", Queues: []uint16{0}},
		"from /":       {VhostUser: "/a", XSKMap: "m", Queues: []uint16{0}},
		"--vhost-user": {Tap: "tap0", XSKMap: "/m", Queues: []uint16{0}},
		"visible":      {VhostUser: "/a", XSKMap: "/m\n", Queues: []uint16{0}},
	} {
		if err := checkForeign(&req); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v", req, err)
		}
	}
}

// A bond's members have sockets of their own each: one map cannot have them.
func TestABondHasNoForeignMap(t *testing.T) {
	err := inspectForeign(&netdev.Facts{Name: "bond0", RxQueues: 1}, &netdev.Bond{}, &api.AttachRequest{XSKMap: "/m", Queues: []uint16{0}})
	if !errors.Is(err, errBondMap) {
		t.Error(err)
	}
}

// A second VM of an interface is told what to say for the way of the first one's frames.
func TestVMsOfAnInterfaceAgreeOnItsProgram(t *testing.T) {
	own, theirs := &uplink{name: "eth1"}, &uplink{name: "eth1", foreign: &foreign{path: "/sys/fs/bpf/my xsks", queues: []uint16{0, 2}}}
	same := api.AttachRequest{XSKMap: "/sys/fs/bpf/my xsks", Queues: []uint16{0, 2}}
	for _, c := range []struct {
		u    *uplink
		req  api.AttachRequest
		says string
	}{
		{own, api.AttachRequest{}, ""}, {theirs, same, ""},
		{own, same, "leave --xsk-map and --queue out, or 'rscctl detach eth1' first"},
		{theirs, api.AttachRequest{}, "attach with '--xsk-map '/sys/fs/bpf/my xsks' --queue 0,2', or 'rscctl detach eth1' first"},
		{theirs, api.AttachRequest{XSKMap: same.XSKMap, Queues: []uint16{0}}, "--queue 0,2"},
		{theirs, api.AttachRequest{XSKMap: "/m", Queues: same.Queues}, "--xsk-map '/sys/fs/bpf/my xsks'"},
	} {
		err := c.u.agrees(&c.req)
		if (c.says == "") != (err == nil) || err != nil && (!errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%+v: %v", c.req, err)
		}
	}
}

// A queue of somebody else's map is at its own number, in the parcel as on the interface.
func TestAParcelHasForeignQueuesAtTheirNumbers(t *testing.T) {
	s := packedUplink{Index: 7, RxQueues: 4, Foreign: &packedForeign{Queues: []uint16{1, 3}}, Queues: make([]packedQueue, 2)}
	for i, want := range []int{1, 3} {
		if d, id, nic := s.place(i); d.Index != 7 || id != want || nic != want {
			t.Errorf("%d: %+v, %d, %d", i, d, id, nic)
		}
	}
	if s.served() != 2 || (&packedUplink{RxQueues: 4}).served() != 4 {
		t.Errorf("%d queues are served", s.served())
	}
}
