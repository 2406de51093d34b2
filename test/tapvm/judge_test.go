package tapvm

import (
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// A tap's hdr_len is a hint: another one than the headers' length is counted, and hides no other fault.
func TestAHintIsNoViolation(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		p := packettest.TCP{V6: v6, Partial: true, Len: 5000, Opts: packettest.Timestamps(1, 2)}
		for _, tags := range [][]uint16{nil, {5}} {
			p.Tags = tags
			frame := p.Frame()
			hdrLen := len(frame) - 5000
			h := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, HdrLen: uint16(hdrLen), GSOSize: 1448,
				CsumStart: uint16(hdrLen - 32), CsumOffset: 16, NumBuffers: 2}
			if v6 {
				h.GSOType = virtio.GSOTCPv6
			}
			for _, tt := range []struct {
				name              string
				spoil             func(h *virtio.NetHdr)
				hints, violations uint64
			}{
				{"right", func(h *virtio.NetHdr) {}, 0, 0},
				{"hint", func(h *virtio.NetHdr) { h.HdrLen = 128 }, 1, 0},
				{"hint and a wrong csum_start", func(h *virtio.NetHdr) { h.HdrLen = 128; h.CsumStart++ }, 1, 1},
			} {
				h := h
				tt.spoil(&h)
				var s Stats
				s.judge(h, frame, AllOffloads.Features())
				if s.HdrLenHints != tt.hints || s.Violations != tt.violations || (s.FirstBad != "") != (tt.violations > 0) {
					t.Errorf("%s: %+v", tt.name, s)
				}
				if s.Segments != 4 || s.DataBytes != 5000 || s.DataFrames != 1 || s.Buffers != 2 || s.Bytes != uint64(len(frame)) {
					t.Errorf("%s: %+v; want one data frame of 4 segments", tt.name, s)
				}
			}
			var s Stats
			s.judge(h, frame, (CSUM | ECN).Features())
			if s.Violations != 1 {
				t.Errorf("superframe for a guest without TSO: %+v", s)
			}
		}
	}
}

// What a guest has just switched off may still be under way, and not for ever.
func TestSwitchedOffloadsHoldOnceTheTapWasEmpty(t *testing.T) {
	vm := &VM{features: AllOffloads.Features() | CSUM.Features(), want: CSUM.Features(), switched: time.Now().Add(time.Hour)}
	vm.drained()
	if vm.features == vm.want {
		t.Error("at once: a frame under way would be called a violation")
	}
	vm.switched = time.Now().Add(-time.Hour)
	vm.drained()
	if vm.features != vm.want {
		t.Error("never")
	}
}
