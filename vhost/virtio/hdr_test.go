package virtio

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

func TestHeaderBytesAreLittleEndian(t *testing.T) {
	h := NetHdr{Flags: 1, GSOType: 4, HdrLen: 0x1122, GSOSize: 0x3344, CsumStart: 0x5566, CsumOffset: 0x7788, NumBuffers: 0x99aa}
	want := []byte{1, 4, 0x22, 0x11, 0x44, 0x33, 0x66, 0x55, 0x88, 0x77, 0xaa, 0x99}
	var b [HdrSize]byte
	h.Encode(b[:])
	if !bytes.Equal(b[:], want) {
		t.Errorf("got % x, want % x", b, want)
	}
	var back NetHdr
	if err := back.Decode(b[:]); err != nil || back != h {
		t.Errorf("decoded %+v, %v", back, err)
	}
	h.NumBuffers = 0
	if err := back.Decode(b[:HdrSizeLegacy]); err != nil || back != h {
		t.Errorf("legacy form decoded as %+v, %v", back, err)
	}
	if err := back.Decode(b[:9]); !errors.Is(err, ErrShortHeader) || back != h {
		t.Errorf("9 bytes: %+v, %v", back, err)
	}
}

func TestHeaderLengthFollowsFeatures(t *testing.T) {
	for _, tt := range []struct {
		f    Features
		want int
	}{{0, 10}, {Mask(FVersion1), 12}, {Mask(FMrgRxbuf), 12}, {Mask(FVersion1, FMrgRxbuf), 12}, {Mask(FGuestCsum), 10}} {
		if got := tt.f.HdrLen(); got != tt.want {
			t.Errorf("%v: %d bytes, want %d", tt.f.Names(), got, tt.want)
		}
	}
}

func TestFeatureCheckNamesWhatIsMissing(t *testing.T) {
	tests := []struct {
		name string
		f    Features
		want error
	}{
		{"guard: nothing", 0, nil},
		{"guard: everything we serve", Mask(FCsum, FGuestCsum, FGuestTSO4, FGuestTSO6, FGuestECN, FHostTSO4, FHostTSO6, FHostECN,
			FMrgRxbuf, FMQ, FMTU, FGuestAnnounce, FIndirectDesc, FEventIdx, FProtocolFeatures, FVersion1, FRSCExt), nil},
		{"TSO4", Mask(FGuestTSO4), ErrFeatureDependency},
		{"TSO6", Mask(FGuestTSO6), ErrFeatureDependency},
		{"ECN", Mask(FGuestCsum, FGuestECN), ErrFeatureDependency},
		{"guard: ECN with TSO6", Mask(FGuestCsum, FGuestTSO6, FGuestECN), nil},
		{"UFO", Mask(FGuestUFO), ErrFeatureDependency},
		{"host TSO4", Mask(FHostTSO4), ErrFeatureDependency},
		{"host TSO6", Mask(FHostTSO6), ErrFeatureDependency},
		{"host ECN", Mask(FCsum, FHostECN), ErrFeatureDependency},
		{"host UFO", Mask(FHostUFO), ErrFeatureDependency},
		{"USO4", Mask(FGuestUSO4), ErrFeatureDependency},
		{"USO6", Mask(FGuestUSO6), ErrFeatureDependency},
		{"host USO", Mask(FHostUSO), ErrFeatureDependency},
		{"RSC_EXT", Mask(FGuestCsum, FRSCExt), ErrFeatureDependency},
		{"guard: RSC_EXT with TSO4", Mask(FGuestCsum, FGuestTSO4, FRSCExt), nil},
		{"packed ring", Mask(FVersion1, FRingPacked), ErrFeatureUnsupported},
		{"IOMMU", Mask(FVersion1, FAccessPlatform), ErrFeatureUnsupported},
		{"hash report", Mask(FVersion1, FHashReport), ErrFeatureUnsupported},
	}
	for _, tt := range tests {
		if err := tt.f.Check(); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestFeatureNamesAreAscendingAndComplete(t *testing.T) {
	got := Mask(FRSCExt, FCsum, 44, FMrgRxbuf).Names()
	if want := []string{"CSUM", "MRG_RXBUF", "bit 44", "RSC_EXT"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if Features(1<<FCsum).Has(64) || !Features(1<<63).Has(63) {
		t.Error("Has is wrong at the edge")
	}
}
