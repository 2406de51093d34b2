package wire

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

var frames = map[string]struct {
	hex  string
	want Kind
}{
	"udp over ipv4": {
		"02000000000b02000000000a0800" + "4500001f0001000040116631" + "0a4d00010a4d0002" + "03e807d0000b1b21616263",
		Kind{Family: 4, Proto: 17, Checked: true, Payload: 3},
	},
	"arp": {
		"ffffffffffff02000000000a0806" + "000108000604000102000000000a0a4d00010000000000000a4d0002",
		Kind{},
	},
}

func TestGoodFramesPass(t *testing.T) {
	for name, f := range frames {
		k, err := Check(decode(t, f.hex), 1514)
		if err != nil || k != f.want {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
	}
}

func TestEveryFlippedBitOfAnIPPacketIsFound(t *testing.T) {
	good := decode(t, frames["udp over ipv4"].hex)
	for i := ethernet * 8; i < len(good)*8; i++ {
		bad := append([]byte(nil), good...)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := Check(bad, 1514); err == nil {
			t.Errorf("bit %d of byte %d flipped and not found", i%8, i/8)
		}
	}
}

func TestLengthsAreChecked(t *testing.T) {
	good := decode(t, frames["udp over ipv4"].hex)
	if _, err := Check(good, len(good)-1); !errors.Is(err, ErrLength) {
		t.Errorf("a frame longer than allowed: %v", err)
	}
	for n := range len(good) {
		if _, err := Check(good[:n], 1514); err == nil {
			t.Errorf("cut to %d bytes and not found", n)
		}
	}
}

func decode(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
