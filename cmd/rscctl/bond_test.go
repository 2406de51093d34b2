package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
)

// status shows a bond's mode and members, and of each queue whose it is.
func TestStatusShowsTheMembersOfABond(t *testing.T) {
	st := sampleStatus()
	st.Interfaces[0].Name = "bond0"
	st.Interfaces[0].Bond = &api.Bond{Mode: "active-backup", Members: []api.BondMember{
		{Name: "ens1", State: api.MemberActive, Driver: "ice", XDPMode: api.XDPNative, Queues: []int{0, 1}},
		{Name: "ens2", State: api.MemberBackup, Queues: []int{}, Why: "somebody's program"},
	}}
	st.Interfaces[0].Queues[1].Device, st.Interfaces[0].Queues[1].DeviceQueue = "ens1", 3
	var out bytes.Buffer
	if err := (statusView{st: &st, now: st.StartedAt}).print(&out); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{"BOND MODE MEMBER STATE DRIVER XDP QUEUES", "bond0 active-backup ens1 active ice native 2", "bond0 active-backup ens2 backup - - 0", "bond0/1 (ens1/3)"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
