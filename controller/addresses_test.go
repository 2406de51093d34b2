package controller

import (
	"slices"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
)

// After a fail-over a VM is found at each of its addresses: those of VRRP or of a macvlan in the guest send nothing for hours.
func TestAVMsFurtherAddressesAreAnnouncedToo(t *testing.T) {
	u := &uplink{vms: map[string]*attachment{
		"db":  {addr: datapath.Addr{MAC: [6]byte{0x52, 0x54, 0, 0, 0, 9}}},
		"web": {addr: datapath.Addr{VLAN: 7, MAC: [6]byte{0x52, 0x54, 0, 0, 0, 1}}, kept: api.Addresses{MACs: []string{"52:54:00:00:00:02", "00:00:5e:00:01:03"}}},
	}}
	want := []netdev.Station{
		{MAC: [6]byte{0x52, 0x54, 0, 0, 0, 9}},
		{VLAN: 7, MAC: [6]byte{0x52, 0x54, 0, 0, 0, 1}}, {VLAN: 7, MAC: [6]byte{0, 0, 0x5e, 0, 1, 3}}, {VLAN: 7, MAC: [6]byte{0x52, 0x54, 0, 0, 0, 2}},
	}
	if who := u.stations(); !slices.Equal(who, want) {
		t.Errorf("announced %x, want %x", who, want)
	}
}
