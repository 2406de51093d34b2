package packettest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"testing"
)

func TestSumAgreesWithPublishedExample(t *testing.T) {
	// RFC 1071 section 3: the words 0001 f203 f4f5 f6f7 sum to ddf2.
	if got := Sum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != 0xddf2 {
		t.Errorf("sum = %04x, want ddf2", got)
	}
	// The IPv4 header that textbooks use; its checksum is b861.
	h, _ := hex.DecodeString("45000073000040004011b861c0a80001c0a800c7")
	if got := HeaderCheck(h); got != 0xb861 {
		t.Errorf("header check = %04x, want b861", got)
	}
}

func TestReadIsTheInverseOfFrame(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for name, p := range map[string]TCP{
			"plain":      {V6: v6, Len: 100},
			"empty":      {V6: v6, Pad: true},
			"odd":        {V6: v6, Len: 101, Opts: Timestamps(1, 2)},
			"tagged":     {V6: v6, Len: 7, Tags: []uint16{0x2005}},
			"everything": {V6: v6, Len: 3, Seq: 1 << 31, Ack: 5, Flags: ACK | PSH | ECE | NS, Win: ZeroWin, Urgent: 9, TOS: 3, TTL: 1, Trailer: make([]byte, 200)},
			"bad":        {V6: v6, Len: 50, BadTCP: true},
			"partial":    {V6: v6, Len: 50, Partial: true},
		} {
			f := p.Frame()
			got, err := Read(f)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if again := got.Frame(); !bytes.Equal(again, f) {
				t.Errorf("%s, IPv6 %v:\n%x read and built again is\n%x", name, v6, f, again)
			}
			if got.BadTCP != p.BadTCP || got.Partial != p.Partial || got.BadIP {
				t.Errorf("%s: bad TCP %v, partial %v, bad IP %v", name, got.BadTCP, got.Partial, got.BadIP)
			}
		}
	}
}

// A receiver sums the pseudo header and everything: ones. That holds for the other form of zero too.
func TestNoncanonicalChecksumVerifies(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for n := 2; n < 40; n++ {
			f := TCP{V6: v6, Len: n, Seq: uint32(n) * 77, Noncanonical: true}.Frame()
			ip := f[14:]
			l4 := 20
			if v6 {
				l4 = 40
			}
			if field := binary.BigEndian.Uint16(ip[l4+16:]); field != 0xffff {
				t.Fatalf("field = %04x", field)
			}
			if TCPCheck(ip, l4) != 0 || Sum(pseudo(ip, 6, len(ip)-l4), ip[l4:]) != 0xffff {
				t.Fatalf("%d bytes, IPv6 %v: does not verify", n, v6)
			}
		}
	}
}

func TestTrainIsOneStream(t *testing.T) {
	var got []byte
	for _, p := range (TCP{Seq: 0xffffff00, Len: 100}).Train(5) {
		got = append(got, p.Data()...)
	}
	want := make([]byte, 500)
	for i := range want {
		Pattern(want[i:i+1], 0xffffff00+uint32(i))
	}
	if !bytes.Equal(got, want) {
		t.Error("the packets of a train carry another stream than Pattern's")
	}
}

func TestOtherFramesHaveTheLengthsTheyClaim(t *testing.T) {
	for name, f := range map[string][]byte{
		"arp": ARP(), "icmp": ICMP(false, 10), "icmp6": ICMP(true, 10), "udp": UDP{Len: 100}.Frame(), "udp6": UDP{V6: true, Len: 100}.Frame(),
	} {
		if len(f) < 60 {
			t.Errorf("%s has %d bytes", name, len(f))
		}
		if f[12] == 0x08 && f[13] == 0 && HeaderCheck(f[14:34]) != binary.BigEndian.Uint16(f[24:]) {
			t.Errorf("%s: header checksum", name)
		}
	}
}
