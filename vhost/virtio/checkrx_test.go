package virtio

import (
	"encoding/binary"
	"errors"
	"testing"
)

const (
	ack = 0x10
	psh = 0x08

	fullSet = Features(1<<FVersion1 | 1<<FMrgRxbuf | 1<<FGuestCsum | 1<<FGuestTSO4 | 1<<FGuestTSO6 | 1<<FGuestECN)
	rscSet  = fullSet | 1<<FRSCExt
	usoSet  = fullSet | 1<<FGuestUSO4 | 1<<FGuestUSO6
)

var (
	v4super    = testFrame{flags: ack, payload: 3000}
	datagrams4 = testFrame{udp: true, payload: 3000}
	datagrams6 = testFrame{udp: true, v6: true, payload: 3000}
	v6super    = testFrame{v6: true, flags: ack | psh, options: 12, payload: 3000}
)

// Each row breaks one rule; the row without an error beside it shows that nothing else was wrong.
func TestCheckRxNamesTheBrokenRule(t *testing.T) {
	edit := func(h NetHdr, f func(*NetHdr)) NetHdr { f(&h); return h }
	bytesAt := func(b []byte, at int, v ...byte) []byte { copy(b[at:], v); return b }
	plain := NetHdr{NumBuffers: 1}
	rsc := func(s testFrame, segments uint16) NetHdr {
		return edit(s.super(1000), func(h *NetHdr) { h.Flags |= HdrRSCInfo; h.CsumStart, h.CsumOffset = segments, 0 })
	}
	single := testFrame{flags: ack, payload: 100}
	whole := testFrame{flags: ack, payload: 101, whole: true}
	udp := testFrame{udp: true, payload: 33, whole: true}
	cwr := testFrame{flags: ack | tcpCWR, payload: 3000}
	ecn := func(h NetHdr) NetHdr { h.GSOType |= GSOECN; return h }
	partial := NetHdr{Flags: HdrNeedsCsum, CsumStart: 34, CsumOffset: 16, NumBuffers: 1}
	valid := NetHdr{Flags: HdrDataValid, NumBuffers: 1}
	tests := []struct {
		name  string
		h     NetHdr
		frame []byte
		f     Features
		want  error
	}{
		{"guard: anything may pass plain", plain, make([]byte, 14), 0, nil},
		{"frame without Ethernet", plain, make([]byte, 13), fullSet, ErrFrameShort},
		{"unknown flag", edit(plain, func(h *NetHdr) { h.Flags = 8 }), whole.build(), fullSet, ErrFlags},

		{"guard V1: flags with GUEST_CSUM", valid, whole.build(), 1<<FVersion1 | 1<<FGuestCsum, nil},
		{"V1: DATA_VALID without GUEST_CSUM", valid, whole.build(), 1 << FVersion1, ErrFlagsNoCsum},
		{"V1: NEEDS_CSUM without GUEST_CSUM", partial, single.build(), 1 << FVersion1, ErrFlagsNoCsum},

		{"guard V2: IPv4", v4super.super(1448), v4super.build(), fullSet, nil},
		{"guard V2: IPv6 with options", v6super.super(1448), v6super.build(), fullSet, nil},
		{"V2: TSO4 off", v4super.super(1448), v4super.build(), fullSet &^ (1 << FGuestTSO4), ErrGSOType},
		{"V2: TSO6 off", v6super.super(1448), v6super.build(), fullSet &^ (1 << FGuestTSO6), ErrGSOType},
		{"V2: UDP type", edit(v4super.super(1448), func(h *NetHdr) { h.GSOType = GSOUDPL4 }), v4super.build(), fullSet, ErrGSOType},
		{"guard V2: datagrams over IPv4", datagrams4.super(1200), datagrams4.build(), usoSet, nil},
		{"guard V2: datagrams over IPv6", datagrams6.super(1200), datagrams6.build(), usoSet, nil},
		{"guard V4: no RSC_INFO on datagrams", datagrams4.super(1200), datagrams4.build(), usoSet | rscSet, nil},
		{"V2: USO4 off", datagrams4.super(1200), datagrams4.build(), usoSet &^ (1 << FGuestUSO4), ErrGSOType},
		{"V2: USO6 off", datagrams6.super(1200), datagrams6.build(), usoSet &^ (1 << FGuestUSO6), ErrGSOType},
		{"V2: UDP type on TCP", edit(v4super.super(1448), func(h *NetHdr) { h.GSOType = GSOUDPL4 }), v4super.build(), usoSet, ErrNotUDP},
		{"V2: TCP type on UDP", edit(datagrams4.super(1200), func(h *NetHdr) { h.GSOType = GSOTCPv4 }), datagrams4.build(), usoSet, ErrNotTCP},
		{"V3: more than 64 datagrams", datagrams4.super(46), datagrams4.build(), usoSet, ErrGSOSize},
		{"guard V3: 64 datagrams", datagrams4.super(47), datagrams4.build(), usoSet, nil},
		{"V5: RSC_INFO on datagrams", edit(datagrams4.super(1200), func(h *NetHdr) { h.Flags |= HdrRSCInfo }), datagrams4.build(), usoSet | rscSet, ErrRSCUnexpected},
		{"V6: datagrams' csum_offset", edit(datagrams4.super(1200), func(h *NetHdr) { h.CsumOffset = 16 }), datagrams4.build(), usoSet, ErrCsumPlace},
		{"V6: whole checksum of datagrams", datagrams4.super(1200), testFrame{udp: true, payload: 3000, whole: true}.build(), usoSet, ErrCsumPartial},
		{"datagrams: UDP length", datagrams4.super(1200), bytesAt(datagrams4.build(), 38, 0, 9), usoSet, ErrIPLength},
		{"V8: ECN on datagrams", ecn(datagrams4.super(1200)), datagrams4.build(), usoSet, ErrECN},
		{"V2: type of the other IP version", edit(v4super.super(1448), func(h *NetHdr) { h.GSOType = GSOTCPv6 }), v4super.build(), fullSet, ErrNotTCP},

		{"V3: no NEEDS_CSUM", edit(v4super.super(1448), func(h *NetHdr) { h.Flags = 0 }), v4super.build(), fullSet, ErrGSONoCsum},
		{"V3: no gso_size", v4super.super(0), v4super.build(), fullSet, ErrGSOSize},
		{"V3: gso_size 65535", v4super.super(65535), v4super.build(), fullSet, ErrGSOSize},
		{"V3: gso_size equal to the payload", v4super.super(3000), v4super.build(), fullSet, ErrGSOSize},
		{"guard V3: gso_size one less", v4super.super(2999), v4super.build(), fullSet, nil},

		{"guard V4: segments", rsc(v4super, 3), v4super.build(), rscSet, nil},
		{"guard V4: uneven segments", rsc(v4super, 7), v4super.build(), rscSet, nil},
		{"V4: RSC_INFO missing", v4super.super(1000), v4super.build(), rscSet, ErrRSCMissing},
		{"V4: too few segments", rsc(v4super, 2), v4super.build(), rscSet, ErrRSCCount},
		{"V4: more segments than bytes", rsc(v4super, 3001), v4super.build(), rscSet, ErrRSCCount},
		{"V5: RSC_INFO without RSC_EXT", rsc(v4super, 3), v4super.build(), fullSet, ErrRSCUnexpected},
		{"V5: RSC_INFO on a single packet", edit(partial, func(h *NetHdr) { h.Flags |= HdrRSCInfo }), single.build(), rscSet, ErrRSCUnexpected},

		{"guard V6: single packet", partial, single.build(), fullSet, nil},
		{"V6: csum_start", edit(v4super.super(1448), func(h *NetHdr) { h.CsumStart-- }), v4super.build(), fullSet, ErrCsumPlace},
		{"V6: csum_offset", edit(v4super.super(1448), func(h *NetHdr) { h.CsumOffset = 6 }), v4super.build(), fullSet, ErrCsumPlace},
		{"V6: csum_start of a single packet", edit(partial, func(h *NetHdr) { h.CsumStart = 14 }), single.build(), fullSet, ErrCsumPlace},
		{"V6: not TCP or UDP", partial, bytesAt(make([]byte, 60), 12, 8, 6), fullSet, ErrCsumPlace},
		{"V6: full checksum in the field", v4super.super(1448), testFrame{flags: ack, payload: 3000, whole: true}.build(), fullSet, ErrCsumPartial},
		{"V6: full checksum in the field with RSC_INFO", rsc(v4super, 3), testFrame{flags: ack, payload: 3000, whole: true}.build(), rscSet, ErrCsumPartial},
		{"V6: full checksum in a single packet", partial, whole.build(), fullSet, ErrCsumPartial},
		{"V6: padding behind a partial checksum", partial, testFrame{flags: ack, payload: 1, pad: 5}.build(), fullSet, ErrIPLength},

		{"guard V7: UDP", valid, udp.build(), fullSet, nil},
		{"guard V7: padding", valid, testFrame{flags: ack, whole: true, pad: 6}.build(), fullSet, nil},
		{"V7: wrong checksum", valid, single.build(), fullSet, ErrDataValid},
		{"V7: wrong payload", valid, bytesAt(whole.build(), 34+20, 0xee), fullSet, ErrDataValid},
		{"V7: wrong IPv4 checksum", valid, bytesAt(whole.build(), 14+8, 63), fullSet, ErrDataValid},
		{"V7: UDP without checksum", valid, bytesAt(udp.build(), 34+6, 0, 0), fullSet, ErrDataValid},
		{"V7: ARP", valid, bytesAt(make([]byte, 60), 12, 8, 6), fullSet, ErrDataValid},

		{"guard V8: CWR", ecn(cwr.super(1448)), cwr.build(), fullSet, nil},
		{"V8: CWR without the ECN bit", cwr.super(1448), cwr.build(), fullSet, ErrECN},
		{"V8: ECN bit without CWR", ecn(v4super.super(1448)), v4super.build(), fullSet, ErrECN},
		{"V8: GUEST_ECN off", ecn(cwr.super(1448)), cwr.build(), fullSet &^ (1 << FGuestECN), ErrECN},
		{"V8: ECN bit without a type", ecn(plain), single.build(), fullSet, ErrECN},

		{"guard: VLAN tag", testFrame{tag: true, flags: ack, payload: 3000}.super(1448), testFrame{tag: true, flags: ack, payload: 3000}.build(), fullSet, nil},
		{"hdr_len one off", edit(v4super.super(1448), func(h *NetHdr) { h.HdrLen++ }), v4super.build(), fullSet, ErrHdrLen},
		{"hdr_len without TCP options", edit(v6super.super(1448), func(h *NetHdr) { h.HdrLen -= 12 }), v6super.build(), fullSet, ErrHdrLen},
		{"IP length below the frame", v4super.super(1448), testFrame{flags: ack, payload: 3000, pad: 4}.build(), fullSet, ErrIPLength},
		{"IP length beyond the frame", v4super.super(1448), v4super.build()[:3000], fullSet, ErrIPLength},
		{"IPv6 length beyond the frame", v6super.super(1448), v6super.build()[:3000], fullSet, ErrIPLength},
		{"IPv4 checksum", v4super.super(1448), bytesAt(v4super.build(), 14+8, 63), fullSet, ErrIPChecksum},
		{"data offset below 5", v4super.super(1448), bytesAt(v4super.build(), 34+12, 0x40), fullSet, ErrFrameShort},
		{"SYN in a superframe", v4super.super(1448), testFrame{flags: ack | tcpSYN, payload: 3000}.build(), fullSet, ErrTCPFlags},
		{"FIN is allowed", v4super.super(1448), testFrame{flags: ack | 1, payload: 3000}.build(), fullSet, nil},
		{"num_buffers 0", edit(plain, func(h *NetHdr) { h.NumBuffers = 0 }), whole.build(), fullSet, ErrNumBuffers},
		{"num_buffers 2 without MRG_RXBUF", edit(plain, func(h *NetHdr) { h.NumBuffers = 2 }), whole.build(), 1 << FVersion1, ErrNumBuffers},
		{"num_buffers is absent from the legacy header", NetHdr{}, whole.build(), 0, nil},
		{"gso_size without a type", edit(plain, func(h *NetHdr) { h.GSOSize = 1448 }), whole.build(), fullSet, ErrUnused},
		{"csum_start without NEEDS_CSUM", edit(plain, func(h *NetHdr) { h.CsumStart = 34 }), whole.build(), fullSet, ErrUnused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := CheckRx(&tt.h, tt.frame, tt.f); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestCheckRxTakesTheLargestFrames(t *testing.T) {
	for _, s := range []testFrame{{flags: ack, payload: 65535 - 40}, {v6: true, flags: ack, payload: 65535 - 20}} {
		h := s.super(1448)
		if err := CheckRx(&h, s.build(), fullSet); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestCheckRxDoesNotAllocate(t *testing.T) {
	h, frame := v4super.super(1448), v4super.build()
	if n := testing.AllocsPerRun(100, func() { _ = CheckRx(&h, frame, fullSet) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever bytes come, the validator returns, and what it lets through is safe for a guest to act upon.
func FuzzCheckRx(f *testing.F) {
	for _, s := range []testFrame{v4super, v6super, {tag: true, flags: ack, payload: 200}, {udp: true, payload: 9, whole: true}} {
		h := s.super(64)
		var hb [HdrSize]byte
		h.Encode(hb[:])
		f.Add(hb[:], s.build(), uint64(fullSet))
		f.Add(hb[:], s.build(), uint64(rscSet))
	}
	f.Fuzz(func(t *testing.T, hb, frame []byte, set uint64) {
		var h NetHdr
		if h.Decode(hb) != nil {
			return
		}
		if CheckRx(&h, frame, Features(set)) != nil {
			return
		}
		if h.GSOType != GSONone && (h.GSOSize == 0 || int(h.HdrLen) >= len(frame)) {
			t.Errorf("%+v accepted for %d bytes", h, len(frame))
		}
		if h.Flags&HdrNeedsCsum != 0 && h.Flags&HdrRSCInfo == 0 {
			binary.BigEndian.Uint16(frame[int(h.CsumStart)+int(h.CsumOffset):]) // panics if outside
		}
	})
}
