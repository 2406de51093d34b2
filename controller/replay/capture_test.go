package replay

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// Captures are put together by hand here: a test of the reader must not trust a writer of the same library.

// pcapFile returns a classic capture with the given magic, in the order's byte order.
func pcapFile(order binary.AppendByteOrder, magic uint32, link uint32, records ...[]byte) []byte {
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(b, 2)
	b = order.AppendUint16(b, 4)
	b = order.AppendUint32(b, 0)
	b = order.AppendUint32(b, 0)
	b = order.AppendUint32(b, 65535)
	b = order.AppendUint32(b, link)
	return append(b, bytes.Join(records, nil)...)
}

func pcapRecord(order binary.AppendByteOrder, sec, sub uint32, orig int, data []byte) []byte {
	b := order.AppendUint32(nil, sec)
	b = order.AppendUint32(b, sub)
	b = order.AppendUint32(b, uint32(len(data)))
	b = order.AppendUint32(b, uint32(orig))
	return append(b, data...)
}

// ngBlock returns one pcapng block around body, padded.
func ngBlock(order binary.AppendByteOrder, kind uint32, body []byte) []byte {
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	n := uint32(len(body) + 12)
	b := order.AppendUint32(nil, kind)
	b = order.AppendUint32(b, n)
	b = append(b, body...)
	return order.AppendUint32(b, n)
}

func ngSection(order binary.AppendByteOrder) []byte {
	b := order.AppendUint32(nil, byteOrderMagic)
	b = order.AppendUint16(b, 1)
	b = order.AppendUint16(b, 0)
	b = order.AppendUint32(b, math.MaxUint32)
	return ngBlock(order, blockSection, order.AppendUint32(b, math.MaxUint32))
}

func ngIface(order binary.AppendByteOrder, link uint16, snap uint32, options ...byte) []byte {
	b := order.AppendUint16(nil, link)
	b = order.AppendUint16(b, 0)
	b = order.AppendUint32(b, snap)
	return ngBlock(order, blockInterface, append(b, options...))
}

// ngOption returns one option, padded.
func ngOption(order binary.AppendByteOrder, code uint16, value []byte) []byte {
	b := order.AppendUint16(nil, code)
	b = order.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func ngPacket(order binary.AppendByteOrder, iface uint32, ticks uint64, orig int, data []byte, options ...byte) []byte {
	b := order.AppendUint32(nil, iface)
	b = order.AppendUint32(b, uint32(ticks>>32))
	b = order.AppendUint32(b, uint32(ticks))
	b = order.AppendUint32(b, uint32(len(data)))
	b = order.AppendUint32(b, uint32(orig))
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return ngBlock(order, blockEnhanced, append(b, options...))
}

type seen struct {
	data string
	orig int
	ts   int64
	time bool
}

// read returns every packet of a capture and the error it ended with.
func read(in []byte) ([]seen, error) {
	c, err := newCapture(bytes.NewReader(in))
	if err != nil {
		return nil, err
	}
	var list []seen
	for {
		rec, err := c.next()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		list = append(list, seen{string(rec.data), rec.orig, rec.ts, rec.timed})
	}
}

func check(t *testing.T, in []byte, want ...seen) {
	t.Helper()
	got, err := read(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d: %v", len(got), len(want), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("packet %d: got %v, want %v", i, got[i], want[i])
		}
	}
}

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

func TestPcapIsReadInBothByteOrdersAndResolutions(t *testing.T) {
	for _, order := range []binary.AppendByteOrder{le, be} {
		check(t, pcapFile(order, 0xa1b2c3d4, 1, pcapRecord(order, 10, 20, 3, []byte("abc")), pcapRecord(order, 11, 0, 9, []byte("de")),
			pcapRecord(order, 11, 0, 0, nil)),
			seen{"abc", 3, 10_000_020_000, true}, seen{"de", 9, 11e9, true}, seen{"", 0, 11e9, true})
		check(t, pcapFile(order, 0xa1b23c4d, 1, pcapRecord(order, 10, 20, 1, []byte("a"))), seen{"a", 1, 10_000_000_020, true})
	}
}

