package flowtable_test

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestHeaderGolden keeps virtio_net_hdr and the first bytes of frames as they are: for each kind of frame the fields and the
// headers, written down once and read by people. That they are right is the business of checkHeader and of the model.
func TestHeaderGolden(t *testing.T) {
	ecnTrain := func(b pt.TCP) []any { return always(flags(pt.ACK | pt.CWR))(b) }
	update9 := func(b pt.TCP) []any { return between(func(p *pt.TCP) { p.Win = 9 })(b) }
	fixed := func(b pt.TCP) []any { return always(func(p *pt.TCP) { p.ID = 7 })(b) }
	options := always(func(p *pt.TCP) { p.Opts = pt.Timestamps(1, 2) })
	udp := func(b pt.TCP) []any { return []any{pt.UDP{V6: b.V6, Len: 10}} }
	var all strings.Builder
	for _, c := range []struct {
		name string
		in   func(pt.TCP) []any
		set  func(c *flowtable.PortConfig)
	}{
		{"train", steady, nil},
		{"train with timestamps", options, nil},
		{"train without GUEST_CSUM", steps(1, func(p []pt.TCP) []any { return []any{p[0]} }), func(c *flowtable.PortConfig) { c.GuestCsum, c.TSO4, c.TSO6 = false, false, false }},
		{"single", lens(100), nil},
		{"smaller last segment", lens(100, 100, 50), nil},
		{"window update", update9, nil},
		{"fixed ID", fixed, nil},
		{"CWR with GUEST_ECN", ecnTrain, ecn},
		{"bad checksum", func(b pt.TCP) []any { b.BadTCP = true; return packets(b) }, nil},
		{"SYN", func(b pt.TCP) []any { b.Flags, b.Len = pt.SYN, 0; return packets(b) }, nil},
		{"UDP", udp, nil},
		{"policy off", lens(100), func(c *flowtable.PortConfig) { c.Coalesce = false }},
	} {
		for _, v6 := range []bool{false, true} {
			for _, p := range []flowtable.Profile{flowtable.GRO, flowtable.RSC} {
				for _, tags := range [][]uint16{nil, {5}} {
					if p == flowtable.RSC && tags != nil || c.name == "UDP" && tags != nil || c.name == "fixed ID" && v6 {
						continue
					}
					cfg := negotiated(p)
					if c.set != nil {
						c.set(&cfg)
					}
					r := newRunner(t, flowtable.Config{}, cfg)
					r.do(c.in(pt.TCP{V6: v6, Tags: tags, Seq: 1000, Ack: 5000, ID: 7, Len: 100}))
					r.close()
					o := &r.out[0]
					family := 4
					if v6 {
						family = 6
					}
					fmt.Fprintf(&all, "%s, %v, IPv%d, tags %v\n", c.name, p, family, tags)
					fmt.Fprintf(&all, "  %v: flags %d gso_type %#x hdr_len %d gso_size %d csum_start %d csum_offset %d; %d packets, %d segments, %d bytes, fixed ID %v\n",
						o.Reason, o.Flags, o.GSOType, o.HdrLen, o.GSOSize, o.CsumStart, o.CsumOffset, len(o.Refs), o.Segments, o.Len, o.FixedID)
					fmt.Fprintf(&all, "  %s\n", hex.EncodeToString(o.frame[:min(len(o.frame), 90)]))
				}
			}
		}
	}
	golden := filepath.Join("testdata", "headers.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	got, exp := strings.Split(all.String(), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(got), len(exp)) {
		if i >= len(got) || i >= len(exp) || got[i] != exp[i] {
			t.Fatalf("line %d differs; if that is meant, run with -update\n got %s\nwant %s", i+1, line(got, i), line(exp, i))
		}
	}
}

func line(l []string, i int) string {
	if i < len(l) {
		return l[i]
	}
	return "(nothing)"
}

// DATA_VALID is set on what the table verified itself, and on nothing else (V7, 7.2).
func TestDataValidOnlyOnWhatWasVerified(t *testing.T) {
	b := pt.TCP{Len: 100}
	empty := b.With(func(p *pt.TCP) { p.Len = 0 })
	for _, c := range []struct {
		name string
		in   any
		set  func(c *flowtable.PortConfig)
		want uint8
	}{
		{"data", b, nil, dataValid},
		{"tagged data", b.With(func(p *pt.TCP) { p.Tags = []uint16{5} }), nil, dataValid},
		{"pure ACK", empty, nil, dataValid},
		{"SYN", b.With(flags(pt.SYN)), nil, dataValid},
		{"PSH", b.With(flags(pt.ACK | pt.PSH)), nil, dataValid},
		{"FIN", b.With(flags(pt.ACK | pt.FIN)), nil, dataValid},
		{"CWR", b.With(flags(pt.ACK | pt.CWR)), nil, dataValid},
		{"not canonical", b.With(func(p *pt.TCP) { p.Noncanonical = true }), nil, dataValid},
		{"no GUEST_CSUM", b, func(c *flowtable.PortConfig) { c.GuestCsum, c.TSO4, c.TSO6 = false, false, false }, 0},
		{"bad TCP checksum", b.With(func(p *pt.TCP) { p.BadTCP = true }), nil, 0},
		{"bad IP checksum", b.With(func(p *pt.TCP) { p.BadIP = true }), nil, 0},
		{"bad checksum on a SYN", b.With(func(p *pt.TCP) { p.Flags, p.BadTCP = pt.SYN, true }), nil, 0},
		{"partial", b.With(func(p *pt.TCP) { p.Partial = true }), nil, 0},
		{"GSO input", gsoInput{b}, nil, 0},
		{"policy off", b, func(c *flowtable.PortConfig) { c.Coalesce = false }, 0},
		{"UDP", pt.UDP{Len: 100}, nil, 0},
		{"ARP", pt.ARP(), nil, 0},
		{"trailer", b.With(func(p *pt.TCP) { p.Trailer = make([]byte, 99) }), nil, 0},
		{"options of IP", b.With(func(p *pt.TCP) { p.IPOpts = make([]byte, 4) }), nil, 0},
		{"first fragment", b.With(func(p *pt.TCP) { p.MF = true }), nil, 0},
	} {
		for _, hold0 := range []bool{false, true} {
			cfg := negotiated(flowtable.GRO)
			if c.set != nil {
				c.set(&cfg)
			}
			var in []any
			if hold0 { // behind another flow's data, so that it waits in a slot
				cfg.Hold = 0
				in = append(in, b.With(func(p *pt.TCP) { p.SrcPort = 9 }))
			}
			r := newRunner(t, flowtable.Config{}, cfg)
			r.do(append(in, c.in))
			r.close()
			if o := &r.out[len(r.out)-1]; o.Flags != c.want {
				t.Errorf("%s, waiting %v: flags %d, want %d", c.name, hold0, o.Flags, c.want)
			}
		}
	}
}
