package netdev

import (
	"encoding/binary"
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestChangesAreReportedByKind(t *testing.T) {
	base := Facts{Name: "eth0", Index: 7, MTU: 1500, RxQueues: 2, Up: true, Running: true, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	for name, c := range map[string]struct {
		edit func(f *Facts)
		want []EventKind
	}{
		"nothing":           {func(f *Facts) {}, nil},
		"promiscuous users": {func(f *Facts) { f.Promisc++ }, nil},
		"MTU":               {func(f *Facts) { f.MTU = 9000 }, []EventKind{MTUChanged}},
		"queues":            {func(f *Facts) { f.RxQueues = 1 }, []EventKind{QueuesChanged}},
		"down":              {func(f *Facts) { f.Up, f.Running = false, false }, []EventKind{Down, CarrierOff}},
		"carrier":           {func(f *Facts) { f.Running = false }, []EventKind{CarrierOff}},
		"XDP":               {func(f *Facts) { f.XDP = XDP{Attached: true, Mode: "native", ProgID: 3} }, []EventKind{XDPChanged}},
		"master":            {func(f *Facts) { f.Master = "br0" }, []EventKind{MasterChanged}},
		"name":              {func(f *Facts) { f.Name = "wan" }, []EventKind{Renamed}},
		"address":           {func(f *Facts) { f.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 2} }, []EventKind{MACChanged}},
		"tags":              {func(f *Facts) { f.RxVLAN = true }, []EventKind{OffloadsChanged}},
		"merging":           {func(f *Facts) { f.LRO, f.GROHW = true, true }, []EventKind{OffloadsChanged}},
		"two at once":       {func(f *Facts) { f.MTU, f.RxQueues = 1400, 4 }, []EventKind{MTUChanged, QueuesChanged}},
	} {
		now := base
		c.edit(&now)
		var got []EventKind
		for _, e := range changes(&base, &now) {
			if e.Index != 7 || e.Was != &base || e.Now != &now {
				t.Errorf("%s: %+v", name, e)
			}
			got = append(got, e.Kind)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	now := base
	now.Up, now.Running = false, false
	var up []EventKind
	for _, e := range changes(&now, &base) {
		up = append(up, e.Kind)
	}
	if !slices.Equal(up, []EventKind{Up, CarrierOn}) {
		t.Errorf("up again: %v", up)
	}
}

func TestOnlyATagOf8021QIsATag(t *testing.T) {
	for _, c := range []struct {
		name       string
		aux        unix.TpacketAuxdata
		none       bool
		tci        uint16
		tagged, ok bool
	}{
		{name: "no auxiliary data", none: true, aux: unix.TpacketAuxdata{Status: unix.TP_STATUS_VLAN_VALID, Vlan_tci: 7}, ok: true},
		{name: "untagged", aux: unix.TpacketAuxdata{Vlan_tci: 7}, ok: true},
		{name: "802.1Q", aux: unix.TpacketAuxdata{Status: unix.TP_STATUS_VLAN_VALID | unix.TP_STATUS_VLAN_TPID_VALID, Vlan_tci: 0x6064, Vlan_tpid: 0x8100}, tci: 0x6064, tagged: true, ok: true},
		{name: "priority tag", aux: unix.TpacketAuxdata{Status: unix.TP_STATUS_VLAN_VALID | unix.TP_STATUS_VLAN_TPID_VALID, Vlan_tpid: 0x8100}, tagged: true, ok: true},
		{name: "a kernel that does not say the TPID", aux: unix.TpacketAuxdata{Status: unix.TP_STATUS_VLAN_VALID, Vlan_tci: 7}, tci: 7, tagged: true, ok: true},
		{name: "802.1ad", aux: unix.TpacketAuxdata{Status: unix.TP_STATUS_VLAN_VALID | unix.TP_STATUS_VLAN_TPID_VALID, Vlan_tci: 7, Vlan_tpid: 0x88a8}},
	} {
		r := mcastMsg{aux: c.aux, hasAux: !c.none}
		if tci, tagged, ok := r.tag(); tci != c.tci || tagged != c.tagged || ok != c.ok {
			t.Errorf("%s: %#x, %v, %v", c.name, tci, tagged, ok)
		}
	}
}

func TestControlMessagesOfAnyShapeAreSurvived(t *testing.T) {
	for size := range uint64(80) {
		for _, length := range []uint64{0, 1, 15, 16, 17, 36, 40, 64, 1 << 40, ^uint64(0)} {
			r := &mcastMsg{}
			r.init()
			binary.NativeEndian.PutUint64(r.control[:], length)
			binary.NativeEndian.PutUint32(r.control[8:], unix.SOL_PACKET)
			binary.NativeEndian.PutUint32(r.control[12:], unix.PACKET_AUXDATA)
			r.hdr.Controllen = size
			r.parseControl()
			if want := length <= min(size, 64) && length >= 36 && size >= 16; r.hasAux != want {
				t.Errorf("%d bytes of control, a message of %d: %v", size, length, r.hasAux)
			}
		}
	}
}

func FuzzControlMessages(f *testing.F) {
	f.Add([]byte{36, 0, 0, 0, 0, 0, 0, 0, 7, 1, 0, 0, 8, 0, 0, 0})
	f.Fuzz(func(t *testing.T, control []byte) {
		r := &mcastMsg{}
		r.init()
		n := copy(r.control[:], control)
		r.hdr.Controllen = uint64(n)
		r.parseControl()
		r.tag()
	})
}
