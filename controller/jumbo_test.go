package controller

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/xsk"
)

// An MTU that no chunk holds is served where frames come in several; elsewhere it is refused, in one line that names the largest that works and says
// why, and so is one that no buffer holds.
func TestAnMTUIsServedOrRefusedWithTheLargestThatWorks(t *testing.T) {
	lacks := fmt.Errorf("xsk: frames in several chunks: %w", xsk.ErrUnsupported)
	for _, c := range []struct {
		driver string
		mtu    int
		lacks  error
		want   frameRoom
		most   string
	}{
		{"veth", 1500, lacks, frameRoom{chunk: 2048}, ""},
		{"veth", 3822, lacks, frameRoom{chunk: 4096}, ""},
		{"veth", 3823, lacks, frameRoom{}, "mtu 3822"},
		{"igb", 9000, lacks, frameRoom{}, "mtu 3054"},
		{"veth", 9000, nil, frameRoom{4096, 9216}, ""},
		{"igb", 3055, nil, frameRoom{4096, 5120}, ""},
		{"mlx5_core", 9216, nil, frameRoom{4096, 10240}, ""},
		{"veth", 16302, nil, frameRoom{4096, 16384}, ""},
		{"veth", 16303, nil, frameRoom{}, "mtu 16302"},
		{"veth", 16303, lacks, frameRoom{}, "mtu 3822"},
	} {
		room, err := roomFor(&netdev.Facts{Name: "eth1", Driver: c.driver, MTU: c.mtu}, func() error { return c.lacks })
		if room != c.want || (err != nil) != (c.most != "") {
			t.Errorf("%s, MTU %d, lacks %v: %+v, %v", c.driver, c.mtu, c.lacks, room, err)
			continue
		}
		if err != nil && (!errors.Is(err, ErrMTU) || !strings.Contains(err.Error(), c.most+"'") || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s, MTU %d: %v", c.driver, c.mtu, err)
		}
		if err == nil && (room.maxMTU(c.driver) < c.mtu || room.frame > 0 && room.frame <= room.chunk) {
			t.Errorf("%s, MTU %d: %+v holds %d", c.driver, c.mtu, room, room.maxMTU(c.driver))
		}
	}
}

// A driver that refuses such frames when it is asked is refused in the same words; what else is wrong says what it is.
func TestADriverWithoutMultiBufferIsRefusedByItsMTU(t *testing.T) {
	f := &netdev.Facts{Name: "eth1", Driver: "veth", MTU: 9000}
	u := &uplink{chunk: 4096, rings: ringSizes{Frames: 64, FrameSize: 9216}}
	err := u.lacksJumbo(f, fmt.Errorf("xdp: attach generic: %w", bpf.ErrUnsupported))
	if !errors.Is(err, ErrMTU) || !errors.Is(err, bpf.ErrUnsupported) || !strings.Contains(err.Error(), "3822 is the largest that works here") {
		t.Error(err)
	}
	if err := u.lacksJumbo(f, bpf.ErrForeignXDP); errors.Is(err, ErrMTU) {
		t.Error(err)
	}
	if err := (&uplink{chunk: 4096}).lacksJumbo(f, bpf.ErrUnsupported); errors.Is(err, ErrMTU) {
		t.Error(err)
	}
}

// A bond's member whose frames do not fit what its uplink has open is refused, and says what it wants.
func TestAMembersFramesFitItsBondsRoom(t *testing.T) {
	small, large, jumbo := frameRoom{chunk: 2048}, frameRoom{chunk: 4096}, frameRoom{4096, 9216}
	if got := small.with(jumbo).with(large); got != jumbo {
		t.Errorf("room for all: %+v", got)
	}
	for _, c := range []struct {
		bond, member frameRoom
		says         string
	}{{jumbo, small, ""}, {jumbo, jumbo, ""}, {small, large, "chunks of 4096 bytes"}, {large, jumbo, "buffers of 9216 bytes"}, {small, jumbo, "buffers of 9216 bytes"}} {
		if err := c.bond.takes(c.member, "bond0"); (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v in %+v: %v", c.member, c.bond, err)
		}
	}
}

// XDP counts frames, and a jumbo frame takes several entries: as many as it lets into the rings fit, all of them the longest. So a flood of jumbo
// frames leaves the neighbours their share of the ring, and a worker that hangs the fill ring what keeps the driver going.
func TestSharesOfTheRingsAreThoseOfTheLongestFrames(t *testing.T) {
	if rx, fill := (ringSizes{Rx: 2048, Fill: 1024}).inFrames(2048); rx != 2048 || fill != 1024 {
		t.Errorf("without jumbo frames: %d and %d", rx, fill)
	}
	for mtu := 3823; mtu <= xsk.FrameMTU(xsk.MostFrame); mtu++ {
		room, err := roomFor(&netdev.Facts{MTU: mtu}, func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		r := (Sizes{}).rings(1, room, 0)
		rx, fill := r.inFrames(room.chunk)
		entries := (mtu + 18 + room.chunk - xsk.Headroom - 1) / (room.chunk - xsk.Headroom)
		if rx*entries > r.Rx || fill*entries > r.Fill || rx < 512 || fill < 512 {
			t.Fatalf("MTU %d: %d and %d frames of %d entries in rings of %d and %d", mtu, rx, fill, entries, r.Rx, r.Fill)
		}
	}
}

// A front-end may ask for no larger MTU than its port and the uplink have.
func TestAPortsOwnMTUBoundsItsFrontEnd(t *testing.T) {
	for _, c := range []struct{ own, uplink, want int }{{0, 9000, 9000}, {1500, 9000, 1500}, {1500, 1400, 1400}} {
		if got := (&userKind{mtu: c.own}).mostMTU(c.uplink); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
