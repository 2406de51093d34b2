package virtio

import (
	"errors"
	"testing"
)

func TestCheckTxNamesTheBrokenRule(t *testing.T) {
	const set = Features(1<<FVersion1 | 1<<FCsum | 1<<FHostTSO4 | 1<<FHostTSO6 | 1<<FHostECN | 1<<FHostUSO)
	tso := NetHdr{Flags: HdrNeedsCsum, GSOType: GSOTCPv4, GSOSize: 1448, HdrLen: 54, CsumStart: 34, CsumOffset: 16}
	edit := func(f func(*NetHdr)) NetHdr { h := tso; f(&h); return h }
	uso := NetHdr{Flags: HdrNeedsCsum, GSOType: GSOUDPL4, GSOSize: 1200, HdrLen: 42, CsumStart: 34, CsumOffset: 6}
	editUDP := func(f func(*NetHdr)) NetHdr { h := uso; f(&h); return h }
	csum := NetHdr{Flags: HdrNeedsCsum, CsumStart: 34, CsumOffset: 6}
	tests := []struct {
		name string
		h    NetHdr
		len  int
		f    Features
		want error
	}{
		{"guard: plain", NetHdr{}, 14, 0, nil},
		{"guard: TSO", tso, 65549, set, nil},
		{"guard: largest", edit(func(h *NetHdr) { h.GSOType, h.CsumStart = GSOTCPv6, 54 }), MaxFrame, set, nil},
		{"shorter than Ethernet", NetHdr{}, 13, set, ErrFrameShort},
		{"longer than any frame", tso, MaxFrame + 1, set, ErrFrameLong},
		{"guard: partial checksum", csum, 60, set, nil},
		{"partial checksum not negotiated", csum, 60, 1 << FVersion1, ErrCsumNotNegotiated},
		{"checksum field ends with the frame", csum, 42, set, nil},
		{"checksum field beyond the frame", csum, 41, set, ErrCsumPlace},
		{"checksum place overflows 16 bits", NetHdr{Flags: HdrNeedsCsum, CsumStart: 65535, CsumOffset: 65535}, 60, set, ErrCsumPlace},
		{"checksum over Ethernet", NetHdr{Flags: HdrNeedsCsum, CsumStart: 13, CsumOffset: 16}, 60, set, ErrCsumPlace},
		{"csum_start without NEEDS_CSUM is ignored", NetHdr{CsumStart: 65535}, 60, set, nil},
		{"unknown flags are ignored", NetHdr{Flags: 0xf0 | HdrDataValid}, 60, set, nil},
		{"num_buffers is ignored", NetHdr{NumBuffers: 7}, 60, set, nil},
		{"hdr_len is ignored", edit(func(h *NetHdr) { h.HdrLen = 65535 }), 3000, set, nil},
		{"HOST_TSO4 off", tso, 3000, set &^ (1 << FHostTSO4), ErrGSOType},
		{"HOST_TSO6 off", edit(func(h *NetHdr) { h.GSOType, h.CsumStart = GSOTCPv6, 54 }), 3000, set &^ (1 << FHostTSO6), ErrGSOType},
		{"guard: USO", uso, 65549, set, nil},
		{"HOST_USO off", uso, 3000, set &^ (1 << FHostUSO), ErrGSOType},
		{"USO with CWR's bit", editUDP(func(h *NetHdr) { h.GSOType |= GSOECN }), 3000, set, ErrECN},
		{"USO without NEEDS_CSUM", editUDP(func(h *NetHdr) { h.Flags = 0 }), 3000, set, ErrGSONoCsum},
		{"USO without gso_size", editUDP(func(h *NetHdr) { h.GSOSize = 0 }), 3000, set, ErrGSOSize},
		{"USO with the offset of TCP", editUDP(func(h *NetHdr) { h.CsumOffset = 16 }), 3000, set, ErrCsumPlace},
		{"USO inside the IP header", editUDP(func(h *NetHdr) { h.CsumStart = 33 }), 3000, set, ErrCsumPlace},
		{"USO, nothing behind UDP's header", uso, 42, set, nil},
		{"USO without room for UDP", uso, 41, set, ErrCsumPlace},
		{"fragmentation of UDP", edit(func(h *NetHdr) { h.GSOType = GSOUDP }), 3000, set, ErrGSOType},
		{"ECN without HOST_ECN", edit(func(h *NetHdr) { h.GSOType |= GSOECN }), 3000, set &^ (1 << FHostECN), ErrECN},
		{"guard: ECN", edit(func(h *NetHdr) { h.GSOType |= GSOECN }), 3000, set, nil},
		{"ECN without a type", NetHdr{GSOType: GSOECN}, 60, set, ErrECN},
		{"TSO without NEEDS_CSUM", edit(func(h *NetHdr) { h.Flags = 0 }), 3000, set, ErrGSONoCsum},
		{"TSO without gso_size", edit(func(h *NetHdr) { h.GSOSize = 0 }), 3000, set, ErrGSOSize},
		{"TSO with the offset of UDP", edit(func(h *NetHdr) { h.CsumOffset = 6 }), 3000, set, ErrCsumPlace},
		{"TSO inside the IP header", edit(func(h *NetHdr) { h.CsumStart = 33 }), 3000, set, ErrCsumPlace},
		{"TSO without room for TCP", tso, 53, set, ErrFrameShort},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := CheckTx(&tt.h, tt.len, tt.f); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}
