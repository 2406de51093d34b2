package datapath

import (
	"slices"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// byForeign has a worker's frames brought by somebody else's XDP program.
func byForeign(c *Config) { c.Foreign = true }

// What stands in front of a frame of somebody else's program is not believed, also when it looks like ours: the address decides, and the
// parser here. A frame for nobody is dropped and counted as that.
func TestOfAForeignProgramTheAddressDecides(t *testing.T) {
	r := newRig(t, byForeign)
	a, b := r.vm(1), r.vm(2)
	want := train(to(1, 1000), 4)
	for _, f := range want {
		r.nic.inject(f, metaOf(2, f))
	}
	r.inject(to(9, 100).Frame(), to(1, 100).Frame()[:13])
	r.step()
	packets(t, a.got, want...)
	if len(a.got) != 1 || len(b.got) != 0 {
		t.Errorf("%d frames at the VM, %d at the one that the metadata names", len(a.got), len(b.got))
	}
	if c := r.w.cnt; c.Nobody != 2 || c.Unknown != 0 || c.WithMeta != 0 || c.RxFrames != 6 {
		t.Errorf("%+v", c)
	}
	if r.nic.with(inWorker) != 0 {
		t.Errorf("%d chunks did not come back", r.nic.with(inWorker))
	}
}

// The tag in a frame says in which VLAN it is, also for a VM of which only a further address is meant.
func TestOfAForeignProgramATagDecidesToo(t *testing.T) {
	r := newRig(t, byForeign)
	plain := r.vm(1, func(c *PortConfig) { c.MACs = [][6]byte{macOf(7)} })
	seven := r.vm(2, func(c *PortConfig) { c.Addr = Addr{VLAN: 7, MAC: macOf(1)} })
	tagged := func(vid uint16) pt.TCP { return to(1, 700).With(func(p *pt.TCP) { p.Tags = []uint16{vid} }) }
	r.inject(to(1, 700).Frame(), to(7, 700).Frame(), tagged(7).Frame(), tagged(0xe000).Frame(), tagged(8).Frame())
	r.step()
	packets(t, seven.got, to(1, 700).Frame())
	if len(plain.got) != 3 || r.w.cnt.Nobody != 1 {
		t.Errorf("%d frames without a VLAN, %d for nobody", len(plain.got), r.w.cnt.Nobody)
	}
	for _, tag := range tagTypes { // what our program would leave to the host
		r.inject(lanFrame(macOf(1), lanStation, 0x8100, 7, tag, 9, 0x0800))
		if tag != 0x8100 {
			r.inject(lanFrame(macOf(1), lanStation, tag, 9, 0x0800))
		}
	}
	r.step()
	r.dropped(2, byReason{flowtable.ReasonVLANForeign: uint64(len(tagTypes))})
	r.dropped(1, byReason{flowtable.ReasonVLANForeign: uint64(len(tagTypes) - 1)})
}

// Group frames of the wire reach every VM of their VLAN, and no other. The protocols of switches reach none.
func TestOfAForeignProgramGroupFramesReachTheirVLAN(t *testing.T) {
	r := newRig(t, byForeign)
	a, b, seven := r.vm(1), r.vm(2), r.vm(3, func(c *PortConfig) { c.Addr.VLAN = 7 })
	plain, inSeven := lanFrame(everybody, lanStation, privateType), lanFrame(everybody, lanStation, 0x8100, 7, privateType)
	bpdu := lanFrame([6]byte{1, 0x80, 0xc2}, lanStation, privateType)
	own := lanFrame(everybody, macOf(2), privateType)
	r.inject(slices.Clone(plain), inSeven, lanFrame(everybody, lanStation, 0x8100, 9, privateType), bpdu, own)
	r.step()
	packets(t, a.got, plain, own)
	packets(t, b.got, plain)
	packets(t, seven.got, plain) // without its tag it is the same
	if r.w.cnt.Nobody != 1 {
		t.Errorf("%d group frames for nobody", r.w.cnt.Nobody)
	}
	r.dropped(1, byReason{flowtable.ReasonControlFrame: 1})
	r.dropped(2, byReason{flowtable.ReasonControlFrame: 1, flowtable.ReasonHairpin: 1})
	if r.nic.with(inWorker) != 0 {
		t.Errorf("%d chunks did not come back", r.nic.with(inWorker))
	}
}

// A flood of group frames costs a turn no more than its copies, and what is above that is counted. The next turn has all of them again.
func TestOfAForeignProgramGroupFramesHaveABound(t *testing.T) {
	const vms, frames = 40, 2 * BurstFrames
	r := newRig(t, byForeign)
	var guests []*fakeGuest
	for i := range uint32(vms) {
		guests = append(guests, r.vm(i))
	}
	const most = (groupCopies + vms - 1) / vms
	for turn := 1; turn <= 2; turn++ {
		for range frames {
			r.inject(lanFrame(everybody, lanStation, privateType))
		}
		r.step()
		for i, g := range guests {
			if n := len(g.take()); n != most {
				t.Fatalf("turn %d: %d frames at VM %d, want %d", turn, n, i, most)
			}
		}
		if want := uint64(turn * (frames - most)); r.w.cnt.GroupLost != want {
			t.Errorf("turn %d: %d counted as lost, want %d", turn, r.w.cnt.GroupLost, want)
		}
	}
}

func TestOfAForeignProgramNothingAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for name, frames := range map[string][][]byte{
		"superframes":       train(to(0, 1000), 60),
		"for nobody":        train(alone(9, 1000), 60),
		"to a group":        {lanFrame(everybody, lanStation, privateType), lanFrame(everybody, lanStation, 0x8100, 5, privateType)},
		"of a VLAN, in all": train(to(0, 1000).With(func(p *pt.TCP) { p.Tags = []uint16{0} }), 60),
	} {
		t.Run(name, func(t *testing.T) {
			nic := &quietNIC{umemNIC: newUmemNIC(t, segChunks), frames: frames}
			w, err := New(Config{MTU: 1500, NIC: nic, WakeFD: -1, Chunks: segChunks, Foreign: true, Log: newRig(t).w.cfg.Log, Trouble: func() {}})
			if err != nil {
				t.Fatal(err)
			}
			for i := range uint32(2) {
				if err := w.addPort(PortConfig{Index: i, Addr: Addr{MAC: macOf(i)}}); err != nil {
					t.Fatal(err)
				}
				if err := w.startPort(i, &quietGuest{nic: nic}, nil, rules()); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 * outQueueLen {
				w.step()
			}
			if n := testing.AllocsPerRun(200, func() { w.step() }); n != 0 {
				t.Errorf("%v allocations per burst", n)
			}
		})
	}
}
