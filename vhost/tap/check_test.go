package tap

import (
	"errors"
	"testing"

	"github.com/rscctl/rscctl/vhost/virtio"
)

func TestCheckNamesWhatIsWrong(t *testing.T) {
	super := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, HdrLen: 66, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}
	edit := func(h virtio.NetHdr, f func(h *virtio.NetHdr)) virtio.NetHdr { f(&h); return h }
	partial := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 34, CsumOffset: 16}
	for _, tt := range []struct {
		name string
		h    virtio.NetHdr
		n    int // bytes
		want error
	}{
		{"guard: superframe", super, 5000, nil},
		{"guard: superframe of IPv6", edit(super, func(h *virtio.NetHdr) { h.GSOType = virtio.GSOTCPv6 }), 5000, nil},
		{"guard: superframe with CWR", edit(super, func(h *virtio.NetHdr) { h.GSOType |= virtio.GSOECN }), 5000, nil},
		{"guard: plain", virtio.NetHdr{}, 1514, nil},
		{"guard: verified", virtio.NetHdr{Flags: virtio.HdrDataValid}, 60, nil},
		{"guard: partial checksum", partial, 60, nil},
		{"guard: the longest", super, 65535, nil},
		{"too long", super, 65536, ErrTooLong},
		{"no Ethernet", virtio.NetHdr{}, 13, ErrFrameLength},
		{"above the MTU", virtio.NetHdr{}, 1515, ErrMTU},
		{"above the MTU with a partial checksum", partial, 1515, ErrMTU},
		{"RSC_INFO", edit(super, func(h *virtio.NetHdr) { h.Flags |= virtio.HdrRSCInfo }), 5000, ErrHdrFlags},
		{"unknown flag", virtio.NetHdr{Flags: 8}, 60, ErrHdrFlags},
		{"hdr_len beyond the frame", edit(super, func(h *virtio.NetHdr) { h.HdrLen = 5001 }), 5000, ErrHdrLen},
		{"hdr_len beyond a plain frame", virtio.NetHdr{HdrLen: 61}, 60, ErrHdrLen},
		{"hdr_len inside TCP", edit(super, func(h *virtio.NetHdr) { h.HdrLen = 53 }), 5000, ErrHdrLen},
		{"guard: checksum in the last bytes", partial, 52, nil},
		{"checksum beyond the frame by one", partial, 51, ErrHdrCsum},
		{"checksum far beyond", edit(partial, func(h *virtio.NetHdr) { h.CsumStart, h.CsumOffset = 65535, 65535 }), 60, ErrHdrCsum},
		{"checksum in Ethernet", edit(partial, func(h *virtio.NetHdr) { h.CsumStart = 13 }), 60, ErrHdrCsum},
		{"UDP's checksum in a TCP superframe", edit(super, func(h *virtio.NetHdr) { h.CsumOffset = 6 }), 5000, ErrHdrCsum},
		{"no gso_size", edit(super, func(h *virtio.NetHdr) { h.GSOSize = 0 }), 5000, ErrHdrGSO},
		{"gso_size 65535", edit(super, func(h *virtio.NetHdr) { h.GSOSize = 0xffff }), 5000, ErrHdrGSO},
		{"guard: superframe of UDP", edit(super, func(h *virtio.NetHdr) { h.GSOType, h.HdrLen, h.CsumOffset = virtio.GSOUDPL4, 42, 6 }), 5000, nil},
		{"TCP's checksum in a UDP superframe", edit(super, func(h *virtio.NetHdr) { h.GSOType = virtio.GSOUDPL4 }), 5000, ErrHdrCsum},
		{"hdr_len inside UDP", edit(super, func(h *virtio.NetHdr) { h.GSOType, h.HdrLen, h.CsumOffset = virtio.GSOUDPL4, 41, 6 }), 5000, ErrHdrLen},
		{"ECN on a UDP superframe", edit(super, func(h *virtio.NetHdr) { h.GSOType, h.HdrLen, h.CsumOffset = virtio.GSOUDPL4|virtio.GSOECN, 42, 6 }), 5000, ErrHdrGSO},
		{"UDP fragmentation", edit(super, func(h *virtio.NetHdr) { h.GSOType = virtio.GSOUDP }), 5000, ErrHdrGSO},
		{"ECN without a type", edit(super, func(h *virtio.NetHdr) { h.GSOType = virtio.GSOECN }), 5000, ErrHdrGSO},
		{"superframe without NEEDS_CSUM", edit(super, func(h *virtio.NetHdr) { h.Flags = 0 }), 5000, ErrHdrGSO},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &virtio.Frame{Hdr: tt.h, Frags: [][]byte{nil, make([]byte, tt.n/2), nil, make([]byte, tt.n-tt.n/2)}, Len: tt.n}
			frags, err := check(f, 1500)
			if !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if tt.want != nil && !errors.Is(err, ErrRefused) {
				t.Errorf("%v does not wrap ErrRefused", err)
			}
			if err == nil && frags != 2 {
				t.Errorf("%d fragments, want 2", frags)
			}
		})
	}
}

func TestCheckAllowsATagAboveTheMTU(t *testing.T) {
	b := make([]byte, 1518)
	b[12], b[13] = 0x81, 0
	f := &virtio.Frame{Frags: [][]byte{nil, b[:20], b[20:]}, Len: 1518}
	if _, err := check(f, 1500); err != nil {
		t.Error(err)
	}
	if _, err := check(f, 1499); !errors.Is(err, ErrMTU) {
		t.Errorf("one byte more: %v", err)
	}
	b[12] = 8
	if _, err := check(f, 1500); !errors.Is(err, ErrMTU) {
		t.Errorf("untagged: %v", err)
	}
}

func TestCheckWantsTheTrueLength(t *testing.T) {
	for _, n := range []int{59, 61} {
		if _, err := check(&virtio.Frame{Frags: [][]byte{make([]byte, 60)}, Len: n}, 1500); !errors.Is(err, ErrFrameLength) {
			t.Errorf("%d for 60: %v", n, err)
		}
	}
}
