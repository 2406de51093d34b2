package datapath

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Damage among segments of any length, PSH and window updates, of one flow or of three, over both families, with a tag and without, in buffers of
// any kind and ones that come late: a damaged segment arrives alone, as it was and without a claim, all of one flow in its order, no header
// lies, each packet has one reason, and every chunk comes back. Verifying before or while copying makes no difference to that.
func TestDamageInRandomTraffic(t *testing.T) {
	for seed := range uint64(80) {
		rng := rand.New(rand.NewPCG(seed, 13))
		shape := []struct {
			features      virtio.Features
			buffers, size int
		}{{allFeatures, 120, 4096}, {allFeatures, 250, 600}, {allFeatures, 200, 1526}, {allFeatures &^ (1 << virtio.FMrgRxbuf), 40, 65562}}[rng.IntN(4)]
		vlan, flows := uint16(7*rng.IntN(2)), 1+2*rng.IntN(2)
		both := []*damaged{newDamaged(t, shape.features, vlan, false), newDamaged(t, shape.features, vlan, true)}
		next := make([]pt.TCP, flows)
		for f := range next {
			next[f] = to(1, 0)
			next[f].V6, next[f].SrcPort, next[f].Seq = rng.IntN(2) == 0, uint16(3000+f), rng.Uint32()
			if vlan != 0 {
				next[f].Tags = []uint16{vlan}
			}
		}
		for range 6 {
			var sent, want, bad [][]byte
			for range 1 + rng.IntN(30) {
				p := &next[rng.IntN(flows)]
				p.Len, p.Flags = 1448, pt.ACK
				switch kind := rng.IntN(8); {
				case kind == 0 && flows > 1: // may be absorbed, so of the one flow all packets are compared
					p.Len = 0
					p.Win++
				case kind <= 1:
					p.Len = 1 + rng.IntN(1448)
				case kind == 2:
					p.Flags |= pt.PSH
				}
				frame := p.Frame()
				wrong := p.Len > 0 && rng.IntN(6) == 0
				if wrong {
					frame[len(frame)-1-rng.IntN(p.Len)] ^= byte(1 + rng.IntN(255))
				}
				sent = append(sent, frame)
				if vlan != 0 {
					frame = slices.Concat(frame[:12], frame[16:])
				}
				if want = append(want, frame); wrong {
					bad = append(bad, frame)
				}
				p.Seq += uint32(p.Len)
				p.ID++
			}
			late := rng.IntN(3) == 0
			for _, d := range both {
				got := d.pass(sent, shape.buffers, shape.size, late)
				if flows == 1 {
					packets(t, got, want...)
				}
				for _, f := range bad {
					if !slices.ContainsFunc(got, func(r received) bool { return bytes.Equal(r.data, f) && r.hdr.Flags == 0 && r.hdr.GSOType == 0 }) {
						t.Fatalf("seed %d: a damaged segment did not leave alone without a claim", seed)
					}
				}
				for _, r := range got {
					if err := virtio.CheckRx(&r.hdr, r.data, shape.features); err != nil {
						t.Fatalf("seed %d: %v: %+v", seed, err, r.hdr)
					}
				}
				if l := d.ledger(1); l.Unexplained() != 0 || l.Queued+l.Held != 0 || l.Dropped != [flowtable.NumReasons]uint64{} {
					t.Fatalf("seed %d: %+v", seed, l)
				}
			}
		}
		for _, d := range both {
			if n := d.nic.with(inWorker); n != 0 {
				t.Fatalf("seed %d: %d chunks are out", seed, n)
			}
		}
	}
}
