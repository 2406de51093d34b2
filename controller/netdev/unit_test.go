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

func TestEveryEventHasAName(t *testing.T) {
	seen := map[string]bool{}
	for k := Gone; k <= MACChanged; k++ {
		if s := k.String(); s == "" || s == "unknown" || seen[s] {
			t.Errorf("kind %d is %q", k, s)
		} else {
			seen[s] = true
		}
	}
	if s := (MACChanged + 1).String(); s != "unknown" {
		t.Errorf("beyond the last: %q", s)
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

func TestPartialChecksumsAreCompletedInBounds(t *testing.T) {
	for _, c := range []struct {
		name          string
		size          int
		start, offset int
		ok            bool
	}{
		{"even", 60, 34, 6, true}, {"odd", 61, 34, 6, true}, {"the last two bytes", 60, 58, 0, true},
		{"one byte short", 60, 58, 1, false}, {"start beyond the end", 60, 61, 0, false}, {"far beyond", 60, 65535, 65535, false},
		{"empty", 0, 0, 0, false},
	} {
		frame := make([]byte, c.size)
		for i := range frame {
			frame[i] = byte(i * 7)
		}
		if got := complete(frame, c.start, c.offset); got != c.ok {
			t.Errorf("%s: %v", c.name, got)
		}
		// As the receiver sees it: with the field in it, all 16-bit words add up to what the field held at first, the
		// pseudo-header's sum taken out (here: the field's first value and its complement).
		if c.ok {
			first := uint16(byte((c.start+c.offset)*7))<<8 | uint16(byte((c.start+c.offset+1)*7))
			if sum := onesSum(frame[c.start:], first); sum != 0xffff {
				t.Errorf("%s: the words add up to %#x", c.name, sum)
			}
		}
	}
}

// onesSum adds 16-bit words one at a time, the end-around carry at once: another way than the one under test.
func onesSum(b []byte, sum uint16) uint16 {
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s := uint32(sum) + w
		sum = uint16(s + s>>16)
	}
	return sum
}

func TestAUDPChecksumOfZeroIsSentAsItsOtherZero(t *testing.T) {
	frame := make([]byte, 8)
	binary.BigEndian.PutUint16(frame[6:], 0xffff) // the sum is 0xffff, its complement 0
	if !complete(frame, 0, 6) || binary.BigEndian.Uint16(frame[6:]) != 0xffff {
		t.Errorf("%x", frame)
	}
}

func FuzzPartialChecksum(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, uint16(0), uint16(6))
	f.Add([]byte{}, uint16(65535), uint16(65535))
	f.Fuzz(func(t *testing.T, frame []byte, start, offset uint16) {
		n := len(frame)
		ok := complete(frame, int(start), int(offset))
		if ok != (int(start)+int(offset)+2 <= n) {
			t.Errorf("%d bytes, start %d, offset %d: %v", n, start, offset, ok)
		}
	})
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
