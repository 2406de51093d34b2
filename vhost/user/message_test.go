package user

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
)

// The bytes are written out here from the tables of the specification, not made
// by the encoder.
func TestPayloadsAreLaidOutAsTheProtocolSays(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	hdr := make([]byte, HeaderSize)
	(&Header{Request: SetVringAddr, Flags: 0x9, Size: 40}).Encode(hdr)
	region := MemRegion{GPA: 0x1000, Size: 0x2000, UVA: 0x7f0000000000, Offset: 0xc0000}
	const regionHex = "0010000000000000" + "0020000000000000" + "00000000007f0000" + "00000c0000000000"
	for _, tt := range []struct {
		name string
		got  []byte
		want string
	}{
		{"header", hdr, "09000000" + "09000000" + "28000000"},
		{"u64", AppendU64(nil, 0x1122334455667788), "8877665544332211"},
		{"state", VringState{Index: 3, Num: 256}.Append(nil), "03000000" + "00010000"},
		{"addresses", VringAddr{Index: 1, Flags: 1, Desc: 0x10, Used: 0x20, Avail: 0x30, LogOffset: 0x40}.Append(nil),
			"01000000" + "01000000" + "1000000000000000" + "2000000000000000" + "3000000000000000" + "4000000000000000"},
		{"table", AppendMemTable(nil, []MemRegion{region, region}), "02000000" + "00000000" + regionHex + regionHex},
		{"single region", AppendSingleRegion(nil, region), "0000000000000000" + regionHex},
	} {
		if !bytes.Equal(tt.got, unhex(tt.want)) {
			t.Errorf("%s: %x", tt.name, tt.got)
		}
	}
	table, err := DecodeMemTable(AppendMemTable(nil, []MemRegion{region, {Size: 1}}))
	if err != nil || !reflect.DeepEqual(table, []MemRegion{region, {Size: 1}}) {
		t.Errorf("table %+v, %v", table, err)
	}
	if r, err := DecodeSingleRegion(AppendSingleRegion(nil, region)); err != nil || r != region {
		t.Errorf("region %+v, %v", r, err)
	}
}

func TestPayloadsOfTheWrongSizeAreRefused(t *testing.T) {
	decoders := map[string]func(b []byte) error{
		"u64":       func(b []byte) error { _, err := U64(b); return err },
		"state":     func(b []byte) error { return new(VringState).Decode(b) },
		"addresses": func(b []byte) error { return new(VringAddr).Decode(b) },
		"region":    func(b []byte) error { _, err := DecodeSingleRegion(b); return err },
		"table":     func(b []byte) error { _, err := DecodeMemTable(b); return err },
	}
	right := map[string]int{"u64": 8, "state": 8, "addresses": 40, "region": 40, "table": 8}
	for name, decode := range decoders {
		for n := range 300 {
			if err := decode(make([]byte, n)); (err == nil) != (n == right[name]) || err != nil && !errors.Is(err, ErrBadPayload) {
				t.Errorf("%s of %d bytes: %v", name, n, err)
			}
		}
	}
}

func TestRequestsAreNamedAsInQEMU(t *testing.T) {
	if s := SetVringKick.String(); s != "SET_VRING_KICK" {
		t.Error(s)
	}
	for _, r := range []Request{0, 26, 47, 48, 1<<32 - 1} {
		if s := r.String(); len(s) < 9 || s[:8] != "request " {
			t.Errorf("%d: %s", uint32(r), s)
		}
	}
	for r, h := range handlers {
		if h.run != nil && requestNames[r] == "" {
			t.Errorf("request %d is handled and has no name", r)
		}
	}
}

// FuzzMessage: no bytes upset the decoders, and what they accept is encoded to
// the same bytes again.
func FuzzMessage(f *testing.F) {
	region := MemRegion{GPA: 1 << 20, Size: 1 << 21, UVA: 1 << 40, Offset: 4096}
	for r, payload := range map[Request][]byte{
		GetFeatures: nil, SetFeatures: AppendU64(nil, 1<<32), SetVringNum: VringState{1, 256}.Append(nil),
		SetVringAddr: VringAddr{Index: 1, Desc: 4096}.Append(nil), SetMemTable: AppendMemTable(nil, []MemRegion{region}),
		AddMemReg: AppendSingleRegion(nil, region),
	} {
		b := make([]byte, HeaderSize)
		(&Header{Request: r, Flags: 9, Size: uint32(len(payload))}).Encode(b)
		f.Add(append(b, payload...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Header
		if err := h.Decode(b); err != nil {
			return
		}
		out := make([]byte, HeaderSize)
		h.Encode(out)
		if !bytes.Equal(out, b[:HeaderSize]) || h.Size > MaxPayload {
			t.Fatalf("header %+v", h)
		}
		_ = h.Request.String()
		p := b[HeaderSize:]
		same := func(what string, err error, enc []byte) {
			if err == nil && !bytes.Equal(enc, p) {
				t.Errorf("%s: %x became %x", what, p, enc)
			}
		}
		v, err := U64(p)
		same("u64", err, AppendU64(nil, v))
		var s VringState
		err = s.Decode(p)
		same("state", err, s.Append(nil))
		var a VringAddr
		err = a.Decode(p)
		same("addresses", err, a.Append(nil))
		if regions, err := DecodeMemTable(p); err == nil {
			enc := AppendMemTable(nil, regions)
			copy(enc[4:8], p[4:8]) // padding
			same("table", nil, enc)
		}
		if r, err := DecodeSingleRegion(p); err == nil {
			enc := AppendSingleRegion(nil, r)
			copy(enc[:8], p[:8])
			same("region", nil, enc)
		}
	})
}