// Format 2.3 swapped a record's two lengths; programs that wrote it did so or not.
func TestOldFormatsAreReadAsLibpcapReadsThem(t *testing.T) {
	file := func(minor uint16, captured, orig uint32) []byte {
		b := pcapFile(le, 0xa1b2c3d4, 1, pcapRecord(le, 1, 0, 0, nil), []byte("abc"), pcapRecord(le, 2, 0, 1, []byte("x")))
		le.PutUint16(b[6:], minor)
		le.PutUint32(b[32:], captured)
		le.PutUint32(b[36:], orig)
		return b
	}
	for _, minor := range []uint16{0, 1, 2} {
		check(t, file(minor, 9, 3), seen{"abc", 9, 1e9, true}, seen{"x", 1, 2e9, true})
	}
	check(t, file(3, 9, 3), seen{"abc", 9, 1e9, true}, seen{"x", 1, 2e9, true})
	check(t, file(3, 3, 9), seen{"abc", 9, 1e9, true}, seen{"x", 1, 2e9, true})
	check(t, file(4, 3, 9), seen{"abc", 9, 1e9, true}, seen{"x", 1, 2e9, true})
}

func TestOtherVersionsAreNamed(t *testing.T) {
	for name, at := range map[string]int{"pcap 9.4": 4, "pcap 2.9": 6} {
		b := pcapFile(le, 0xa1b2c3d4, 1)
		le.PutUint16(b[at:], 9)
		if _, err := read(b); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := ngSection(le)
	le.PutUint16(b[12:], 2)
	if _, err := read(b); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "pcapng 2.0") {
		t.Errorf("pcapng 2.0: %v", err)
	}
}

// Some drivers count the padding or the check sequence in one length and not in the other.
func TestMoreCapturedThanThereWasIsNoDamage(t *testing.T) {
	check(t, pcapFile(le, 0xa1b2c3d4, 1, pcapRecord(le, 1, 0, 1, []byte("ab")), pcapRecord(le, 2, 0, 1, []byte("c"))),
		seen{"ab", 2, 1e9, true}, seen{"c", 1, 2e9, true})
	check(t, bytes.Join([][]byte{ngSection(le), ngIface(le, 1, 0), ngPacket(le, 0, 1, 1, []byte("ab")), ngPacket(le, 0, 2, 1, []byte("c"))}, nil),
		seen{"ab", 2, 1000, true}, seen{"c", 1, 2000, true})
}

func TestTheObsoletePacketBlockIsRead(t *testing.T) {
	b := le.AppendUint16(nil, 0) // interface
	b = le.AppendUint16(b, 77)   // drops
	for _, v := range []uint32{0, 5, 3, 9} {
		b = le.AppendUint32(b, v)
	}
	check(t, bytes.Join([][]byte{ngSection(le), ngIface(le, 1, 0), ngBlock(le, blockPacket, append(b, "abc"...))}, nil),
		seen{"abc", 9, 5000, true})
}

func TestPcapngIsReadInBothByteOrders(t *testing.T) {
	for _, order := range []binary.AppendByteOrder{le, be} {
		nano := ngOption(order, optTSResolution, []byte{9})
		check(t, bytes.Join([][]byte{
			ngSection(order), ngIface(order, 1, 0), ngIface(order, 1, 0, nano...),
			ngPacket(order, 0, 1_000_002, 3, []byte("abc")),
			ngPacket(order, 1, 2_000_000_005, 7, []byte("de"), ngOption(order, 1, []byte("a comment"))...),
			ngBlock(order, 0x0000000a, []byte("secrets: lengths inside are rubbish")),
			ngBlock(order, blockSimple, append(order.AppendUint32(nil, 2), "xy"...)),
			ngBlock(order, 0x40000bad, nil),
			ngPacket(order, 0, 3_000_000, 0, nil),
		}, nil),
			seen{"abc", 3, 1_000_002_000, true}, seen{"de", 7, 2_000_000_005, true}, seen{"xy", 2, 0, false}, seen{"", 0, 3e9, true})
	}
}

