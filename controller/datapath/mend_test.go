package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// damage is what is wrong with a train, by the places of its segments.
type damage struct {
	name string
	at   []int
	do   func(train [][]byte, hdr int)
}

func flip(at ...int) damage {
	return damage{fmt.Sprintf("segments %d", at), at, func(train [][]byte, hdr int) {
		for i, k := range at {
			p := train[k][hdr:]
			p[(k*37+i*211)%len(p)] ^= 1 << (k % 8)
		}
	}}
}

// damages of a train of n: none, each segment, several, all, and two that cancel out in the superframe's sum.
func damages(n int) []damage {
	list := []damage{{name: "none", do: func([][]byte, int) {}}, flip(0, 1), flip(2, 4), flip(0, n-1), flip(n-2, n-1)}
	var all []int
	for i := range n {
		list = append(list, flip(i))
		all = append(all, i)
	}
	list = append(list, flip(all...),
		damage{"two that cancel out", []int{3, 5}, func(train [][]byte, hdr int) {
			for k, d := range map[int]uint16{3: 1, 5: 0xffff} {
				w := train[k][hdr+10:]
				binary.BigEndian.PutUint16(w, binary.BigEndian.Uint16(w)+d)
			}
		}},
		damage{"in the checksum's field", []int{4}, func(train [][]byte, hdr int) { train[4][hdr-12-4] ^= 1 }},
		damage{"a byte that the guest would take for its own padding", []int{n - 1}, func(train [][]byte, hdr int) { train[n-1][len(train[n-1])-1] ^= 0x80 }})
	return list
}

// damaged is a worker with a vhost-user VM, in one of the two ways to verify.
type damaged struct {
	*rig
	v    *userVM
	left int // buffers posted and not used
}

func newDamaged(t *testing.T, features virtio.Features, vlan uint16, late bool) *damaged {
	d := &damaged{rig: newRig(t), v: newUserVM(t, features, 256, 96<<20)}
	d.addPort(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1), VLAN: vlan}})
	if err := d.w.startPort(1, NewUserGuest(d.v.port.RX(0), d.nic, d.w.Wake), nil, rules()); err != nil {
		t.Fatal(err)
	}
	if !late {
		d.w.table.LeaveSums(1, false)
	}
	return d
}

// pass gives a burst to the worker, with so many buffers there before, or first with what was left, and returns what the guest got.
func (d *damaged) pass(frames [][]byte, buffers, size int, scarce bool) []received {
	if !scarce {
		d.v.post(buffers-d.left, size)
	}
	d.inject(frames...)
	d.step()
	if scarce {
		d.v.post(buffers-d.left, size)
		d.step()
	}
	d.left = buffers
	got := d.v.received()
	for _, r := range got {
		d.left -= int(max(1, r.hdr.NumBuffers))
	}
	return got
}

// The guest gets the same packets, in the same order, with the same reasons and claims, whether a payload is verified before it is
// merged or while it is copied; a damaged one is in no superframe.
func TestDamageIsFoundWhileCopyingAsIfItHadBeenFoundBefore(t *testing.T) {
	const n = 9
	noMerge := allFeatures &^ (1 << virtio.FMrgRxbuf)
	for _, c := range []struct {
		name          string
		features      virtio.Features
		buffers, size int
		grouped       bool // the whole train fits: then the groups behind the damage are those that they would have been
	}{
		{"4 KiB buffers", allFeatures, 20, 4096, true}, {"buffers of a packet", allFeatures, 24, 1536, true},
		{"small odd buffers", allFeatures, 90, 137, true}, {"buffers of one piece", noMerge, 12, 65562, true},
		{"buffers that take two segments", noMerge, 12, 1600, false},
	} {
		for _, v6 := range []bool{false, true} {
			for _, vlan := range []uint16{0, 7} {
				t.Run(fmt.Sprintf("%s,v6=%v,vlan=%d", c.name, v6, vlan), func(t *testing.T) {
					before, late := newDamaged(t, c.features, vlan, false), newDamaged(t, c.features, vlan, true)
					for i, dmg := range damages(n) {
						p := to(1, 701)
						p.V6, p.SrcPort = v6, 2000+uint16(i)
						if vlan != 0 {
							p.Tags = []uint16{vlan}
						}
						all := p.Train(n)
						if all[n-1].Flags = pt.ACK | pt.PSH; i%3 == 0 {
							all[n-1].Len = 33
						}
						frames := pt.Frames(all...)
						dmg.do(frames, len(frames[0])-701)
						b := before.pass(frames, c.buffers, c.size, i%2 == 1)
						l := late.pass(frames, c.buffers, c.size, i%2 == 1)
						compareDamaged(t, dmg, frames, vlan != 0, c.grouped, b, l)
						if bl, ll := *before.ledger(1), *late.ledger(1); c.grouped && !sameFates(&bl, &ll) {
							t.Fatalf("%s: verified before:\n%+v\nwhile copying:\n%+v", dmg.name, bl, ll)
						}
						if bl, ll := before.ledger(1), late.ledger(1); ll.Unexplained() != 0 || ll.In != bl.In || ll.Queued+ll.Held != 0 {
							t.Fatalf("%s: verified before:\n%+v\nwhile copying:\n%+v", dmg.name, bl, ll)
						}
						for _, r := range l {
							if err := virtio.CheckRx(&r.hdr, r.data, c.features); err != nil {
								t.Errorf("%s: %v: %+v", dmg.name, err, r.hdr)
							}
						}
					}
					if late.w.cnt != before.w.cnt || c.grouped && late.w.ports[1].cnt != before.w.ports[1].cnt {
						t.Errorf("counters differ:\n%+v %+v\n%+v %+v", before.w.cnt, before.w.ports[1].cnt, late.w.cnt, late.w.ports[1].cnt)
					}
				})
			}
		}
	}
}