func TestPcapngSectionsBringTheirOwnInterfacesAndOrder(t *testing.T) {
	check(t, bytes.Join([][]byte{
		ngSection(le), ngIface(le, 1, 0), ngPacket(le, 0, 5, 1, []byte("a")),
		ngSection(be), ngIface(be, 1, 0, ngOption(be, optTSResolution, []byte{3})...), ngPacket(be, 0, 5, 1, []byte("b")),
		ngSection(be),
	}, nil), seen{"a", 1, 5000, true}, seen{"b", 1, 5_000_000, true})
	_, err := read(bytes.Join([][]byte{ngSection(le), ngIface(le, 1, 0), ngSection(le), ngPacket(le, 0, 5, 1, []byte("a"))}, nil))
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("packet of an interface of another section: %v", err)
	}
}

func TestPcapngSimplePacketsEndAtTheSnapLength(t *testing.T) {
	check(t, bytes.Join([][]byte{
		ngSection(le), ngIface(le, 1, 4), ngBlock(le, blockSimple, append(le.AppendUint32(nil, 100), "abcd"...)),
	}, nil), seen{"abcd", 100, 0, false})
}

func TestPcapngTimesOfEveryResolution(t *testing.T) {
	for _, tt := range []struct {
		name   string
		nic    ngInterface
		ticks  uint64
		wantNS int64
	}{
		{"seconds", ngInterface{exp: 0}, 3, 3e9},
		{"microseconds", ngInterface{exp: 6}, 3_000_001, 3_000_001_000},
		{"picoseconds, rounded down", ngInterface{exp: 12}, 3_000_000_001_999, 3_000_000_001},
		{"10^-19", ngInterface{exp: 19}, 1e18, 1e8},
		{"2^-0", ngInterface{binary: true}, 3, 3e9},
		{"2^-32, just below a second", ngInterface{binary: true, exp: 32}, 1<<32 - 1, 999_999_999},
		{"2^-63", ngInterface{binary: true, exp: 63}, 3 << 62, 1_500_000_000},
		{"offset", ngInterface{exp: 6, offset: 1_700_000_000}, 1, 1_700_000_000_000_001_000},
		{"negative offset below 1970", ngInterface{exp: 6, offset: -5}, 1, 0},
		{"most negative offset", ngInterface{exp: 6, offset: math.MinInt64}, 1, 0},
		{"beyond the clock", ngInterface{exp: 0}, math.MaxUint64, maxClock},
		{"offset beyond the clock", ngInterface{exp: 6, offset: math.MaxInt64}, 1, maxClock},
	} {
		if got := tt.nic.nanoseconds(tt.ticks); got != tt.wantNS {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.wantNS)
		}
	}
}

func TestGzippedCapturesAreRead(t *testing.T) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(pcapFile(le, 0xa1b2c3d4, 1, pcapRecord(le, 1, 0, 1, []byte("a"))))
	w.Close()
	check(t, z.Bytes(), seen{"a", 1, 1e9, true})
	if _, err := read(z.Bytes()[:z.Len()-4]); !errors.Is(err, ErrDamaged) {
		t.Errorf("cut short: %v", err)
	}
}

func TestOtherLinkTypesAreNamed(t *testing.T) {
	for name, in := range map[string][]byte{
		"pcap":   pcapFile(le, 0xa1b2c3d4, 113, pcapRecord(le, 1, 0, 1, []byte("a"))),
		"pcapng": bytes.Join([][]byte{ngSection(le), ngIface(le, 113, 0), ngPacket(le, 0, 1, 1, []byte("a"))}, nil),
	} {
		_, err := read(in)
		if !errors.Is(err, ErrLinkType) || !strings.Contains(err.Error(), "113") || errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A capture of all interfaces has no Ethernet header any more: its user is told, and what to do.
	for _, link := range []uint32{113, 276} {
		if _, err := read(pcapFile(le, 0xa1b2c3d4, link)); !errors.Is(err, ErrLinkType) || !strings.Contains(err.Error(), "-i any") {
			t.Errorf("link type %d: %v", link, err)
		}
	}
	if _, err := read(pcapFile(le, 0xa1b2c3d4, 1|1<<16)); !errors.Is(err, ErrLinkType) {
		t.Errorf("link type 65537: %v", err)
	}
	// A frame check sequence of 4 bytes, as the upper bits say it.
	check(t, pcapFile(le, 0xa1b2c3d4, 1|2<<28|1<<26, pcapRecord(le, 1, 0, 1, []byte("a"))), seen{"a", 1, 1e9, true})
	// An interface nobody captured on hurts nobody.
	check(t, bytes.Join([][]byte{ngSection(le), ngIface(le, 113, 0), ngIface(le, 1, 0), ngPacket(le, 1, 1, 1, []byte("a"))}, nil),
		seen{"a", 1, 1000, true})
}

func TestWhatIsNoCaptureIsSaidToBeNone(t *testing.T) {
	for _, in := range []string{"", "a", "abc", "\x7fELF and more of it that follows", strings.Repeat("\x00", 100)} {
		if _, err := read([]byte(in)); !errors.Is(err, ErrNotCapture) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestACaptureCutAnywhereGivesThePacketsBeforeTheCut(t *testing.T) {
	pcap := pcapFile(le, 0xa1b2c3d4, 1, pcapRecord(le, 1, 0, 3, []byte("abc")), pcapRecord(le, 2, 0, 5, []byte("defgh")))
	ng := bytes.Join([][]byte{ngSection(le), ngIface(le, 1, 0), ngPacket(le, 0, 1, 3, []byte("abc")), ngPacket(le, 0, 2, 5, []byte("defgh"))}, nil)
	for name, tt := range map[string]struct {
		in    []byte
		clean map[int]int // length -> packets, where the end is a clean one
	}{
		"pcap":   {pcap, map[int]int{24: 0, 43: 1, len(pcap): 2}},
		"pcapng": {ng, map[int]int{28: 0, 48: 0, 84: 1, len(ng): 2}},
	} {
		last := 0
		for n := 4; n <= len(tt.in); n++ {
			got, err := read(tt.in[:n])
			want, clean := tt.clean[n]
			if clean {
				last = want
			}
			if len(got) != last || (err == nil) != clean || err != nil && !errors.Is(err, ErrDamaged) {
				t.Errorf("%s cut at %d: %d packets, %v", name, n, len(got), err)
			}
		}
	}
}

func TestLyingLengthsAreDamageAndCostNoMemory(t *testing.T) {
	good := [][]byte{ngSection(le), ngIface(le, 1, 0), ngPacket(le, 0, 1, 1, []byte("a"))}
	after := func(block []byte) []byte { return append(bytes.Join(good, nil), block...) }
	lie := func(block []byte, at int, v uint32) []byte {
		b := bytes.Clone(block)
		le.PutUint32(b[at:], v)
		return b
	}
	packet := ngPacket(le, 0, 1, 4, []byte("abcd"))
	for name, in := range map[string][]byte{
		"pcap: length of 4 GiB": pcapFile(le, 0xa1b2c3d4, 1, pcapRecord(le, 1, 0, 1, []byte("a")),
			lie(lie(pcapRecord(le, 1, 0, 1, nil), 8, math.MaxUint32), 12, math.MaxUint32)),
		"block of 4 GiB":          after(lie(packet, 4, math.MaxUint32-3)),
		"block of 0":              after(lie(packet, 4, 0)),
		"block of 7":              after(lie(packet, 4, 7)),
		"block lengths differ":    after(lie(packet, len(packet)-4, 100)),
		"packet beyond its block": after(lie(packet, 20, 5)),
		"packet of 4 GiB":         after(lie(packet, 20, math.MaxUint32)),
		"no such interface":       after(lie(packet, 8, 1)),
		"option beyond its block": after(ngIface(le, 1, 0, 9, 0, 200, 0)),
		"resolution 10^-20":       after(ngIface(le, 1, 0, ngOption(le, optTSResolution, []byte{20})...)),
		"unknown block, cut":      after(lie(ngBlock(le, 0xbad, nil), 4, 1<<31)),
	} {
		got, err := read(in)
		if len(got) != 1 || !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %d packets, %v", name, len(got), err)
		}
	}
}