// sameFates compares accounts but for the times that packets waited.
func sameFates(a, b *flowtable.Ledger) bool {
	a.HoldHist, b.HoldHist, a.HoldSum, b.HoldSum = [len(a.HoldHist)]uint64{}, [len(a.HoldHist)]uint64{}, 0, 0
	return *a == *b
}

func compareDamaged(t *testing.T, dmg damage, sent [][]byte, tagged, grouped bool, before, late []received) {
	t.Helper()
	want := make([][]byte, len(sent))
	for i, f := range sent {
		if want[i] = f; tagged {
			want[i] = slices.Concat(f[:12], f[16:])
		}
	}
	packets(t, before, want...)
	packets(t, late, want...)
	if grouped && len(before) != len(late) {
		t.Fatalf("%s: %d frames, verified before %d", dmg.name, len(late), len(before))
	}
	for i := range late {
		if !grouped {
			break
		}
		if late[i].hdr != before[i].hdr || !bytes.Equal(late[i].data, before[i].data) {
			t.Fatalf("%s: frame %d: %+v, verified before %+v", dmg.name, i, late[i].hdr, before[i].hdr)
		}
	}
	for _, k := range dmg.at {
		alone := slices.ContainsFunc(late, func(r received) bool { return bytes.Equal(r.data, want[k]) && r.hdr.Flags == 0 && r.hdr.GSOType == 0 })
		if !alone {
			t.Errorf("%s: segment %d did not leave alone without a claim", dmg.name, k)
		}
	}
}

// A packet that is alone is verified while it is copied too, and only then called valid; also one that would be called so and whose guest
// does not know the flag any more.
func TestALonePacketIsCalledValidBehindItsSum(t *testing.T) {
	for _, bad := range []bool{false, true} {
		for _, held := range []bool{false, true} { // it waits for a second one, or its PSH lets it pass
			d := newDamaged(t, allFeatures, 0, true)
			p := to(1, 300)
			if p.BadTCP = bad; !held {
				p.Flags = pt.ACK | pt.PSH
			}
			got := d.pass([][]byte{p.Frame()}, 4, 2048, false)
			packets(t, got, p.Frame())
			want, reason := uint8(virtio.HdrDataValid), flowtable.ReasonPSH
			if held {
				reason = flowtable.ReasonBurstEnd
			}
			if bad {
				want, reason = 0, flowtable.ReasonBadTCPChecksum
			}
			if l := d.ledger(1); got[0].hdr.Flags != want || l.Passed[reason] != 1 || l.Decided.Frames[reason] != 1 || l.Unexplained() != 0 {
				t.Errorf("bad %v, held %v: flags %d, %d passed for %s", bad, held, got[0].hdr.Flags, l.Passed[reason], reason)
			}
		}
	}
}

// Who listens is told of damage when it comes: while somebody does, nothing is merged that was not verified.
func TestWhoListensHearsOfDamageWhenItComes(t *testing.T) {
	d := newDamaged(t, allFeatures, 0, true)
	frames := train(to(1, 100), 6)
	frames[2][len(frames[2])-1] ^= 4
	for range 2 {
		fates, wires := d.probe(1, ProbeConfig{}), d.probe(1, ProbeConfig{Kind: ProbeWire})
		packets(t, d.pass(frames, 20, 2048, false), frames...)
		wantDeeds(t, fates, "seal bad_tcp_checksum ii", "pass bad_tcp_checksum", "seal burst_end iii")
		wantDeeds(t, wires, "hold", "hold", "pass bad_tcp_checksum", "hold", "hold", "hold")
		d.w.unlisten(d.w.ports[1], fates)
		d.w.unlisten(d.w.ports[1], wires)
		packets(t, d.pass(frames, 20, 2048, false), frames...) // and may be found while copying again
	}
	if l := d.ledger(1); l.Passed[flowtable.ReasonBadTCPChecksum] != 4 || l.Unexplained() != 0 {
		t.Errorf("%d passed as damaged, %d unexplained", l.Passed[flowtable.ReasonBadTCPChecksum], l.Unexplained())
	}
}

// A superframe of which every second segment is damaged becomes more frames than the queue has places.
func TestMoreDamageThanTheQueueHasPlaces(t *testing.T) {
	d := newDamaged(t, allFeatures, 0, true)
	d.shortQueue(1, 4)
	frames := train(to(1, 100), 60)
	for i := 0; i < len(frames); i += 2 {
		frames[i][len(frames[i])-1] ^= 4
	}
	packets(t, d.pass(frames, 100, 2048, false), frames...)
	next := train(pt.TCP{DstMAC: macOf(1), SrcPort: 9, Len: 100}, 5)
	packets(t, d.pass(next, 10, 2048, false), next...)
	if l := d.ledger(1); l.Passed[flowtable.ReasonBadTCPChecksum] != 59 || l.Unexplained() != 0 || l.Queued != 0 || d.nic.with(inWorker) != 0 {
		t.Errorf("%d passed as damaged, %d unexplained, %d queued, %d chunks out", l.Passed[flowtable.ReasonBadTCPChecksum], l.Unexplained(), l.Queued, d.nic.with(inWorker))
	}
}

var _ Summer = &userGuest{rx: (*vhost.RxQueue)(nil)}
